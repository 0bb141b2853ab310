"""BraTS 2018: FLAIR and the whole tumour, in three folds that deal out grades and institutions alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from raygenesis.errors import ScanError, SettingsError
from raygenesis.transfer.examples import TEST, TRAIN
from raygenesis.transfer.targets.brats import read


def write_case(folder: Path, case: str, values: tuple[int, ...] = (0, 1, 2, 4)) -> None:
    label = np.random.default_rng(0).choice(np.array(values, np.uint8), (10, 9, 8))
    image = np.where(label > 0, 300, 100).astype(np.int16)
    (folder / case).mkdir(parents=True)
    for kind, voxels in (("flair", image), ("t1", image), ("seg", label)):
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / case / f"{case}_{kind}.nii.gz")


def touch_case(folder: Path, case: str, *kinds: str) -> None:
    (folder / case).mkdir(parents=True, exist_ok=True)
    for kind in kinds or ("flair", "seg"):
        (folder / case / f"{case}_{kind}.nii.gz").touch()


@pytest.mark.parametrize("grade", ["HGG", "."])
def test_every_part_of_the_tumour_is_the_tumour(tmp_path: Path, grade: str) -> None:
    write_case(tmp_path / grade, "Brats18_2013_2_1")
    target = read(tmp_path)
    (example,) = target.examples
    image = example.image.read()
    np.testing.assert_array_equal(example.label.read(image), image.voxels == 300)
    assert example.image.paths[0].name == "Brats18_2013_2_1_flair.nii.gz"
    assert (example.name, example.subject) == ("Brats18_2013_2_1", "Brats18_2013_2_1")
    assert (target.task, target.classes, target.window) == ("segmentation", ("whole tumour",), None)


def test_three_folds_of_95_cover_the_285_cases_once(tmp_path: Path) -> None:
    cases = [("HGG", f"Brats18_{'CBICA' if n % 2 else 'TCIA01'}_A{n:03d}_1") for n in range(210)]
    cases += [("LGG", f"Brats18_TCIA09_{n:03d}_1") for n in range(75)]
    for grade, case in cases:
        touch_case(tmp_path / "MICCAI_BraTS_2018_Data_Training" / grade, case)
    tested: Counter[str] = Counter()
    for fold in range(3):
        examples = read(tmp_path, fold=fold).examples
        splits = Counter(example.split for example in examples)
        assert splits == {TEST: 95, TRAIN: 190}
        test = [example for example in examples if example.split == TEST]
        assert sum(example.image.paths[0].parts[-3] == "LGG" for example in test) == 25
        assert sum("CBICA" in example.name for example in test) == 35
        tested.update(example.name for example in test)
    assert len(tested) == 285 and set(tested.values()) == {1}


def test_a_bad_case_moves_no_other_to_another_fold(tmp_path: Path) -> None:
    for number in range(9):
        touch_case(tmp_path, f"Brats18_TCIA01_{number}_1")
    before = {example.name: example.split for example in read(tmp_path, fold=1).examples}
    (tmp_path / "Brats18_TCIA01_2_1" / "Brats18_TCIA01_2_1_flair.nii.gz").unlink()
    (tmp_path / "Brats18_TCIA01_5_1" / "Brats18_TCIA01_5_1_seg.nii.gz").unlink()
    target = read(tmp_path, fold=1)
    assert {example.name: example.split for example in target.examples}.items() <= before.items()
    assert {problem.name: problem.reason for problem in target.problems} == {
        "Brats18_TCIA01_2_1": "Brats18_TCIA01_2_1_flair.nii.gz is missing",
        "Brats18_TCIA01_5_1": "Brats18_TCIA01_5_1_seg.nii.gz is missing",
    }


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="holds no example: give the folder"):
        read(tmp_path)
    with pytest.raises(SettingsError, match="fold=3: BraTS is read in 3 folds, 0 to 2"):
        read(tmp_path, fold=3)
    write_case(tmp_path, "Brats18_2013_2_1", (0, 3))
    (example,) = read(tmp_path).examples
    with pytest.raises(ScanError, match=r"holds the values \[3\], and only \[0, 1, 2, 4\] are known"):
        example.label.read(example.image.read())
    touch_case(tmp_path / "copy", "Brats18_2013_2_1")
    names = [problem.name for problem in read(tmp_path).problems]
    assert names == [f"copy/Brats18_2013_2_1/Brats18_2013_2_1_{kind}.nii.gz" for kind in ("flair", "seg")]
