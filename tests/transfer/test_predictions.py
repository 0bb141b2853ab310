"""Predictions as files: on the scan's own voxels, in its own orientation, at their place in the patient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from raygenesis.errors import RaygenesisError
from raygenesis.transfer.cases import Case, read_cases
from raygenesis.transfer.examples import Example, ImageFile, LabelFile, Region
from raygenesis.transfer.predictions import join_examples, write_example, write_prediction
from tests.support.cases import box_case, form, write_nifti

SHAPE = (9, 7, 5)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Axes in any order and direction, perhaps turned a little, with steps and an origin."""
    axes = np.eye(3)[draw(st.permutations(range(3)))] * draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-30, 30)] * 3)), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag(draw(st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3)))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-99, 99)] * 3))
    return affine


def labels(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


def read(folder: Path, label: np.ndarray, affine: np.ndarray, region: Region | None = None, **changed: Any) -> Case:
    """The case of a NIfTI image x y z and its label map."""
    image = np.arange(label.size, dtype=np.float32).reshape(label.shape)
    for name, voxels in (("image", image), ("label", label)):
        write_nifti(folder / f"{name}.nii.gz", voxels, affine)
    files = ImageFile((folder / "image.nii.gz",)), LabelFile(folder / "label.nii.gz")
    example = Example("a/scan.nii.gz", "a", *files, region=region)
    spacing = None if region else example.image.read().spacing_mm
    (case,) = read_cases([example], form(**{"spacing_mm": spacing, **changed}))
    assert isinstance(case, Case), case
    return case


def written(folder: Path, case: Case) -> nibabel.Nifti1Image:
    """Where all is predicted right."""
    path = write_prediction(folder / "predictions", case, case.label)
    return nibabel.load(path)


@given(affines(), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_what_is_right_comes_back_as_the_label_in_any_orientation(
    tmp_path_factory: pytest.TempPathFactory, affine: np.ndarray, seed: int
) -> None:
    folder, label = tmp_path_factory.mktemp("scan"), labels(SHAPE, seed)
    found = written(folder, read(folder, label, affine))
    assert np.array_equal(np.asarray(found.dataobj), label) and found.get_data_dtype() == np.uint8
    assert np.allclose(found.affine, nibabel.load(folder / "image.nii.gz").affine, atol=1e-4)


@given(affines())
@settings(deadline=None, max_examples=40)
def test_so_does_a_single_slice_in_any_plane(tmp_path_factory: pytest.TempPathFactory, affine: np.ndarray) -> None:
    folder, label = tmp_path_factory.mktemp("scan"), labels((9, 7, 1))
    found = written(folder, read(folder, label, affine, input_shape=(8, 8)))
    assert np.array_equal(np.asarray(found.dataobj), label)
    assert np.allclose(found.affine, nibabel.load(folder / "image.nii.gz").affine, atol=1e-4)


@pytest.mark.parametrize("input_shape", [(4, 4, 4), (16, 16, 16), (8, 12, 32)])
def test_finer_voxels_and_padding_change_nothing(tmp_path: Path, input_shape: tuple[int, ...]) -> None:
    label = labels(SHAPE)
    case = read(tmp_path, label, np.diag([-1.0, 2, 3, 1]), input_shape=input_shape, spacing_mm=(1.5, 1.0, 0.5))
    assert all(side >= least for side, least in zip(case.label.shape, (10, 14, 18), strict=True))
    assert np.array_equal(np.asarray(written(tmp_path, case).dataobj), label)


def test_coarser_voxels_come_back_as_blocks(tmp_path: Path) -> None:
    case = read(tmp_path, labels((8, 6, 4)), np.eye(4), input_shape=(1, 1, 1), spacing_mm=(2.0, 2.0, 2.0))
    found = np.asarray(written(tmp_path, case).dataobj)
    assert np.array_equal(found, case.label.T.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_a_voxel_has_the_class_of_the_nearest_that_was_predicted(tmp_path: Path) -> None:
    case = read(tmp_path, labels((8, 8, 8)), np.eye(4), input_shape=(1, 1, 1), spacing_mm=(8 / 3,) * 3)
    centres = np.arange(8) + 0.5, (np.arange(3) + 0.5) * 8 / 3
    nearest = np.abs(np.subtract.outer(*centres)).argmin(1)
    found = np.asarray(written(tmp_path, case).dataobj)
    assert case.label.shape == (3, 3, 3) and np.array_equal(found, case.label.T[np.ix_(nearest, nearest, nearest)])


def test_of_another_format_it_lies_where_the_scan_does(tmp_path: Path) -> None:
    label = SimpleITK.GetImageFromArray(labels(SHAPE))
    label.SetSpacing((0.7, 0.8, 2.5))
    label.SetOrigin((-120.0, 95.5, -310.0))
    label.SetDirection((-1, 0, 0, 0, 0, 1, 0, 1, 0))
    SimpleITK.WriteImage(label, str(tmp_path / "label.mha"))
    SimpleITK.WriteImage(SimpleITK.Cast(label, SimpleITK.sitkInt16), str(tmp_path / "image.mha"))
    example = Example("x.mha", "a", ImageFile((tmp_path / "image.mha",)), LabelFile(tmp_path / "label.mha"))
    (case,) = read_cases([example], form(spacing_mm=example.image.read().spacing_mm, input_shape=(16, 16, 16)))
    path = write_prediction(tmp_path, case, case.label)
    assert path.name == "x.nii.gz"
    found = SimpleITK.ReadImage(str(path))
    on_scan = SimpleITK.Resample(found, label, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 9)
    assert np.array_equal(SimpleITK.GetArrayFromImage(on_scan), SimpleITK.GetArrayFromImage(label))


@given(affines())
@settings(deadline=None, max_examples=30)
def test_a_region_is_written_at_its_place(tmp_path_factory: pytest.TempPathFactory, affine: np.ndarray) -> None:
    folder, label = tmp_path_factory.mktemp("scan"), labels((16, 16, 16))
    scan = ImageFile((write_nifti(folder / "image.nii.gz", np.arange(4096.0).reshape(16, 16, 16), affine),)).read()
    centre = scan.affine @ [7.5, 6.5, 8.5, 1]  # between voxels, so that the region's are the scan's own
    region = Region(tuple(centre[:3]), tuple(8 * np.array(scan.spacing_mm)))
    found = written(folder, read(folder, label, affine, region))
    assert found.shape == (8, 8, 8)
    to_scan = np.linalg.inv(nibabel.load(folder / "label.nii.gz").affine) @ found.affine
    at = np.tensordot(to_scan, np.stack([*np.indices((8, 8, 8)), np.ones((8, 8, 8))]), 1)[:3]
    assert np.allclose(at, np.rint(at), atol=1e-3)
    assert np.array_equal(np.asarray(found.dataobj), label[tuple(np.rint(at).astype(int))])
    assert np.allclose(found.affine @ [3.5, 3.5, 3.5, 1], centre, atol=1e-3)


@pytest.mark.parametrize(("name", "file"), [
    ("a/b.nii.gz", "a/b.nii.gz"), ("a/b.nii", "a/b.nii.gz"), ("c.mhd", "c.nii.gz"), ("s/0001.dcm", "s/0001.nii.gz"),
    ("1.2.840.10", "1.2.840.10.nii.gz"), ("uid/nodule-3", "uid/nodule-3.nii.gz"),
])  # fmt: skip
def test_files_are_called_as_their_cases(tmp_path: Path, name: str, file: str) -> None:
    read_case = read(tmp_path, labels(SHAPE), np.eye(4))
    case = Case(name, "a", read_case.image, read_case.label, grid=read_case.grid)
    assert write_prediction(tmp_path, case, case.label) == tmp_path / file


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a/../b"])
def test_a_prediction_is_written_in_its_folder_or_not_at_all(tmp_path: Path, name: str) -> None:
    read_case = read(tmp_path, labels(SHAPE), np.eye(4))
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(RaygenesisError, match="could lead out of a folder"):
        write_prediction(tmp_path / "predictions", replace(read_case, name=name), read_case.label)
    assert sorted(tmp_path.rglob("*")) == there


def test_the_same_prediction_is_the_same_bytes(tmp_path: Path) -> None:
    case = read(tmp_path, labels(SHAPE), np.eye(4))
    first, second = (write_prediction(tmp_path / name, case, case.label).read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("shape", [(20, 18, 16), (20, 18)])
def test_the_slice_shown_is_the_one_with_the_most_foreground(tmp_path: Path, shape: tuple[int, ...]) -> None:
    case = box_case(0, shape)
    for start, number in (("random", 1), ("ours", 2)):
        write_example(tmp_path, start, "50%", case, np.full(shape, number, np.uint8))
        write_example(tmp_path, start, 5, case, np.zeros(shape, np.uint8))  # of fewer labelled subjects
    join_examples(tmp_path, ["random", "ours"], "50%")
    with np.load(tmp_path / "example.npz") as shown:
        assert set(shown) == {"image", "label", "prediction_random", "prediction_ours"}
        most = case.label if len(shape) == 2 else max(case.label, key=lambda part: (part > 0).sum())
        assert np.array_equal(shown["label"], most) and shown["image"].dtype == np.float32
        assert (shown["prediction_random"] == 1).all() and (shown["prediction_ours"] == 2).all()
        assert shown["prediction_ours"].shape == shown["image"].shape == shape[-2:]
