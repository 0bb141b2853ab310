"""Shards: what is written is read back by anyone, and no damage reads as voxels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.archive.shards import open_array, write_array
from raygenesis.errors import ScanError
from tests.support.nifti import grey

many = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrays")


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shape, chunks and shards of one to four axes."""
    ndim = draw(st.integers(1, 4))
    shape = draw(st.tuples(*[st.integers(1, 11)] * ndim))
    chunks = draw(st.tuples(*[st.integers(1, 5)] * ndim))
    times = draw(st.tuples(*[st.integers(1, 3)] * ndim))
    return shape, chunks, tuple(chunk * n for chunk, n in zip(chunks, times, strict=True))


def with_tensorstore(folder: Path) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return tensorstore.open(spec).result().read().result()


@many
@given(layouts(), st.sampled_from(["u1", "i1", "i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4"]), st.integers(0, 10**9))
def test_others_and_we_read_what_was_written(scratch: Path, layout, dtype, number) -> None:
    shape, chunks, shards = layout
    folder = scratch / f"{number}-{len(list(scratch.iterdir()))}"
    voxels = grey(shape, dtype)
    write_array(folder, voxels, chunks, shards, ["abcd"[n] for n in range(len(shape))])
    read = open_array(folder).read()
    assert read.dtype == np.dtype(dtype).newbyteorder("=") and np.array_equal(read, voxels)
    assert np.array_equal(with_tensorstore(folder), voxels)
    assert np.array_equal(zarr.open_array(folder, mode="r")[...], voxels)


@many
@given(layouts(), st.data())
def test_regions_are_slices_of_the_whole(scratch: Path, layout, data) -> None:
    shape, chunks, shards = layout
    folder = scratch / f"regions-{len(list(scratch.iterdir()))}"
    voxels = grey(shape)
    write_array(folder, voxels, chunks, shards, ["abcd"[n] for n in range(len(shape))])
    edges = st.one_of(st.none(), st.integers(-13, 13))
    regions = [
        tuple(slice(data.draw(edges), data.draw(edges)) for _ in shape) for _ in range(data.draw(st.integers(1, 4)))
    ]
    for found, region in zip(open_array(folder).read_many(regions), regions, strict=True):
        assert np.array_equal(found, voxels[region])


def test_what_does_not_lie_straight_in_memory_is_written_as_it_is(tmp_path: Path) -> None:
    voxels = grey((9, 8, 7)).T[::-1, :, ::2]
    write_array(tmp_path / "a", voxels, (4, 4, 4), (8, 8, 8), "zyx")
    assert np.array_equal(open_array(tmp_path / "a").read(), voxels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_array(tmp_path / "a", grey((9, 8, 7)), (4, 4, 4), (8, 8, 8), "zyx")
    return tmp_path / "a"


def test_every_turned_bit_of_a_shard_is_noticed(folder: Path) -> None:
    path = folder / "c.1.0.0"
    content = path.read_bytes()
    whole = open_array(folder).read()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ScanError):
            open_array(folder).read()
        assert np.array_equal(open_array(folder).read([slice(0, 8), slice(None), slice(None)]), whole[:8])


@pytest.mark.parametrize("length", [0, 1, 4, 50, -1])
def test_a_shard_cut_short_is_noticed(folder: Path, length: int) -> None:
    path = folder / "c.0.0.0"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ScanError, match=r"shard c\.0\.0\.0"):
        open_array(folder).read()


def test_a_missing_shard_is_no_array_of_zeros(folder: Path) -> None:
    (folder / "c.1.0.0").unlink()
    with pytest.raises(ScanError, match=r"shard c\.1\.0\.0 is missing"):
        open_array(folder).read()


def test_other_arrays_are_refused(folder: Path, tmp_path: Path) -> None:
    tree = json.loads((folder / "zarr.json").read_text())
    changes = [
        {"shape": [9, 8]}, {"shape": [9, 8, -7]}, {"data_type": "complex64"}, {"data_type": "nonsense"}, {"codecs": []},
        {"chunk_grid": {"configuration": {"chunk_shape": [6, 8, 8]}}}, {"chunk_grid": None},
    ]  # fmt: skip
    for change in changes:
        (folder / "zarr.json").write_text(json.dumps(tree | change))
        with pytest.raises(ScanError, match=r"its zarr\.json"):
            open_array(folder)
    zarr.create_array(tmp_path / "b", shape=(4, 4), dtype="u1", chunks=(2, 2), shards=(4, 4))
    with pytest.raises(ScanError, match="another kind of array"):
        open_array(tmp_path / "b")
    with pytest.raises(ScanError, match="is missing"):
        open_array(tmp_path / "none")


def test_the_same_array_is_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_array(tmp_path / name, grey((9, 8, 7)), (4, 4, 4), (8, 8, 8), "zyx")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 3
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize("threads", ["1", "3", "7", ""])
def test_threads_read_the_same(tmp_path: Path, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    voxels = grey((37, 29, 31))
    write_array(tmp_path / "a", voxels, (8, 8, 8), (24, 16, 16), "zyx")
    array = open_array(tmp_path / "a")
    region = (slice(3, 30), slice(1, 28), slice(2, 31))
    assert np.array_equal(array.read(), voxels) and np.array_equal(array.read(region), voxels[region])
    path = tmp_path / "a" / "c.0.0.0"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ScanError):
        array.read()
