"""The store: OME-Zarr that other software opens, block means above it, whole volumes or none."""

from __future__ import annotations

import json
import resource
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.archive.store import (
    LevelRegions,
    halve,
    level_factors,
    open_level,
    read_array,
    read_levels,
    read_record,
    read_region,
    write_volume,
)
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.settings import ArchiveSettings
from tests.support.nifti import grey

many = settings(max_examples=100, deadline=None, derandomize=True, database=None)

SMALL = ArchiveSettings(coarse_size=16, chunk=16, shard=32)
SHAPE = (37, 50, 70)
AFFINE = np.array([[0.5, 0, 0, -10], [0, 0.7, 0, 5], [0, 0, 2.5, 40], [0, 0, 0, 1.0]])
EVERYTHING = (slice(None),) * 3
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def volume() -> Volume:
    return Volume(np.random.default_rng(0).integers(-1000, 3000, SHAPE).astype(np.int16), AFFINE, 2.0, -5.0)


@pytest.fixture(scope="module")
def stored(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes") / "abc.ome.zarr"
    write_volume(folder, volume, {"volume_id": "abc", "low": 1.5}, SMALL)
    return folder


@pytest.fixture
def copy(volume: Volume, tmp_path: Path) -> Path:
    """A stored volume to damage."""
    folder = tmp_path / "abc.ome.zarr"
    write_volume(folder, volume, {"volume_id": "abc"}, SMALL)
    return folder


def block_means(voxels: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Means over blocks of one halving, with the last voxel of an odd side standing in for the one that is missing."""
    missing = [(0, -side % n) for side, n in zip(voxels.shape, factors, strict=True)]
    padded = np.pad(voxels.astype(np.float64), missing, "edge")
    means = np.zeros([side // n for side, n in zip(padded.shape, factors, strict=True)])
    for offset in np.ndindex(*factors):
        means += padded[tuple(slice(start, None, n) for start, n in zip(offset, factors, strict=True))]
    means /= np.prod(factors)
    return np.rint(means) if voxels.dtype.kind in "iu" else means


@many
@given(st.lists(st.integers(1, 3000), min_size=2, max_size=3), st.integers(1, 300))
def test_a_pyramid_ends_where_no_side_is_long_and_halves_only_long_sides(shape, coarse_size) -> None:
    factors = level_factors(tuple(shape), coarse_size)
    assert factors[0] == (1,) * len(shape)
    sides = [[-(-side // n) for side, n in zip(shape, level, strict=True)] for level in factors]
    assert max(sides[-1]) <= coarse_size and all(max(level) > coarse_size for level in sides[:-1])
    for fine, coarse, there in zip(factors, factors[1:], sides, strict=False):
        assert list(coarse) == [n * (2 if side > coarse_size else 1) for n, side in zip(fine, there, strict=True)]


def test_thin_stacks_become_isotropic_before_they_become_thinner() -> None:
    assert level_factors((30, 512, 512), 64) == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8)]
    assert level_factors((300, 512, 512), 64)[-1] == (8, 8, 8)
    assert level_factors((64, 64), 64) == [(1, 1)]


@many
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3), steps=st.tuples(*[st.sampled_from([1, 2])] * 3),
    dtype=st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "f4"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_coarser_level_is_the_block_mean_in_the_same_type(shape, steps, dtype, seed) -> None:
    generator = np.random.default_rng(seed)
    info = np.iinfo(dtype) if dtype != "f4" else None
    voxels = generator.integers(info.min, info.max, shape, dtype, endpoint=True) if info else generator.random(shape)
    voxels = voxels.astype(dtype)
    coarse = halve(voxels, steps)
    assert coarse.dtype == voxels.dtype
    assert np.allclose(coarse, block_means(voxels, steps), rtol=1e-6, atol=0 if info else 1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_the_brightest_value_of_a_type_stays_it(dtype) -> None:
    brightest = np.full((4, 4, 4), np.iinfo(dtype).max, dtype)
    assert (halve(brightest, (2, 2, 2)) == np.iinfo(dtype).max).all()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4"])
def test_zarr_python_and_tensorstore_read_the_same_of_every_type(tmp_path: Path, dtype: str) -> None:
    voxels = grey((20, 33, 18), dtype)
    write_volume(tmp_path / "a.ome.zarr", Volume(voxels, np.eye(4)), {}, SMALL)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r", zarr_format=3)
    assert group["0"].dtype == voxels.dtype == read_region(tmp_path / "a.ome.zarr", 0, EVERYTHING).dtype
    for level in ("0", "1", "2"):
        assert np.array_equal(group[level][...], read_region(tmp_path / "a.ome.zarr", int(level), EVERYTHING))
    assert np.array_equal(group["0"][...], voxels)


# Volumes that version 0.1 wrote with its own codec, `archive` chunk=4 shard=8 coarse_size=12, and what is in them.
OLD = {
    "scan": ((12, 10, 17), 3, "int16"),
    "radiograph": ((21, 14), 2, "uint8"),
    "channels": ((2, 6, 7, 13), 3, "float32"),
}


@pytest.mark.parametrize("name", OLD)
def test_a_volume_of_an_old_archive_opens_and_has_its_voxels(name: str) -> None:
    shape, ndim, dtype = OLD[name]
    folder = DATA / f"{name}.ome.zarr"
    places = zip((11, 7, 5, 3)[-len(shape) :], np.indices(shape), strict=True)
    voxels = (sum(step * place for step, place in places) % 97 - (0 if dtype == "uint8" else 50)).astype(dtype)
    factors = level_factors(shape[-ndim:], 12)
    assert len(factors) == 2 and read_record(folder)["volume_id"] == name
    steps = (1,) * (len(shape) - ndim) + factors[1]
    for level, expected in enumerate([voxels, block_means(voxels, steps).astype(dtype)]):
        array = open_level(folder, level)
        assert array.dtype == np.dtype(dtype) and tuple(array.shape) == expected.shape
        assert np.array_equal(read_array(array, [None], "it")[0], expected)
    everything = (slice(None),) * ndim
    for channel in range(shape[0] if len(shape) > ndim else 1):
        expected = voxels[channel] if len(shape) > ndim else voxels
        assert np.array_equal(read_region(folder, 0, everything, channel), expected)
        assert np.array_equal(read_region(folder, 0, (slice(3, 6),) * ndim, channel), expected[(slice(3, 6),) * ndim])


def test_every_level_is_the_block_mean_of_the_one_below(stored: Path, volume: Volume) -> None:
    factors, voxels = level_factors(SHAPE, 16), volume.voxels
    assert len(factors) == 4 and not (stored / "4").exists()
    for level, (fine, coarse) in enumerate(pairwise(factors), 1):
        voxels = block_means(voxels, tuple(np.floor_divide(coarse, fine))).astype(np.int16)
        assert np.array_equal(read_region(stored, level, EVERYTHING), voxels)


@many
@given(st.data())
def test_a_region_is_the_slice_of_the_whole(stored, volume, data) -> None:
    corners = [sorted(data.draw(st.tuples(st.integers(0, side - 1), st.integers(1, side)))) for side in SHAPE]
    region = tuple(slice(low, max(high, low + 1)) for low, high in corners)
    assert np.array_equal(read_region(stored, 0, region), volume.voxels[region])


def test_many_levels_are_read_together_and_a_damaged_one_is_told_in_its_place(
    stored: Path, copy: Path, volume: Volume, tmp_path: Path
) -> None:
    (copy / "1" / "c.0.0.0").unlink()
    regions = [EVERYTHING, (slice(3, 30), slice(0, 1), slice(69, 70))]
    asked = [LevelRegions(folder, level, regions) for folder in (stored, copy) for level in (0, 1)]
    asked = [LevelRegions(tmp_path / "none", 0, regions), *asked * 9]  # more than are opened at once
    missing, *found = read_levels(asked)
    assert str(missing) == "none level 0 cannot be opened (its zarr.json is missing)"
    for number, voxels in enumerate(found):
        if number % 4 == 3:
            assert str(voxels) == "abc.ome.zarr level 1 is damaged (shard c.0.0.0 is missing, or a chunk of it)"
        elif number % 4 in (0, 2):
            assert all(
                np.array_equal(part, volume.voxels[region]) for part, region in zip(voxels, regions, strict=True)
            )
        else:
            assert [part.shape for part in voxels] == [(19, 25, 35), (16, 1, 0)]


def test_metadata_are_ome_zarr_0_5(stored: Path) -> None:
    group = json.loads((stored / "zarr.json").read_text())
    assert group["zarr_format"] == 3 and group["node_type"] == "group"
    assert group["attributes"]["ome"]["version"] == "0.5"
    (multiscale,) = group["attributes"]["ome"]["multiscales"]
    ways = {"z": "inferior-to-superior", "y": "posterior-to-anterior", "x": "left-to-right"}
    assert multiscale["axes"] == [
        {"name": name, "type": "space", "unit": "millimeter", "orientation": {"type": "anatomical", "value": way}}
        for name, way in ways.items()
    ]
    assert [dataset["path"] for dataset in multiscale["datasets"]] == ["0", "1", "2", "3"]
    for dataset in multiscale["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        assert (scale["type"], translation["type"]) == ("scale", "translation")
        assert len(scale["scale"]) == len(translation["translation"]) == 3
    first = multiscale["datasets"][0]["coordinateTransformations"]
    assert first[0]["scale"] == pytest.approx([2.5, 0.7, 0.5]) and first[1]["translation"] == [0, 0, 0]


def test_a_coarse_voxel_lies_in_the_middle_of_its_fine_ones(stored: Path) -> None:
    (multiscale,) = json.loads((stored / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    for dataset, factors in zip(multiscale["datasets"], level_factors(SHAPE, 16), strict=True):
        scale, translation = (np.array(t[t["type"]]) for t in dataset["coordinateTransformations"])
        for number in (0, 3):
            fine = [(number * n + np.arange(n)).mean() for n in factors]
            assert np.allclose(scale * number + translation, np.array(fine) * [2.5, 0.7, 0.5])


def test_arrays_are_sharded_lz4_with_named_axes(stored: Path) -> None:
    array = json.loads((stored / "0" / "zarr.json").read_text())
    (sharding,) = array["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [32, 32, 32]
    assert sharding["configuration"]["chunk_shape"] == [16, 16, 16]
    _, blosc, checksum = sharding["configuration"]["codecs"]
    assert checksum["name"] == "crc32c"
    assert (blosc["name"], blosc["configuration"]["cname"]) == ("blosc", "lz4")
    assert blosc["configuration"]["shuffle"] == "shuffle"
    assert array["dimension_names"] == ["z", "y", "x"] and array["data_type"] == "int16"


def test_a_radiograph_has_two_axes(tmp_path: Path) -> None:
    image = Volume(grey((40, 30), np.uint8), np.diag([0.2, 0.3, 1, 1]), ndim=2)
    write_volume(tmp_path / "a.ome.zarr", image, {}, SMALL)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    (multiscale,) = group.attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["y", "x"]
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] == pytest.approx([0.3, 0.2])
    assert np.array_equal(read_region(tmp_path / "a.ome.zarr", 0, (slice(3, 9), slice(None))), image.voxels[3:9])


@pytest.mark.parametrize("ndim", [2, 3])
def test_channels_come_first_each_with_a_pyramid_of_its_own(tmp_path: Path, ndim: int) -> None:
    shape = (20, 33, 18)[-ndim:]
    voxels = np.stack([grey(shape, seed=n) for n in range(3)])
    folder = tmp_path / "a.ome.zarr"
    write_volume(folder, Volume(voxels, np.diag([0.5, 0.7, 2.5, 1]), ndim=ndim), {}, SMALL)
    group = zarr.open_group(folder, mode="r", zarr_format=3)
    (multiscale,) = group.attrs["ome"]["multiscales"]
    assert multiscale["axes"][0] == {"name": "c", "type": "channel"} and len(multiscale["axes"]) == ndim + 1
    for dataset, factors in zip(multiscale["datasets"], level_factors(shape, 16), strict=True):
        scale, translation = dataset["coordinateTransformations"]
        assert scale["scale"] == pytest.approx([1, *np.array([2.5, 0.7, 0.5])[-ndim:] * factors])
        assert len(translation["translation"]) == ndim + 1 and translation["translation"][0] == 0
    assert group["0"].metadata.dimension_names == ("c", *"zyx"[-ndim:])
    assert np.array_equal(group["0"][...], voxels)
    steps = tuple(2 if side > 16 else 1 for side in shape)
    for channel in range(3):
        whole = (slice(None),) * ndim
        assert np.array_equal(read_region(folder, 0, whole, channel), voxels[channel])
        assert np.array_equal(read_region(folder, 1, whole, channel), block_means(voxels[channel], steps))
    assert np.array_equal(read_region(folder, 0, (slice(3, 9),) * ndim), voxels[(0, *(slice(3, 9),) * ndim)])


def test_the_record_says_what_was_written_and_how_much(stored: Path) -> None:
    arrays = sum(file.stat().st_size for file in stored.rglob("*") if file.is_file() and file.parent != stored)
    assert read_record(stored) == {"volume_id": "abc", "low": 1.5, "stored_bytes": arrays}


def test_the_same_volume_is_the_same_bytes(stored: Path, volume: Volume, tmp_path: Path) -> None:
    write_volume(tmp_path / "abc.ome.zarr", volume, {"volume_id": "abc", "low": 1.5}, SMALL)
    assert contents(tmp_path / "abc.ome.zarr") == contents(stored)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("damage", [None, b"", b"{", b"\xff\xfe", b"[]", b'{"attributes": {}}', b'{"attributes": []}'])
def test_a_folder_without_its_record_is_no_volume_and_is_made_anew(copy: Path, volume: Volume, damage) -> None:
    whole = contents(copy)
    (copy / "zarr.json").unlink()
    (copy / "0" / "c.0.0.0").write_bytes(b"half")
    if damage is not None:
        (copy / "zarr.json").write_bytes(damage)
    assert read_record(copy) is None
    write_volume(copy, volume, {"volume_id": "abc"}, SMALL)
    assert contents(copy) == whole


def test_copies_of_one_scan_stored_at_the_same_time_leave_one_whole_volume(volume: Volume, tmp_path: Path) -> None:
    for attempt in range(3):
        folder = tmp_path / f"{attempt}.ome.zarr"
        with ThreadPoolExecutor(4) as pool:
            sizes = {*pool.map(lambda _, to=folder: write_volume(to, volume, {}, SMALL), range(4))}
        assert len(sizes) == 1
        assert np.array_equal(read_region(folder, 0, EVERYTHING), volume.voxels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.ome.zarr", "1.ome.zarr", "2.ome.zarr"]


def test_nothing_is_left_of_a_volume_that_cannot_be_written(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WorkspaceError, match=r"cannot be written: Not a directory$"):
        write_volume(tmp_path / "file" / "a.ome.zarr", volume, {}, SMALL)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # a disk as good as full
    try:
        with pytest.raises(WorkspaceError, match=r"a\.ome\.zarr cannot be written: File too large$"):
            write_volume(tmp_path / "a.ome.zarr", volume, {}, SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_chunk_cut_short_is_said_and_the_others_still_read(copy: Path, volume: Volume, length: int) -> None:
    chunk = copy / "0" / "c.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:length])
    with pytest.raises(ScanError, match=r"abc\.ome\.zarr level 0 is damaged") as fault:
        read_region(copy, 0, EVERYTHING)
    assert "\n" not in str(fault.value) and "tensorstore_spec" not in str(fault.value)
    beyond = (slice(32, None),) * 3
    assert np.array_equal(read_region(copy, 0, beyond), volume.voxels[beyond])
    assert read_region(copy, 1, EVERYTHING).shape == (19, 25, 35)


def test_one_flipped_bit_of_a_chunk_is_noticed(copy: Path) -> None:
    chunk = copy / "0" / "c.0.0.0"
    content = bytearray(chunk.read_bytes())
    for place in range(10, len(content) // 2, 997):
        content[place] ^= 1
        chunk.write_bytes(content)
        with pytest.raises(ScanError, match=r"abc\.ome\.zarr level 0 is damaged"):
            read_region(copy, 0, (slice(0, 32),) * 3)
        content[place] ^= 1


def test_a_level_that_is_missing_or_damaged_is_said(copy: Path) -> None:
    (copy / "0" / "zarr.json").write_text("{")
    for level in (0, 9):
        with pytest.raises(ScanError, match=f"level {level} cannot be opened") as fault:
            open_level(copy, level)
        assert "tensorstore_spec" not in str(fault.value)
