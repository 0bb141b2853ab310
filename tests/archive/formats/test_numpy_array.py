"""NumPy arrays and their side-cars."""

from __future__ import annotations

import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raygenesis.archive.formats.readers import read_scan, read_scan_geometry
from tests.support.nifti import grey
from tests.support.scan_files import one, refusal, write_array


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_what_it_is(tmp_path: Path, suffix: str, order: str) -> None:
    voxels = np.asarray(grey((4, 5, 6), ">i2"), order=order)
    volume = one(write_array(tmp_path / f"a{suffix}", voxels, {"spacing_mm": [3, 2, 1.5], "modality": "CT"}))
    assert np.array_equal(volume.voxels, voxels) and volume.voxels.dtype == np.int16
    assert (volume.spacing_mm, volume.modality, volume.ndim) == ((3.0, 2.0, 1.5), "CT", 3)
    assert np.array_equal(volume.affine, np.diag([1.5, 2, 3, 1]))
    flat = one(write_array(tmp_path / f"flat{suffix}", voxels[0], {"spacing_mm": [2, 1.5]}))
    assert np.array_equal(flat.voxels, voxels[0]) and (flat.ndim, flat.spacing_mm) == (2, (2.0, 1.5))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_one_axis_more_is_what_the_settings_say(tmp_path: Path, suffix: str) -> None:
    voxels = grey((3, 4, 5, 6))
    path = write_array(tmp_path / f"a{suffix}", voxels, {"spacing_mm": [3, 2, 1]})
    assert "choose archive.fourth_axis=split" in refusal(path)
    assert np.array_equal(one(path, fourth_axis="channels").voxels, voxels)
    parts = read_scan([path], "split")
    assert len(read_scan_geometry([path], "split")) == 3
    assert all(np.array_equal(part.voxels, voxel) for part, voxel in zip(parts, voxels, strict=True))


@pytest.mark.parametrize(
    ("side_car", "words"),
    [
        (None, "write a .json of the same name beside it"),
        ("{", "not readable (JSONDecodeError)"),
        ("\xff", "not readable"),
        ("[1, 2]", "side-car (.json)"),
        ({}, "spacing_mm: field required"),
        ({"spacing_mm": [1, 1, 0]}, "spacing_mm.2: input should be greater than 0"),
        ({"spacing_mm": [1, 1, -1]}, "spacing_mm.2"),
        ('{"spacing_mm": [1, 1, NaN]}', "spacing_mm.2"),
        ('{"spacing_mm": [1, 1, Infinity]}', "spacing_mm.2"),
        ({"spacing_mm": [1]}, "spacing_mm"),
        ({"spacing_mm": [1, 1, 1, 1]}, "spacing_mm"),
        ({"spacing_mm": 1.0}, "spacing_mm"),
        ({"spacing_mm": "1 1 1"}, "spacing_mm"),
        ({"spacing_mm": [1, 1]}, "choose archive.fourth_axis"),
        ({"spacing_mm": [1, 1, 1], "spacings": 1}, "spacings: extra inputs are not permitted"),
        ({"spacing_mm": [1, 1, 1], "modality": "Jane Doe"}, "modality"),
        ({"spacing_mm": [1, 1, 1], "array": 3}, "array"),
    ],
)
def test_a_wrong_side_car_is_said(tmp_path: Path, side_car: Any, words: str) -> None:
    path = write_array(tmp_path / "a.npy", grey((4, 5, 6)), side_car)
    if side_car == "\xff":
        path.with_suffix(".json").write_bytes(b"\xff\xfe{")
    assert words in refusal(path)


def test_an_axis_too_few_or_two_too_many_is_said(tmp_path: Path) -> None:
    for shape in ((4, 5), (2, 2, 3, 4, 5), ()):
        path = write_array(tmp_path / "a.npy", np.zeros(shape), {"spacing_mm": [1, 1, 1]})
        assert "does not fit the 3 numbers of spacing_mm" in refusal(path)


def test_one_array_of_several_is_named_in_the_side_car(tmp_path: Path) -> None:
    path, voxels = tmp_path / "a.npz", grey((4, 5, 6))
    np.savez(path, image=voxels, label=voxels > 5)
    path.with_suffix(".json").write_text('{"spacing_mm": [1, 1, 1]}')
    assert "it holds 2 arrays: name one of them" in refusal(path)
    path.with_suffix(".json").write_text('{"spacing_mm": [1, 1, 1], "array": "image"}')
    assert np.array_equal(one(path).voxels, voxels)
    path.with_suffix(".json").write_text('{"spacing_mm": [1, 1, 1], "array": "picture"}')
    assert "it holds 2 arrays" in refusal(path)


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = str(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_objects_are_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    objects = np.array([[[Bomb(tmp_path / "run")]]], object)
    path = write_array(tmp_path / f"a{suffix}", objects, {"spacing_mm": [1, 1, 1]})
    assert "holds Python objects" in refusal(path)
    path = tmp_path / "raw.npy"
    path.write_bytes((tmp_path / "a.npy").read_bytes()[128:] if suffix == ".npy" else b"\x80\x04N.")  # a bare pickle
    path.with_suffix(".json").write_text('{"spacing_mm": [1, 1, 1]}')
    assert "cut short or damaged, or holds Python objects" in refusal(path)
    assert not (tmp_path / "run").exists()


def test_damaged_arrays_are_one_sentence(tmp_path: Path) -> None:
    for suffix in (".npy", ".npz"):
        path = write_array(tmp_path / f"a{suffix}", grey((8, 8, 8)), {"spacing_mm": [1, 1, 1]})
        content = path.read_bytes()
        for damaged in (b"", content[:7], content[: len(content) // 2], content[:-100], b"text" * 50):
            path.unlink()
            path.write_bytes(damaged)
            assert re.search("damaged|claims .* more than the file can hold", refusal(path))
    path = write_array(tmp_path / "b.npy", grey((4, 4, 4), np.complex64), {"spacing_mm": [1, 1, 1]})
    assert "not grey values" in refusal(path)


def test_an_array_that_unpacks_to_more_than_a_scan_may_have_is_refused(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.npz", np.zeros((64, 64, 64)), {"spacing_mm": [1, 1, 1]})
    assert "archive.max_scan_gib" in refusal(path, max_bytes=2**20)
    content = path.read_bytes()  # a header that claims more than the file can hold
    with zipfile.ZipFile(path, "w") as packed, packed.open("voxels.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (9999,) * 3})
    assert "more than the file can hold" in refusal(path)
    path.write_bytes(content)
    with zipfile.ZipFile(path) as packed:
        assert packed.infolist()[0].file_size > 2**20  # else the test would show nothing


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_geometry_of_an_array_is_its_header_s(tmp_path: Path, suffix: str) -> None:
    """Nothing of its voxels is unpacked."""
    path = write_array(tmp_path / f"a{suffix}", np.zeros((2, 160, 160, 160)), {"spacing_mm": [3, 2, 1]})
    tracemalloc.start()
    try:
        assert read_scan_geometry([path], "split") == [((160, 160, 160), (3.0, 2.0, 1.0))] * 2
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
