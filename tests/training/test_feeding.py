"""Feeding: cubes arrive whole, as they are stored; threads end."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygenesis.patterns.cells import STEPS, decode, encode
from raygenesis.training.feeding import PREFETCHED_BATCHES, Samples, StoredBatch, prefetch
from tests.support.synthetic import pattern_table

SHAPE = (8, 8, 8)


def samples(tables):
    return Samples(tables, "pattern_id", SHAPE)


# --- samples --------------------------------------------------------------------------------------


def test_a_batch_holds_the_cubes_and_columns_of_its_rows():
    table = pattern_table(10)
    batch = samples([table]).batch(np.array([7, 0, 7]))
    assert batch.cubes.shape == (3, 1, *SHAPE) and batch.cubes.dtype == torch.float32
    for cube, row in zip(batch.cubes, (7, 0, 7), strict=True):
        np.testing.assert_allclose(cube[0], decode(table["cube"][row].as_py(), SHAPE), rtol=1e-6)
    assert batch.columns["pattern_id"].tolist() == [7, 0, 7]
    assert batch.columns["volume_id"].tolist() == [table["volume_id"][row].as_py() for row in (7, 0, 7)]
    assert "cube" not in batch.columns


def test_rows_are_numbered_by_their_key_whatever_order_and_chunks_the_tables_come_in():
    table = pattern_table(30)
    expected = samples([table])
    indices = np.arange(30)
    generator = np.random.default_rng(0)
    for _ in range(5):
        shuffled = table.take(pa.array(generator.permutation(30)))
        cuts = [0, *sorted(generator.integers(0, 31, 4).tolist()), 30]
        pieces = [shuffled.slice(a, b - a) for a, b in itertools.pairwise(cuts)]
        # One table of several chunks, and others; slices keep an offset into their buffers.
        found = samples([pa.concat_tables(pieces[:2]), *pieces[2:]])
        assert torch.equal(found.batch(indices).cubes, expected.batch(indices).cubes)
        for name, column in expected.columns.items():
            assert found.columns[name].tolist() == column.tolist()


@pytest.mark.slow  # it needs 4 GiB
def test_cells_of_more_than_an_arrow_chunk_can_hold_are_all_there():
    size = 2**30 + 2**27
    cell = pa.BinaryArray.from_buffers(
        pa.binary(), 1, [None, pa.py_buffer(np.array([0, size], np.int32)), pa.py_buffer(np.zeros(size, np.uint8))]
    )
    small = pattern_table(3, first=2).select(["pattern_id", "cube"])
    large = samples([pa.table({"pattern_id": [0, 1], "cube": pa.chunked_array([cell, cell])}), small])
    assert [len(large._cell(row)) for row in (0, 1)] == [size, size]
    assert torch.equal(large.batch(np.arange(2, 5)).cubes, samples([small]).batch(np.arange(3)).cubes)


def test_selected_rows_are_those_of_the_whole():
    everything = samples([pattern_table(12), pattern_table(12, first=100)])
    keep = everything.columns["coordinate"] == 1
    chosen = everything.select(keep)
    assert len(chosen) == 12
    assert chosen.columns["pattern_id"].tolist() == everything.columns["pattern_id"][keep].tolist()
    expected = everything.batch(np.flatnonzero(keep))
    assert torch.equal(chosen.batch(np.arange(12)).cubes, expected.cubes)
    last = chosen.select(chosen.columns["pattern_id"] >= 100)
    assert torch.equal(last.batch(np.arange(6)).cubes, expected.cubes[6:])


def test_no_rows_are_no_samples():
    assert len(samples([])) == len(samples([pattern_table(3).slice(3)])) == 0
    assert len(samples([pattern_table(3).slice(3), pattern_table(3)])) == 3


def test_a_cell_of_another_shape_is_an_error():
    table = pa.table({"pattern_id": [0], "cube": pa.array([encode(np.zeros((8, 8, 4), np.float32))], pa.binary())})
    with pytest.raises(ValueError, match="cell holds 512 bytes"):
        samples([table]).batch(np.array([0]))


# --- prefetching ----------------------------------------------------------------------------------


class Counting:
    """A stream that counts how many batches were asked for, and fails at one."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at, self.is_closed = 0, fails_at, False

    def stream(self, number):
        try:
            for place in range(number):
                if self.asked == self.fails_at:
                    raise KeyError("a damaged cell")
                self.asked += 1
                yield StoredBatch(torch.tensor([place]), {})
        finally:
            self.is_closed = True


def feeding():
    return [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_prefetched_batches_come_in_order_and_the_thread_ends():
    assert [int(batch.steps) for batch in prefetch(Counting().stream(20))] == list(range(20))
    assert not feeding()
    assert list(prefetch(Counting().stream(0))) == []


def test_an_error_in_the_thread_is_raised_where_the_batches_are_used():
    feed = prefetch(Counting(fails_at=3).stream(20))
    seen = [next(feed) for _ in range(3)]
    assert len(seen) == 3
    with pytest.raises(KeyError, match="a damaged cell"):
        next(feed)
    assert not feeding()


def test_a_consumer_that_leaves_early_stops_the_thread_a_few_batches_ahead_and_closes_the_stream():
    source = Counting()
    feed = prefetch(source.stream(1000))
    next(feed)
    assert feeding() and not source.is_closed
    feed.close()
    assert not feeding() and source.is_closed
    assert source.asked <= PREFETCHED_BATCHES + 2


def test_nothing_is_decoded_before_the_first_batch_is_asked_for():
    source = Counting()
    feed = prefetch(source.stream(1))
    assert not feeding() and source.asked == 0
    feed.close()


@pytest.mark.parametrize("num_decoders", [1, 3])
def test_a_stream_has_the_batches_of_all_epochs_as_they_are_stored(num_decoders):
    some = samples([pattern_table(40)])
    some.num_decoders = num_decoders
    epochs = [[np.arange(25), np.arange(3)], [], [np.array([39, 0, 39])]]
    found = list(some.stream(iter(epochs)))
    wanted = [indices for batches in epochs for indices in batches]
    assert [batch.steps.dtype for batch in found] == [torch.int16] * 3
    for batch, indices in zip(found, wanted, strict=True):
        expected = some.batch(indices)
        assert torch.equal(batch.on("cpu").cubes, expected.cubes)
        assert torch.equal(batch.steps, (expected.cubes * STEPS).round().short())
        assert batch.columns["pattern_id"].tolist() == expected.columns["pattern_id"].tolist()
