"""LiTS: the liver, tumours and all, on the volume's voxels, whatever the segmentation's header says."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from raygenesis.errors import ScanError
from raygenesis.transfer.examples import TEST, TRAIN, VALIDATION
from raygenesis.transfer.targets.lits import read

# To the left, anterior and superior, as most of the owners' volumes are stored.
TURNED = np.array([[-0.8, 0, 0, 180.0], [0, 0.8, 0, -150.0], [0, 0, 2.5, -600.0], [0, 0, 0, 1]])
NOWHERE = np.array([[1.0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = TURNED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def write_case(folder: Path, number: int, ending: str = ".nii", affine: np.ndarray = TURNED, tumour: int = 2) -> None:
    """A liver of 60 HU that holds a tumour of 90 HU, in air."""
    label = np.zeros((12, 10, 8), np.uint8)
    label[1:6, 2:5, 1:4] = 1
    label[2:4, 3, 2] = tumour
    image = np.choose(np.minimum(label, 2), [-1000, 60, 90]).astype(np.int16)
    write(folder / f"volume-{number}{ending}", image)
    write(folder / f"segmentation-{number}{ending}", label, affine)


@pytest.mark.parametrize("affine", [TURNED, NOWHERE])
def test_liver_and_tumour_are_the_liver(tmp_path: Path, affine: np.ndarray) -> None:
    write_case(tmp_path, 3, affine=affine)
    (example,) = read(tmp_path).examples
    image = example.image.read()
    label = example.label.read(image)
    np.testing.assert_array_equal(label, image.voxels > 0)
    assert label.sum() == 5 * 3 * 3 and label.dtype == np.uint8


def test_cases_are_split_as_published(tmp_path: Path) -> None:
    numbers = [0, 9, 10, 99, 100, 114, 115, 130]
    for number in numbers:
        batch = tmp_path / f"Training Batch {1 + (number > 27)}"
        write_case(batch, number, ".nii.gz" if number == 10 else ".nii")
    target = read(tmp_path)
    assert [example.name for example in target.examples] == [f"volume-{number}" for number in numbers]
    assert [example.subject for example in target.examples] == [f"volume-{number}" for number in numbers]
    assert [example.split for example in target.examples] == [TRAIN] * 4 + [VALIDATION] * 2 + [TEST] * 2
    assert (target.task, target.ndim, target.classes, target.window) == (
        "segmentation", 3, ("liver",), (-1000.0, 1000.0),
    )  # fmt: skip
    assert not target.problems


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    for number in (1, 2, 3, 131):
        write_case(tmp_path, number)
    write_case(tmp_path, 1, ".nii.gz")
    (tmp_path / "volume-2.nii").unlink()
    (tmp_path / "segmentation-3.nii").unlink()
    (tmp_path / "test-volume-4.nii").write_bytes(b"")  # the owners' test volumes have no segmentation
    target = read(tmp_path)
    assert [example.name for example in target.examples] == ["volume-1"]
    assert {problem.name: problem.reason for problem in target.problems} == {
        "volume-1.nii.gz": "volume-1.nii has its name already",
        "segmentation-1.nii.gz": "segmentation-1.nii has its name already",
        "case 2": "volume-2.nii is missing",
        "case 3": "segmentation-3.nii is missing",
        "case 131": "the published cases are numbered 0 to 130",
    }


def test_a_segmentation_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    beside, other = TURNED.copy(), np.zeros((12, 10, 9), np.uint8)
    beside[0, 3] += 20
    write_case(tmp_path, 0, affine=beside)
    write_case(tmp_path, 1, tumour=5)
    write_case(tmp_path, 2)
    write(tmp_path / "segmentation-2.nii", other, NOWHERE)
    reasons = [
        "20.0 mm beside its image",
        "holds the values .5., and only .0, 1, 2. are known",
        "12×10.* voxels|9×10×12",
    ]
    for example, reason in zip(read(tmp_path).examples, reasons, strict=True):
        with pytest.raises(ScanError, match=reason):
            example.label.read(example.image.read())


def test_a_wrong_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="holds no example: give the folder"):
        read(tmp_path)
    with pytest.raises(ScanError, match="does not exist or is not a folder"):
        read(tmp_path / "nowhere")
