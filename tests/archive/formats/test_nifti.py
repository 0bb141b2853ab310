"""NIfTI: every voxel keeps its value, its type and its place; whatever a file holds, the fault is one sentence."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import cifti2
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from raygenesis.archive.formats.readers import read_scan, read_scan_geometry
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from tests.support.data import HEADS, needs_heads
from tests.support.nifti import grey, nifti_bytes, write_nifti

many = settings(max_examples=60, deadline=None, derandomize=True, database=None)
INTEGERS = ["u1", "i1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", "<i8", "<u8"]
FLOATS = ["<f4", ">f4", "<f8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scans")


@pytest.fixture(autouse=True)
def _quiet_nibabel() -> Iterator[None]:
    logger = logging.getLogger("nibabel.global")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any order and direction of axes, voxel size, tilt up to 30 degrees and origin."""
    axes = np.eye(3)[list(draw(st.permutations(range(3))))] * draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    tilt = Rotation.from_rotvec(np.radians(draw(st.floats(-30, 30))) * np.array([0.6, 0.0, 0.8])).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes * draw(st.tuples(*[st.floats(0.05, 8)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return affine


def only(path: Path) -> Volume:
    (volume,) = read_scan([path])
    return volume


def indices(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))


def assert_voxels_keep_their_places(path: Path, ndim: int) -> None:
    stored = nibabel.load(path)
    volume = only(path)
    assert volume.ndim == ndim
    xyz = np.zeros((volume.voxels.size, 3), int)
    xyz[:, :ndim] = indices(volume.voxels.shape)[:, ::-1]
    places = apply_affine(volume.affine, xyz)
    before = apply_affine(np.linalg.inv(stored.affine), places)
    assert np.allclose(before, np.rint(before), atol=1e-3)
    values = np.asarray(stored.dataobj).reshape(*stored.shape, *[1] * (3 - stored.ndim))
    assert np.array_equal(volume.voxels.ravel(), values[tuple(np.rint(before).astype(int).T)])
    assert read_scan_geometry([path]) == [(volume.voxels.shape, pytest.approx(volume.spacing_mm))]


@many
@given(
    affine=affines(), shape=st.tuples(*[st.integers(2, 5)] * 3), dtype=st.sampled_from(INTEGERS + FLOATS),
    suffix=st.sampled_from([".nii", ".nii.gz"]), fourth=st.booleans(),
)  # fmt: skip
def test_a_voxel_stays_where_it_lies_in_the_world(folder, affine, shape, dtype, suffix, fourth) -> None:
    voxels = grey((*shape, 1) if fourth else shape, dtype)
    path = write_nifti(folder / f"any{suffix}", voxels, affine, big_endian=dtype.startswith(">"))
    if not fourth:
        assert_voxels_keep_their_places(path, 3)
    volume = only(path)
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.voxels.dtype == (np.dtype(dtype).newbyteorder("=") if dtype in INTEGERS else np.float32)
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    assert np.array_equal(volume.voxels.T, np.asarray(canonical.dataobj).reshape(volume.voxels.T.shape))
    assert np.allclose(volume.affine, canonical.affine)
    assert volume.spacing_mm == pytest.approx(canonical.header.get_zooms()[2::-1], rel=1e-5)


@many
@given(affine=affines(), sides=st.tuples(*[st.integers(2, 6)] * 2), third=st.booleans())
def test_an_image_of_one_slice_keeps_its_plane_whatever_it_is(folder, affine, sides, third) -> None:
    path = write_nifti(folder / "slice.nii", grey((*sides, 1) if third else sides), affine)
    assert sorted(only(path).voxels.shape) == sorted(sides)
    assert_voxels_keep_their_places(path, 2)


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -1000.0), (-1.0, 3.0), (1e-4, 0.0)])
def test_rescaling_is_kept_beside_the_stored_integers(tmp_path: Path, slope: float, intercept: float) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", grey((4, 5, 6)), scl_slope=slope, scl_inter=intercept)
    volume = only(path)
    assert volume.voxels.dtype == np.int16
    real = volume.voxels.T * volume.slope + volume.intercept
    assert np.allclose(real, nibabel.load(path).get_fdata(), rtol=1e-6)


def test_no_rescaling_is_a_slope_of_one(tmp_path: Path) -> None:
    volume = only(write_nifti(tmp_path / "a.nii", grey((3, 3, 3)), scl_slope=0, scl_inter=7))
    assert (volume.slope, volume.intercept) == (1.0, 0.0)


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_colours_are_channels_and_transparency_is_none(tmp_path: Path, names: str) -> None:
    colours = grey((4, 5, 6, len(names)), np.uint8)
    voxels = colours.view([(name, "u1") for name in names])[..., 0]
    volume = only(write_nifti(tmp_path / "a.nii", voxels))
    assert volume.num_channels == 3 and np.array_equal(volume.voxels.T, colours[..., :3])


@needs_heads
@pytest.mark.parametrize("number", [0, 60, -1])
def test_a_real_head_is_as_nibabel_turns_it(number: int) -> None:
    path = sorted(HEADS.glob("*.nii.gz"))[number]
    volume, canonical = only(path), nibabel.as_closest_canonical(nibabel.load(path))
    assert nibabel.aff2axcodes(nibabel.load(path).affine) == ("P", "S", "R")
    assert volume.voxels.dtype == np.uint8
    assert np.allclose(volume.voxels.T * volume.slope + volume.intercept, canonical.get_fdata())
    assert np.allclose(volume.affine, canonical.affine)
    assert read_scan_geometry([path]) == [(canonical.shape[::-1], pytest.approx(canonical.header.get_zooms()[::-1]))]


def gz(content: bytes) -> bytes:
    return gzip.compress(content, 1)


def with_one_nan() -> bytes:
    voxels = grey((4, 4, 4), np.float32)
    voxels[1, 2, 3] = np.nan
    return nifti_bytes(voxels)


SCAN = nifti_bytes(grey((8, 8, 8)))
SMALL = grey((4, 4, 4))
NOISE = nifti_bytes(np.random.default_rng(0).integers(0, 30000, (8, 8, 8)).astype(np.int16))
HUGE = {"dim": [3, 10_000, 10_000, 10_000, 1, 1, 1, 1]}
FLAT_AFFINE = {"sform_code": 1, "srow_x": [1, 2, 0, 0], "srow_y": [2, 4, 0, 0], "srow_z": [0, 0, 1, 0]}
LOST_AFFINE = {"sform_code": 1, "srow_x": [np.nan, 0, 0, 0]}
FAULTS = {
    "cut short, packed": (gz(NOISE)[:-300], ".nii.gz", "cut short or damaged"),
    "cut short in its header": (gz(SCAN)[:40], ".nii.gz", "cut short or damaged"),
    "cut short": (SCAN[:-1], ".nii", "cut short or damaged"),
    "damaged deflate": (gz(NOISE)[:500] + b"\x55" * 300 + gz(NOISE)[800:], ".nii.gz", "cut short or damaged"),
    "no bytes": (b"", ".nii", "not readable as NIfTI"),
    "text": (b"not a scan" * 100, ".nii", "not readable as NIfTI"),
    "text called gz": (b"not a scan" * 100, ".nii.gz", "not readable as NIfTI"),
    "NaN": (with_one_nan(), ".nii", "1 of 64 voxels are NaN or infinite"),
    "float64 beyond float32": (nifti_bytes(grey((3, 3, 3), "f8") * 1e300), ".nii", "NaN or infinite"),
    "4-D": (nifti_bytes(grey((4, 4, 4, 3))), ".nii", "choose archive.fourth_axis=split (time points) or channels"),
    "constant": (nifti_bytes(np.full((4, 4, 4), 7, np.int16)), ".nii", "every voxel is 7"),
    "10^12 voxels": (nifti_bytes(SMALL, **HUGE), ".nii", "claims 2,000,000,000,000 bytes"),
    "10^12 voxels, packed": (gz(nifti_bytes(SMALL, **HUGE)), ".nii.gz", "claims 2,000,000,000,000 bytes"),
    "1,000 times its size": (nifti_bytes(SMALL, dim=[3, 40, 40, 40, 1, 1, 1, 1]), ".nii", "claims 128,000 bytes"),
    "no voxels": (nifti_bytes(SMALL, dim=[3, 4, 0, 4, 1, 1, 1, 1]), ".nii", "shape"),
    "negative side": (nifti_bytes(SMALL, dim=[3, -4, -4, 4, 1, 1, 1, 1]), ".nii", "shape"),
    "5-D": (nifti_bytes(grey((4, 4, 2, 3, 2))), ".nii", "5 dimensions: split it into 3D files"),
    "a stack along the first axis": (nifti_bytes(grey((1, 4, 4))), ".nii", "along its first or second axis"),
    "one half of a pair": (nifti_bytes(SMALL, magic=b"ni1"), ".nii", "save it as a single .nii"),
    "complex": (nifti_bytes(grey((4, 4, 4), np.complex64)), ".nii", "not grey values"),
    "axes in one plane": (nifti_bytes(SMALL, **FLAT_AFFINE), ".nii", "affine is singular"),
    "affine of NaN": (nifti_bytes(SMALL, **LOST_AFFINE), ".nii", "affine is singular"),
    "slope of NaN": (nifti_bytes(SMALL, scl_slope=1, scl_inter=np.nan), ".nii", "intercept"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_in_one_sentence(tmp_path: Path, fault: str) -> None:
    content, suffix, words = FAULTS[fault]
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(content)
    with np.errstate(over="ignore"), pytest.raises(ScanError) as refusal:
        only(path)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 250


def test_a_surface_file_is_not_a_scan(tmp_path: Path) -> None:
    axes = cifti2.ScalarAxis(["a", "b"]), cifti2.BrainModelAxis.from_mask(np.ones((2, 2, 2), bool), affine=np.eye(4))
    path = tmp_path / "a.dscalar.nii"
    cifti2.Cifti2Image(grey((2, 8), np.float32), axes).to_filename(path)
    for fourth_axis in ("refuse", "split", "channels"):
        with pytest.raises(ScanError, match="CIFTI: values on the brain's surface and no image"):
            read_scan([path], fourth_axis)
        with pytest.raises(ScanError, match="CIFTI"):
            read_scan_geometry([path], fourth_axis)


def test_sizes_of_micrometres_and_of_metres_are_not_singular(tmp_path: Path) -> None:
    for size in (1e-4, 1e4):
        path = write_nifti(tmp_path / f"{size}.nii", grey((3, 4, 5)), np.diag([size, size, size, 1]))
        assert only(path).spacing_mm == pytest.approx((size,) * 3, rel=1e-6)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6), st.sampled_from([2, 3]))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_damage_to_a_header_is_read_or_refused(folder, damage, ndim) -> None:
    content = bytearray(nifti_bytes(grey((4, 5, 6) if ndim == 3 else (4, 5, 1))))
    for place, byte in damage:
        content[place] = byte
    path = folder / "damaged.nii"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        volume = only(path)
    except ScanError:
        return
    assert np.isfinite(volume.voxels).all() and np.isfinite(volume.affine).all()
    assert all(0 < step < np.inf for step in volume.spacing_mm)
