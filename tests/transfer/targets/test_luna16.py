"""LUNA16: candidates lie where their owners' world coordinates say, and are sampled alike whatever the order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from raygenesis.errors import ScanError
from raygenesis.transfer.examples import TEST, TRAIN, VALIDATION, Target
from raygenesis.transfer.targets.luna16 import read

HEADER = "seriesuid,coordX,coordY,coordZ,class"
UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.100{}"


def write_scan(folder: Path, subset: int, uid: str, turned: bool = False) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(-1000, 400, (9, 12, 15)).astype(np.int16))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-120.0, -95.5, -310.0))
    if turned:  # as a few of the owners' scans are
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    path = folder / f"subset{subset}" / f"{uid}.mhd"
    path.parent.mkdir(exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return image


def write_table(folder: Path, *rows: str, header: str = HEADER) -> None:
    (folder / "candidates_V2.csv").write_text("\n".join([header, *rows, ""]))


def voxel_of(target: Target, number: int = 0) -> tuple[list[int], float]:
    """Canonical voxel x y z nearest an example's centre, and the value there."""
    example = target.examples[number]
    volume = example.image.read()
    x, y, z = np.rint(np.linalg.inv(volume.affine) @ [*example.region.centre_mm, 1]).astype(int)[:3]
    return [int(x), int(y), int(z)], float(volume.voxels[z, y, x])


@pytest.mark.parametrize("turned", [False, True])
def test_a_candidate_lies_where_simpleitk_finds_its_world_coordinates(tmp_path: Path, turned: bool) -> None:
    image = write_scan(tmp_path, 0, UID.format(1), turned)
    place = image.TransformIndexToPhysicalPoint((11, 3, 6))
    write_table(tmp_path, f"{UID.format(1)},{','.join(map(str, place))},1")
    target = read(tmp_path)
    index = image.TransformPhysicalPointToIndex(place)
    assert voxel_of(target)[1] == image[index]
    # Left and posterior rise in the file, right and anterior here, unless the scan is turned.
    assert voxel_of(target)[0] == ([11, 3, 6] if turned else [14 - 11, 11 - 3, 6])
    assert target.examples[0].region.extent_mm == (40.0, 45.0, 45.0)
    assert (target.task, target.classes, target.window) == (
        "classification", ("no nodule", "nodule"), (-1000.0, 1000.0),
    )  # fmt: skip
    assert read(tmp_path, extent_mm=(20.0, 30.0, 30.0)).examples[0].region.extent_mm == (20.0, 30.0, 30.0)


def test_subsets_are_split_as_published(tmp_path: Path) -> None:
    for subset in range(10):
        write_scan(tmp_path, subset, UID.format(subset))
    (tmp_path / "seg-lungs-LUNA16").mkdir()  # masks with the scans' names
    (tmp_path / "seg-lungs-LUNA16" / f"{UID.format(3)}.mhd").write_text("")
    write_table(tmp_path, *[f"{UID.format(subset)},1,2,3,{subset % 2}" for subset in range(10)])
    target = read(tmp_path)
    assert [example.split for example in target.examples] == [TRAIN] * 5 + [VALIDATION] * 2 + [TEST] * 3
    assert [example.value for example in target.examples] == [0, 1] * 5
    assert [example.subject for example in target.examples] == [UID.format(subset) for subset in range(10)]
    assert not target.problems


def test_all_nodules_and_a_sample_of_the_rest_whatever_the_order(tmp_path: Path) -> None:
    rows = []
    for scan in range(2):
        write_scan(tmp_path, scan, UID.format(scan))
        rows += [f"{UID.format(scan)},{x},{x % 7},{-x},{int(x % 20 == 0)}" for x in range(100)]
    write_table(tmp_path, *rows)
    target = read(tmp_path, max_negatives_per_scan=8)
    for scan in range(2):
        values = [example.value for example in target.examples if example.subject == UID.format(scan)]
        assert (values.count(1), values.count(0)) == (5, 8)
    write_table(tmp_path, *np.random.default_rng(1).permutation(rows).tolist())
    assert read(tmp_path, max_negatives_per_scan=8) == target
    assert read(tmp_path, max_negatives_per_scan=8, seed=1) != target
    write_table(tmp_path, *rows[:100])  # the other scan's sample is not this one's matter
    assert read(tmp_path, max_negatives_per_scan=8).examples == target.examples[:13]
    write_table(tmp_path, *rows)
    assert len(read(tmp_path, max_negatives_per_scan=None).examples) == 200
    first, second = ({e.name[-4:] for e in target.examples if e.subject == UID.format(n)} for n in range(2))
    assert first != second
    assert len({example.name for example in target.examples}) == len(target.examples)


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    for number in range(1, 4):
        write_scan(tmp_path, 0, UID.format(number))
    write_scan(tmp_path, 1, UID.format(1))
    (tmp_path / "subset0" / f"{UID.format(3)}.raw").unlink()
    good = f"{UID.format(1)},1,2,3,1"
    write_table(
        tmp_path, good, f"{UID.format(1)},1,x,3,1", f"{UID.format(1)},1,2,nan,1", f"{UID.format(1)},1,2,3,7",
        f"{UID.format(1)},1", f"{UID.format(3)},1,2,3,0", "../../etc/passwd,1,2,3,0",
    )  # fmt: skip
    target = read(tmp_path)
    assert [example.name for example in target.examples] == [f"{UID.format(1)}/0000"]
    problems = {problem.name: problem.reason for problem in target.problems}
    assert problems == {
        f"subset1/{UID.format(1)}.mhd": f"subset0/{UID.format(1)}.mhd has its name already",
        f"subset0/{UID.format(2)}.mhd": "candidates_V2.csv has no candidate of it",
        f"subset0/{UID.format(3)}.mhd": "ElementDataFile must name one file beside the header",
        "../../etc/passwd": "candidates_V2.csv names it, and no subset holds its .mhd",
        "candidates_V2.csv:3": "1, x, 3 is not a place of three numbers",
        "candidates_V2.csv:4": "1, 2, nan is not a place of three numbers",
        "candidates_V2.csv:5": "class '7' is neither 0 nor 1",
        "candidates_V2.csv:6": "1, ,  is not a place of three numbers",
    }


def test_a_wrong_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="does not exist or is not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(ScanError, match=r"candidates_V2\.csv does not exist: put the table there"):
        read(tmp_path)
    write_table(tmp_path, header="seriesuid,x,y,z,class")
    with pytest.raises(ScanError, match=r"candidates_V2\.csv has no column 'coordX'"):
        read(tmp_path)
    write_table(tmp_path, f"{UID.format(1)},1,2,3,1")
    with pytest.raises(ScanError, match=r"holds no example .*no subset holds its \.mhd"):
        read(tmp_path)
    (tmp_path / "candidates_V2.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScanError, match="cannot be read as a table"):
        read(tmp_path)


def test_a_scan_is_both_its_files_as_in_an_archive(tmp_path: Path) -> None:
    write_scan(tmp_path, 0, UID.format(1))
    write_table(tmp_path, f"{UID.format(1)},0,0,0,1")
    (example,) = read(tmp_path).examples
    assert [path.suffix for path in example.image.paths] == [".mhd", ".raw"]
