"""Arrays: what zarr-python writes is read back by anyone, in any region, and no damage reads as voxels."""

from __future__ import annotations

import json
import multiprocessing
import os
import struct
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.archive.reading import begin_opening, open_array
from raygenesis.archive.writing import write_array
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


@many
@given(layouts(), st.sampled_from(["u1", "i1", "i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4"]), st.integers(0, 10**9))
def test_zarr_and_we_read_what_was_written(scratch: Path, layout, dtype, number) -> None:
    shape, chunks, shards = layout
    folder = scratch / f"{number}-{len(list(scratch.iterdir()))}"
    voxels = grey(shape, dtype)
    write_array(folder, voxels, chunks, shards, ["abcd"[n] for n in range(len(shape))])
    read = open_array(folder).read()
    assert read.dtype == np.dtype(dtype).newbyteorder("=") and np.array_equal(read, voxels)
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
    for found, region in zip(open_array(folder).begin_reading(regions)(), regions, strict=True):
        assert np.array_equal(found, voxels[region])


def test_what_does_not_lie_straight_in_memory_is_written_as_it_is(tmp_path: Path) -> None:
    voxels = grey((9, 8, 7)).T[::-1, :, ::2]
    write_array(tmp_path / "a", voxels, (4, 4, 4), (8, 8, 8), "zyx")
    assert np.array_equal(open_array(tmp_path / "a").read(), voxels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_array(tmp_path / "a", grey((9, 8, 7)), (4, 4, 4), (8, 8, 8), "zyx")
    return tmp_path / "a"


def replace(path: Path, content: bytes) -> None:
    """Another file under the name, as whoever copies or restores one leaves it."""
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(0, path.stat().st_ino + len(content)))  # the clock may not have moved on


def fault_of(folder: Path) -> str:
    """Why an array cannot be read: in one line, without a word of where the archive lies, or of the library's own."""
    with pytest.raises(ScanError) as fault:
        open_array(folder).read()
    said = str(fault.value)
    assert "\n" not in said and "/" not in said and "tensorstore" not in said and "_" not in said.replace("_json", "")
    return said


def test_every_turned_bit_of_a_shard_is_noticed(folder: Path) -> None:
    path = folder / "c.1.0.0"
    content = path.read_bytes()
    whole = open_array(folder).read()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        replace(path, damaged)
        os.utime(path, (place, place))
        assert "shard c.1.0.0" in fault_of(folder)
        assert np.array_equal(open_array(folder).read([slice(0, 8), slice(None), slice(None)]), whole[:8])


@many
@given(place=st.integers(0, 10**6), change=st.binary(min_size=1, max_size=40), number=st.integers(0, 10**9))
def test_bytes_that_are_written_over_never_give_other_voxels(scratch: Path, place: int, change: bytes, number) -> None:
    folder = scratch / f"over-{len(list(scratch.iterdir()))}"
    voxels = grey((9, 8, 7))
    write_array(folder, voxels, (4, 4, 4), (8, 8, 8), "zyx")
    path = folder / "c.0.0.0"
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place : place + len(change)] = change
    path.write_bytes(content)
    try:
        assert np.array_equal(open_array(folder).read(), voxels)  # the same bytes, by chance
    except ScanError as error:
        assert "shard c.0.0.0" in str(error)


@pytest.mark.parametrize("length", [0, 1, 4, 50, -1])
def test_a_shard_cut_short_is_noticed(folder: Path, length: int) -> None:
    path = folder / "c.0.0.0"
    path.write_bytes(path.read_bytes()[:length])
    said = fault_of(folder)
    assert said == "shard c.0.0.0 is cut short" if 0 <= length < 132 else "a checksum in shard c.0.0.0" in said


def test_a_missing_shard_is_no_array_of_zeros(folder: Path) -> None:
    (folder / "c.1.0.0").unlink()
    assert fault_of(folder) == "shard c.1.0.0 is missing, or a chunk of it"
    assert open_array(folder).read([slice(0, 8), slice(None), slice(None)]).any()


@pytest.mark.parametrize("entry", [(2**64 - 1, 2**64 - 1), (10**6, 100), (0, 3)])
def test_a_chunk_that_the_index_lacks_or_misplaces_is_no_block_of_zeros(folder: Path, entry: tuple[int, int]) -> None:
    path = folder / "c.0.0.0"
    content = bytearray(path.read_bytes())
    index = struct.pack("<2Q", *entry) + content[-132 + 16 : -4]
    content[-132:] = index + struct.pack("<I", google_crc32c.value(bytes(index)))
    path.write_bytes(content)
    assert "shard c.0.0.0" in fault_of(folder)


def test_chunks_of_nothing_but_zeros_are_there(tmp_path: Path) -> None:
    write_array(tmp_path / "a", np.zeros((9, 8, 7), np.int16), (4, 4, 4), (8, 8, 8), "zyx")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["c.0.0.0", "c.1.0.0", "zarr.json"]
    assert not open_array(tmp_path / "a").read().any()


def test_a_shard_that_cannot_be_read_is_said(folder: Path) -> None:
    (folder / "c.0.0.0").unlink()
    (folder / "c.0.0.0").mkdir()
    assert "shard c.0.0.0" in fault_of(folder)


def test_other_arrays_are_refused(folder: Path, tmp_path: Path) -> None:
    tree = json.loads((folder / "zarr.json").read_text())
    (sharding,) = tree["codecs"]
    unchecked = {**sharding, "configuration": {**sharding["configuration"]}}
    unchecked["configuration"]["codecs"] = unchecked["configuration"]["codecs"][:-1]
    changes = [
        {"shape": [9, 8]}, {"shape": [9, 8, -7]}, {"shape": [9, 8, 0]}, {"data_type": "complex64"},
        {"data_type": "bool", "fill_value": False}, {"data_type": "nonsense"}, {"codecs": []}, {"codecs": [unchecked]},
        {"chunk_grid": {"configuration": {"chunk_shape": [6, 8, 8]}}}, {"chunk_grid": None},
    ]  # fmt: skip
    for change in changes:
        replace(folder / "zarr.json", json.dumps(tree | change).encode())
        assert "zarr.json" in fault_of(folder) and "another kind of array" in fault_of(folder)
    for content in (b"", b"{", b"[]", b"\xff"):
        replace(folder / "zarr.json", content)
        assert "its zarr.json is damaged" in fault_of(folder)
    zarr.create_array(tmp_path / "b", shape=(4, 4), dtype="u1", chunks=(2, 2), shards=(4, 4))
    assert "another kind of array" in fault_of(tmp_path / "b")
    (tmp_path / "c").write_text("a file")
    for nothing in ("none", "c"):
        assert fault_of(tmp_path / nothing) == "its zarr.json is missing"


def test_the_same_array_is_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_array(tmp_path / name, grey((9, 8, 7)), (4, 4, 4), (8, 8, 8), "zyx")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 3
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_what_takes_the_place_of_an_array_is_read_and_not_what_was_kept_of_it(folder: Path) -> None:
    before = open_array(folder).read()
    for number in range(5):
        voxels = before + np.int16(number + 1)
        write_array(folder.with_name(f"{number}"), voxels, (4, 4, 4), (8, 8, 8), "zyx")
        folder.rename(folder.with_name(f"old-{number}"))
        folder.with_name(f"{number}").rename(folder)
        assert np.array_equal(open_array(folder).read(), voxels)


@pytest.mark.parametrize("threads", ["1", "3", "7", ""])
def test_threads_read_the_same(tmp_path: Path, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    voxels = grey((37, 29, 31))
    write_array(tmp_path / "a", voxels, (8, 8, 8), (24, 16, 16), "zyx")
    array = open_array(tmp_path / "a")
    region = (slice(3, 30), slice(1, 28), slice(2, 31))
    assert np.array_equal(array.read(), voxels) and np.array_equal(array.read(region), voxels[region])
    path = tmp_path / "a" / "c.0.0.0"
    replace(path, path.read_bytes()[:-9])
    fault_of(tmp_path / "a")


def test_many_arrays_are_opened_and_read_at_once_by_many_threads(tmp_path: Path) -> None:
    all_voxels = [grey((9, 8, 7), seed=seed) for seed in range(8)]
    for number, voxels in enumerate(all_voxels):
        write_array(tmp_path / str(number), voxels, (4, 4, 4), (8, 8, 8), "zyx")

    def agree(_: int) -> bool:
        opening: list[Callable] = [begin_opening(tmp_path / str(number)) for number in range(8)]
        reading = [opened().begin_reading([None, (slice(2, 9), slice(0, 5), slice(1, 2))]) for opened in opening]
        found = [wait() for wait in reading]
        return all(
            np.array_equal(whole, voxels) and np.array_equal(part, voxels[2:9, 0:5, 1:2])
            for (whole, part), voxels in zip(found, all_voxels, strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(agree, range(12)))


def _sum(folder: Path) -> int:
    return int(open_array(folder).read().sum())


def test_another_process_reads_after_this_one_has_read(folder: Path) -> None:
    here = _sum(folder)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_sum, folder).result(timeout=120) == here
