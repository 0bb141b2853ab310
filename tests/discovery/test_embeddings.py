"""The table of embeddings: numbers that stay, and blocks that together are the table."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raygenesis.discovery import embeddings
from raygenesis.discovery.embeddings import Embeddings

SIZE = 3


def write(folder: Path, start: int, failed: list[bool], rows_per_group: int = 1000) -> None:
    """A part whose volume n is named vn and lies at (n, 2n, 3n)."""
    numbers = np.arange(start, start + len(failed))
    vectors = np.outer(numbers, [1, 2, 3]).astype(np.float32)
    table = pa.table(
        {
            "volume_id": [f"v{number}" for number in numbers],
            "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), SIZE),
            "failure": ["damaged" if bad else "" for bad in failed],
        }
    )
    pq.write_table(table, folder / f"part-{start:09d}.parquet", row_group_size=rows_per_group)


def plain(parts: list[list[bool]]) -> list[int]:
    """What each number stands for: the whole ones, in the order of the parts."""
    return [10 * part + place for part, failed in enumerate(parts) for place, bad in enumerate(failed) if not bad]


def as_vectors(stands_for: list[int]) -> np.ndarray:
    return np.outer(stands_for, [1, 2, 3]).astype(np.float32)


def test_numbers_stay_as_parts_are_added_whatever_the_order_they_are_written_in(tmp_path):
    write(tmp_path, 20, [False] * 3)
    write(tmp_path, 0, [False, True, False])
    before = Embeddings(tmp_path).ids().to_pylist()
    assert before == ["v0", "v2", "v20", "v21", "v22"]
    write(tmp_path, 40, [True, False])
    after = Embeddings(tmp_path)
    assert after.ids().to_pylist() == [*before, "v41"]
    assert after.size == SIZE
    np.testing.assert_array_equal(after.take(np.arange(5)), as_vectors([0, 2, 20, 21, 22]))


@settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=10), min_size=1, max_size=5), st.integers(0, 1000))
def test_blocks_take_and_span_are_the_plain_table(tmp_path_factory, parts, seed):
    folder = tmp_path_factory.mktemp("table")
    for number, failed in enumerate(parts):
        write(folder, 10 * number, failed, 1 + seed % 4)
    table, there = Embeddings(folder), plain(parts)
    assert table.ids().to_pylist() == [f"v{number}" for number in there]
    generator = np.random.default_rng(seed)
    for keep in (None, generator.random(len(there)) < 0.5, np.zeros(len(there), bool)):
        blocks = list(table.blocks(keep))
        numbers = np.concatenate([numbers for numbers, _ in blocks]) if blocks else np.empty(0, int)
        wanted = np.arange(len(there)) if keep is None else np.flatnonzero(keep)
        assert numbers.tolist() == wanted.tolist()
        if blocks:
            rows = np.concatenate([rows for _, rows in blocks])
            np.testing.assert_array_equal(rows, as_vectors([there[n] for n in wanted]))
    if there:
        asked = generator.integers(0, len(there), 12)  # in any order, and twice
        np.testing.assert_array_equal(table.take(asked), as_vectors([there[n] for n in asked]))
        first, last = sorted(generator.integers(0, len(there) + 1, 2).tolist())
        np.testing.assert_array_equal(table.span(first, last), as_vectors(there[first:last]))
    assert table.take(np.empty(0, np.int64)).shape == (0, SIZE)


@pytest.mark.parametrize("rows_a_part", [3, 16, 500])
def test_no_block_holds_many_more_rows_than_asked_for(tmp_path, monkeypatch, rows_a_part):
    """However large the parts are, so that a million vectors pass through."""
    monkeypatch.setattr(embeddings, "BLOCK_ROWS", 16)
    for start in range(0, 500, rows_a_part):
        write(tmp_path, start, [False] * min(rows_a_part, 500 - start))
    for keep, total in ((None, 500), (np.arange(500) % 5 == 0, 100)):
        sizes = [len(vectors) for _, vectors in Embeddings(tmp_path).blocks(keep)]
        assert sum(sizes) == total
        assert all(16 <= size < 32 for size in sizes[:-1]) and sizes[-1] < 32


def test_only_parts_that_hold_what_is_taken_are_read(tmp_path, monkeypatch):
    for start in range(0, 50, 10):
        write(tmp_path, start, [False] * 10)
    table = Embeddings(tmp_path)
    table.take(np.arange(3))
    (tmp_path / "part-000000020.parquet").write_bytes(b"damaged")
    np.testing.assert_array_equal(table.take(np.array([45, 12])), as_vectors([45, 12]))


def test_a_table_can_be_sent_to_a_worker(tmp_path):
    write(tmp_path, 0, [False] * 4)
    table = Embeddings(tmp_path)
    table.take(np.array([1]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(table)).take(np.array([3])), as_vectors([3]))
