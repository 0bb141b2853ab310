"""MedMNIST: every volume of an .npz is read by itself, and is what NumPy finds there."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from raygenesis.errors import ScanError
from raygenesis.transfer.examples import TEST, TRAIN, VALIDATION
from raygenesis.transfer.targets.medmnist import read
from tests.support.data import ADRENALS, needs_adrenals

COUNTS = {"train": 5, "val": 2, "test": 3}


def arrays(brightest: int = 255) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    parts = {}
    for part, count in COUNTS.items():
        parts[f"{part}_images"] = generator.integers(0, 2, (count, 4, 5, 6), np.uint8) * np.uint8(brightest)
        parts[f"{part}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    return parts


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("brightest", [1, 255])
def test_each_volume_in_any_order(tmp_path: Path, save, brightest: int) -> None:
    expected = arrays(brightest)
    save(tmp_path / "adrenalmnist3d_64.npz", **expected)
    target = read(tmp_path)
    assert target == read(tmp_path / "adrenalmnist3d_64.npz")
    assert [example.split for example in target.examples] == [TRAIN] * 5 + [VALIDATION] * 2 + [TEST] * 3
    assert [example.value for example in target.examples] == [0, 1, 0, 1, 0, 0, 1, 0, 1, 0]
    assert (target.task, target.classes, target.window) == (
        "classification", ("normal", "abnormal"), (0.0, float(brightest)),
    )  # fmt: skip
    for example in pickle.loads(pickle.dumps(target.examples[::-1])):
        part, number = example.name.split("/")
        np.testing.assert_array_equal(example.image.read().voxels, expected[f"{part}_images"][int(number)])


@needs_adrenals
def test_the_real_shapes() -> None:
    target = read(ADRENALS)
    assert [sum(e.split == split for e in target.examples) for split in (TRAIN, VALIDATION, TEST)] == [1188, 98, 298]
    assert target.window == (0.0, 255.0) and not target.problems
    (path,) = ADRENALS.glob("*.npz")
    with np.load(path) as stored:
        assert [e.value for e in target.examples if e.split == TEST] == stored["test_labels"].ravel().tolist()
        images = stored["val_images"]
    validation = [example for example in target.examples if example.split == VALIDATION]
    for number in (97, 0, 50):
        np.testing.assert_array_equal(validation[number].image.read().voxels, images[number])


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays(1))
    example = read(tmp_path).examples[0]
    assert example.image.read().voxels.max() == 1
    (tmp_path / "a.npz").unlink()
    np.savez(tmp_path / "a.npz", **arrays(200))
    assert example.image.read().voxels.max() == 200


def test_a_file_that_lost_volumes_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    example = read(tmp_path).examples[4]
    np.savez(tmp_path / "a.npz", **arrays() | {"train_images": arrays()["train_images"][:4]})
    with pytest.raises(ScanError, match="train_images cannot be read"):
        example.image.read()
    (tmp_path / "a.npz").unlink()
    with pytest.raises(ScanError, match="train_images cannot be read"):
        example.image.read()


def test_an_unknown_class_is_said(tmp_path: Path) -> None:
    labels = np.array([[0], [1], [2], [0], [1]])
    np.savez(tmp_path / "a.npz", **arrays() | {"train_labels": labels})
    target = read(tmp_path)
    assert len(target.examples) == 9
    assert [(problem.name, problem.reason) for problem in target.problems] == [
        ("train/00002", "class 2 is not one of 0 to 1")
    ]
    assert not read(tmp_path, classes=("a", "b", "c")).problems


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train_labels": None}, "train_images and train_labels cannot be read"),
        ({"val_images": None}, "val_images and val_labels cannot be read"),
        ({"test_labels": np.zeros((4, 1), np.uint8)}, "3 test_images and 4 test_labels"),
        ({"test_labels": np.zeros((3, 2), np.uint8)}, "test_labels of 3×2 are not one whole number for each image"),
        ({"test_labels": np.zeros((3, 1))}, "test_labels of 3×1 are not one whole number for each image"),
        ({"test_labels": np.array([{}, {}, {}])}, "cannot be read .*allow_pickle"),
        ({"train_images": np.zeros((5, 28, 28), np.uint8)}, "5×28×28 values of uint8 are not volumes of uint8"),
        ({"train_images": np.zeros((5, 4, 4, 4))}, "5×4×4×4 values of float64 are not volumes of uint8"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, change: dict[str, np.ndarray | None], reason: str) -> None:
    np.savez(tmp_path / "a.npz", **{name: array for name, array in (arrays() | change).items() if array is not None})
    with pytest.raises(ScanError, match=reason):
        read(tmp_path)


def test_a_wrong_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"holds 0 \.npz files: give the one to be read"):
        read(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK no zip")
    with pytest.raises(ScanError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "b.npz").write_bytes(b"")
    with pytest.raises(ScanError, match=r"holds 2 \.npz files"):
        read(tmp_path)
