"""Examples as a network takes them: where each voxel comes from, its values, and what cannot be a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import io_orientation, ornt_transform
from PIL import Image
from scipy.ndimage import map_coordinates

from raygenesis.archive.coarse import read_coarse
from raygenesis.archive.intake.preparation import prepare
from raygenesis.archive.intake.take_in import describe
from raygenesis.archive.store import write_volume
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from raygenesis.settings import ArchiveSettings, IntensitySettings
from raygenesis.transfer.cases import Case, form_of, read_cases
from raygenesis.transfer.examples import Example, ImageFile, LabelFile, Problem, Region, Target, check_aligned
from raygenesis.transfer.predictions import on_grid
from tests.support.cases import InMemory, form, write_nifti
from tests.support.data import HIPPOCAMPI, needs_hippocampi


def ball(shape: tuple[int, ...] = (12, 10, 8)) -> tuple[np.ndarray, np.ndarray]:
    """An off-centre bright box, 80 on 20, and its label; x y z."""
    label = np.zeros(shape, np.uint8)
    label[2:8, 4:8, 2:4] = 1
    return np.where(label, 80, 20).astype(np.int16), label


def write_pair(folder: Path, image: np.ndarray, label: np.ndarray, affine: np.ndarray | None = None) -> Example:
    write_nifti(folder / "images" / "a.nii.gz", image, affine)
    write_nifti(folder / "labels" / "a.nii.gz", label, affine)
    return Example(
        "a.nii.gz", "a", ImageFile((folder / "images" / "a.nii.gz",)), LabelFile(folder / "labels" / "a.nii.gz")
    )


def case_of(example: Example, **changed: Any) -> Case:
    (found,) = read_cases([example], form(**changed))
    assert isinstance(found, Case), found
    return found


def reason_of(example: Example, **changed: Any) -> str:
    (found,) = read_cases([example], form(**changed))
    assert isinstance(found, Problem) and found.name == example.name and "\n" not in found.reason
    return found.reason


def in_memory(
    voxels: np.ndarray, label: np.ndarray | None = None, affine: np.ndarray | None = None,
    region: Region | None = None, value: Any = None,
) -> Example:  # fmt: skip
    """Voxels z y x."""
    volume = Volume(voxels, np.eye(4) if affine is None else affine, ndim=voxels.ndim)
    return Example("a", "a", InMemory(volume), None if label is None else InMemory(label), value, region)


def test_a_case_keeps_axes_z_y_x_and_its_values(tmp_path: Path) -> None:
    image, label = ball()
    case = case_of(write_pair(tmp_path, image, label))
    assert case.image.shape == case.label.shape == (8, 10, 12)
    assert case.image.dtype == np.float16 and case.label.dtype == np.uint8 and case.value is None
    assert np.array_equal(case.label, label.T)
    assert np.allclose(case.image, image.T / 100, atol=1e-3)


def test_any_orientation_gives_the_same_case(tmp_path: Path) -> None:
    image, label = ball()
    expected = case_of(write_pair(tmp_path / "ras", image, label))
    turned = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    turn = ornt_transform(io_orientation(np.eye(4)), io_orientation(turned))
    pair = [nibabel.Nifti1Image(array.astype(np.int16), np.eye(4)).as_reoriented(turn) for array in (image, label)]
    example = write_pair(tmp_path / "turned", *(np.asarray(one.dataobj) for one in pair), affine=pair[0].affine)
    case = case_of(example)
    assert np.array_equal(case.label, expected.label) and np.array_equal(case.image, expected.image)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (2.0, 2.0, 2.0), (1.5, 0.7, 1.0)])
def test_resampling_keeps_the_extent_and_label_on_image(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    label = np.zeros((24, 24, 24), np.uint8)
    label[6:18, 4:12, 8:20] = 1
    image = np.where(label, 100, 0).astype(np.int16)
    case = case_of(write_pair(tmp_path, image, label, np.diag([1.0, 1, 2, 1])), spacing_mm=spacing)
    assert case.image.shape == tuple(round(size / step) for size, step in zip((48, 24, 24), spacing, strict=True))
    assert case.label.mean() == pytest.approx(label.mean(), rel=0.12)
    assert np.mean((case.image > 0.5) == (case.label == 1)) > 0.96


def test_small_scans_are_padded_with_background_on_both_sides(tmp_path: Path) -> None:
    image, label = ball()
    case = case_of(write_pair(tmp_path, image, label), input_shape=(16, 8, 17))
    assert case.image.shape == (16, 10, 17)
    assert case.label.sum() == label.sum() and np.array_equal(case.label[4:12, :, 2:14], label.T)
    assert np.allclose(case.image[4:12, :, 2:14], image.T / 100, atol=1e-3)
    case.image[4:12, :, 2:14] = 0
    assert case.image.max() == 0 and case.grid.within == (slice(4, 12), slice(0, 10), slice(2, 14))


def test_without_a_window_the_scans_own_percentiles_count() -> None:
    voxels = np.random.default_rng(0).normal(500, 100, (8, 10, 12)).astype(np.float32)
    case = case_of(in_memory(voxels, np.ones(voxels.shape, np.uint8)), intensity=IntensitySettings())
    low, high = np.percentile(voxels, (0.5, 99.5))
    assert np.allclose(case.image, np.clip((voxels - low) / (high - low), 0, 1), atol=1e-3)


def test_a_window_is_of_rescaled_values() -> None:
    voxels = np.arange(512, dtype=np.int16).reshape(8, 8, 8)
    example = Example("a", "a", InMemory(Volume(voxels, np.eye(4), slope=2.0, intercept=-100.0)), value=1)
    case = case_of(example, is_segmentation=False, spacing_mm=None, intensity=IntensitySettings(window=(0, 400)))
    assert np.allclose(case.image, np.clip((2.0 * voxels - 100) / 400, 0, 1), atol=1e-3)


def test_a_targets_own_window_counts_more_than_the_settings() -> None:
    target = Target("segmentation", 3, ("liver",), (), window=(-1000.0, 1000.0), keeps_empty=True)
    found = form_of(target, [8, 8, 8], None, IntensitySettings())
    assert found.intensity.window == (-1000, 1000) and found.num_classes == 2 and found.keeps_empty
    assert form_of(target, [8, 8, 8], None, IntensitySettings(window=(0, 1))).intensity.window == (-1000, 1000)
    assert form_of(Target("regression", 3, (), ()), [8, 8, 8], None, IntensitySettings()).num_classes is None


def test_what_is_not_segmented_fills_the_input_whole() -> None:
    voxels = np.random.default_rng(0).random((6, 20, 9)).astype(np.float32) * 100
    case = case_of(in_memory(voxels, value=3), is_segmentation=False, spacing_mm=None, input_shape=(8, 16, 8))
    assert case.image.shape == (8, 16, 8) and case.value == 3 and case.label is None and case.grid is None
    assert case.image.astype(float).mean() == pytest.approx(voxels.mean() / 100, abs=0.02)


SIDES = (20, 24, 28)
BOXES = st.tuples(*[st.tuples(st.floats(0.2, 0.8), st.floats(0.05, 0.6)) for _ in SIDES])


def body_in_air() -> tuple[np.ndarray, np.ndarray]:
    """A bright body with structure in it, off the centre of dark air, and a label in the body; z y x."""
    voxels = np.random.default_rng(0).integers(0, 20, (40, 44, 48)).astype(np.int16)
    voxels[10:30, 14:34, 20:44] += np.random.default_rng(1).integers(400, 900, (20, 20, 24)).astype(np.int16)
    label = np.zeros(voxels.shape, np.uint8)
    label[16:24, 18:26, 26:36] = 1
    return voxels, label


PREPARATIONS = [
    {"crop_to_body": True},
    {"spacing_mm": (2.0, 2.0, 2.0)},
    {"crop_to_body": True, "spacing_mm": (2, 1, 3)},
]


@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_a_whole_image_is_shown_as_the_archive_shows_the_same_scan(tmp_path: Path, preparation: Any) -> None:
    archive = ArchiveSettings(**preparation)
    voxels, _ = body_in_air()
    stored = prepare(Volume(voxels, np.eye(4)), archive)
    record = describe(stored, "0", 1, coarse_size=64)
    write_volume(tmp_path / "0.ome.zarr", stored, record, archive)
    intensity = IntensitySettings()
    expected = read_coarse(tmp_path, record, (16, 16, 16), intensity)
    target = Target("classification", 3, ("a", "b"), ())
    changed = form_of(target, (16, 16, 16), None, intensity, archive)
    plain = form_of(target, (16, 16, 16), None, intensity)
    (case,), (other,) = (read_cases([in_memory(voxels, value=1)], chosen) for chosen in (changed, plain))
    np.testing.assert_allclose(case.image, expected, atol=1e-3)
    assert np.abs(other.image - case.image).max() > 0.1


@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_labels_lie_on_a_prepared_image_and_predictions_on_the_scan(tmp_path: Path, preparation: Any) -> None:
    voxels, label = body_in_air()
    affine = np.array([[0, 0, 1.0, 5], [1.5, 0, 0, -7], [0, 2.0, 0, 9], [0, 0, 0, 1]])
    scan = Volume(voxels, affine)
    (case,) = read_cases(
        [Example("a", "a", InMemory(scan), InMemory(label))],
        replace(form(spacing_mm=scan.spacing_mm), preparation=ArchiveSettings(**preparation)),
    )
    assert case.label.shape == case.image.shape
    inside, outside = case.image[case.label == 1].astype(float), case.image[case.label == 0].astype(float)
    assert inside.min() > 0.25 and outside.min() < 0.05  # the label is where the body is
    found = on_grid(case.label[case.grid.within], case.grid)
    assert found.shape == label.shape
    if "spacing_mm" in preparation:
        overlap = 2 * (found & label).sum() / (found.sum() + label.sum())
        assert overlap > 0.85
    else:
        assert np.array_equal(found, label)
    everything = on_grid(np.ones_like(case.label[case.grid.within]), case.grid)
    assert everything[10:30, 14:34, 20:44].all() and everything.all() == ("crop_to_body" not in preparation)


def placed(box: Any, affine: np.ndarray) -> tuple[Region, list[np.ndarray]]:
    """A region, from its middle and extent as shares of each side z y x; and where its 8 voxels lie, as indices."""
    middle = np.array([share * side - 0.5 for (share, _), side in zip(box, SIDES, strict=True)])
    extent = np.array([share * side for (_, share), side in zip(box, SIDES, strict=True)])
    centre = affine @ [*middle[::-1], 1]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    region = Region(tuple(centre[:3]), tuple(extent * spacing))
    shares = (np.arange(8) + 0.5) / 8 - 0.5
    return region, [at + shares * length for at, length in zip(middle, extent, strict=True)]


def oblique() -> np.ndarray:
    """Steps x y z of 0.7, 0.8 and 2.5 mm, a little turned."""
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 0.8, 2.5])
    affine[:3, 3] = -50, 20, 300
    return affine


@given(BOXES, st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_a_region_is_resampled_as_scipy_does_at_that_place(box: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    voxels = generator.random(SIDES).astype(np.float32) * 100
    label = generator.integers(0, 3, SIDES).astype(np.uint8)
    region, places = placed(box, oblique())
    grid = np.meshgrid(*places, indexing="ij")
    case = case_of(in_memory(voxels, label, oblique(), region), spacing_mm=None)
    if all(length <= 8 for length in (np.array(region.extent_mm) / (2.5, 0.8, 0.7))):
        expected = map_coordinates(voxels / 100, grid, order=1, mode="nearest")
        assert np.allclose(case.image, expected, atol=2e-3)
    near_a_border = any(np.abs(place - 0.5 - np.rint(place - 0.5)).min() < 1e-6 for place in places)
    if not near_a_border:
        assert np.array_equal(case.label, map_coordinates(label, grid, order=0, mode="nearest"))


@given(BOXES)
@settings(deadline=None, max_examples=40)
def test_a_ramp_stays_a_ramp_however_coarse(box: Any) -> None:
    z, y, x = np.indices(SIDES).astype(np.float32)
    region, (at_z, at_y, at_x) = placed([(0.5, share) for _, share in box], oblique())
    expected = np.add.outer(np.add.outer(at_z, at_y), at_x)
    case = case_of(in_memory(z + y + x, None, oblique(), region, 1), spacing_mm=None, is_segmentation=False)
    # A triangle of no whole width, taken at whole voxels, has its middle up to 0.09 voxels beside its own on each axis.
    assert np.allclose(case.image, expected / 100, atol=4e-3)


def test_a_region_lies_where_simpleitk_finds_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = SimpleITK.GetImageFromArray(generator.integers(0, 100, SIDES).astype(np.int16))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-120.0, 95.5, -310.0))
    image.SetDirection((-1, 0, 0, 0, 0, 1, 0, 1, 0))  # x turned round, y and z exchanged
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    middle = (11.3, 9.6, 12.2)
    place = np.array(image.TransformContinuousIndexToPhysicalPoint(middle))
    centre = place * (-1, -1, 1)  # to right and anterior
    extent = (3.0, 4.0, 5.0)
    example = Example("a", "a", ImageFile((tmp_path / "a.mha",)), value=1, region=Region(tuple(centre), extent))
    case = case_of(example, is_segmentation=False, spacing_mm=None)
    # Each output voxel at its own place in the patient: axes towards superior, anterior and right.
    shares = (np.arange(8) + 0.5) / 8 - 0.5
    at = np.stack(np.meshgrid(*(shares * length for length in extent), indexing="ij"), -1)[..., ::-1] + centre
    sample = SimpleITK.Cast(image, SimpleITK.sitkFloat32).EvaluateAtPhysicalPoint
    expected = [sample((point * (-1, -1, 1)).tolist(), SimpleITK.sitkLinear) for point in at.reshape(-1, 3)]
    assert np.allclose(case.image.ravel(), np.array(expected) / 100, atol=2e-3)


def test_a_place_outside_of_the_image_is_said_with_its_millimetres() -> None:
    region = Region((5.0, 5.0, -20.0), (4.0, 4.0, 4.0))
    said = reason_of(in_memory(np.arange(1000.0).reshape(10, 10, 10), None, region=region), is_segmentation=False)
    assert said == "its place, 5.0 5.0 -20.0 mm (RAS), lies outside of the image"


def test_examples_of_one_image_decode_it_once_and_fail_alone() -> None:
    class Counted(InMemory):
        reads = 0

        def read(self, image: Volume | None = None) -> Any:
            Counted.reads += 1
            return self.content

    image = Counted(Volume(np.arange(1000.0).reshape(10, 10, 10), np.eye(4)))
    middles = ((5.0, 5.0, 5.0), (99.0, 0.0, 0.0), (4.0, 4.0, 4.0))
    examples = [
        Example(str(n), "a", image, value=n, region=Region(at, (4.0, 4.0, 4.0))) for n, at in enumerate(middles)
    ]
    found = read_cases(examples, form(is_segmentation=False, spacing_mm=None))
    assert [type(each) for each in found] == [Case, Problem, Case] and Counted.reads == 1
    assert [each.name for each in found] == ["0", "1", "2"] and found[2].value == 2


def test_two_dimensional_cases(tmp_path: Path) -> None:
    image, label = (array[:, :, 2:3] for array in ball())
    example = write_pair(tmp_path, image, label)
    case = case_of(example, input_shape=(8, 16), spacing_mm=(0.5, 1.0))
    assert case.image.shape == (20, 16) and set(np.unique(case.label)) == {0, 1}
    assert reason_of(example) == "it is a single slice, and the target's images are to be 3D"
    volume = in_memory(np.arange(1000.0).reshape(10, 10, 10), value=1)
    assert reason_of(volume, input_shape=(8, 8)) == "it is a volume, and the target's images are to be 2D"


def test_an_empty_mask_is_a_problem_unless_nothing_to_find_is_an_answer(tmp_path: Path) -> None:
    example = write_pair(tmp_path, ball()[0], np.zeros((12, 10, 8), np.uint8))
    assert reason_of(example) == "an empty mask: none of its voxels are labelled"
    assert not case_of(example, keeps_empty=True).label.any()


def test_labels_that_resampling_loses_are_not_called_missing() -> None:
    """A lesion of one voxel, between the voxels that are kept: also where a mask may be empty, this one is not."""
    voxels, label = np.arange(4096.0).reshape(16, 16, 16), np.zeros((16, 16, 16), np.uint8)
    label[5, 5, 5] = 1
    whole = in_memory(voxels, label)
    lost = "all of its labels are lost at finetune.spacing_mm=[4.0, 4.0, 4.001]: give a finer one"
    for keeps_empty in (False, True):
        assert reason_of(whole, spacing_mm=(4.0, 4.0, 4.0008), keeps_empty=keeps_empty, input_shape=(4, 4, 4)) == lost
    assert case_of(whole).label.sum() == 1
    elsewhere = in_memory(voxels, label, None, Region((12.0, 12.0, 12.0), (4.0, 4.0, 4.0)))
    said = "its region shows none of its labels at finetune.input_shape=[8, 8, 8]"
    assert reason_of(elsewhere, spacing_mm=None) == said


def test_a_class_beyond_those_named_is_said(tmp_path: Path) -> None:
    example = write_pair(tmp_path, ball()[0], ball()[1] * 3)
    assert reason_of(example, num_classes=3) == "the unknown class 3: known are 1 to 2"
    assert case_of(example, num_classes=4).label.max() == 3


@pytest.mark.parametrize("value", [0.5, -1, 300])
def test_what_is_no_label_map_is_named(tmp_path: Path, value: float) -> None:
    example = write_pair(tmp_path, ball()[0], np.where(ball()[1], value, 0).astype(np.float32))
    assert reason_of(example).startswith("a.nii.gz holds other values than whole numbers from 0")


def test_values_of_a_file_become_classes(tmp_path: Path) -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    label[0], label[1], label[2] = 1, 2, 4
    volume = Volume(label, np.eye(4))
    named = LabelFile(tmp_path / "a.nii", ((0, 0), (1, 1), (2, 0), (4, 1)))
    assert named.classes_of(volume)[:, 0, 0].tolist() == [1, 0, 1, 0]
    with pytest.raises(ScanError, match=r"a\.nii holds the values \[4\], and only \[0, 1, 2\] are known"):
        LabelFile(tmp_path / "a.nii", ((0, 0), (1, 1), (2, 0))).classes_of(volume)
    assert LabelFile(tmp_path / "a.nii").classes_of(Volume(label, np.eye(4), slope=2.0)).max() == 8


def test_files_that_do_not_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    image, label = ball()
    example = write_pair(tmp_path, image, label)
    write_nifti(example.label.path, label[:-1])
    assert "a.nii.gz has 8×10×11 voxels and its image 8×10×12: give a label" in reason_of(example)
    write_nifti(example.label.path, label, np.diag([-1.0, -1, 1, 1]))  # of another origin and orientation
    assert "lies up to 11.0 mm beside its image" in reason_of(example)
    moved = np.eye(4)
    moved[2, 3] = 0.4
    write_nifti(example.label.path, label, moved)
    assert np.array_equal(case_of(example).label, label.T)


@given(st.lists(st.floats(-0.4, 0.4), min_size=12, max_size=12))
def test_aligned_means_every_voxel_within_half_a_voxel(moves: Sequence[float]) -> None:
    shape = (6, 8, 10)
    affine = np.eye(4)
    affine[:3] += np.array(moves).reshape(3, 4) / 6
    voxels = Volume(np.zeros(shape), np.eye(4))
    places = np.stack([*np.indices([side + 1 for side in shape])[::-1], np.ones([side + 1 for side in shape])])
    apart = np.abs(np.tensordot(affine - np.eye(4), places, 1))[:3].max()
    if abs(apart - 0.5) < 1e-6:
        return
    try:
        check_aligned(Path("a"), Volume(np.zeros(shape), affine), voxels)
        refused = False
    except ScanError:
        refused = True
    assert refused == (apart > 0.5)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_file_that_cannot_be_read_says_so_and_of_a_label_map_its_name(tmp_path: Path, kind: str) -> None:
    example = write_pair(tmp_path, *ball())
    path = tmp_path / f"{kind}s" / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    said = reason_of(example)
    assert "cut short or damaged" in said and said.startswith("a.nii.gz: ") == (kind == "label")
    path.unlink()
    missing = {
        "image": "cannot be read (No such file or directory)",
        "label": "a.nii.gz: cannot be read (No such file or directory)",
    }
    assert reason_of(example) == missing[kind]


def test_colours_are_refused(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    example = Example("a", "a", ImageFile((tmp_path / "a.png",)), value=1)
    said = reason_of(example, is_segmentation=False, input_shape=(8, 8))
    assert said == "a.png holds 3 images: expected one, of grey values"


@needs_hippocampi
def test_a_real_hippocampus_is_a_case_with_three_classes() -> None:
    name = min(path.name for path in (HIPPOCAMPI / "images").glob("*.nii.gz"))
    example = Example(
        name, name, ImageFile((HIPPOCAMPI / "images" / name,)), LabelFile(HIPPOCAMPI / "labels" / name)
    )  # fmt: skip
    case = case_of(example, input_shape=(32, 32, 32), intensity=IntensitySettings())
    assert set(np.unique(case.label)) == {0, 1, 2} and min(case.image.shape) >= 32
    assert 0.02 < (case.label > 0).mean() < 0.3 and 0 <= case.image.min() < case.image.max() <= 1
