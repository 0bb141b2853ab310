"""Feeding: the order belongs to seed and epoch, whoever shares the work; cubes arrive whole; threads end."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.patterns.cells import decode, encode
from raygenesis.training.feeding import (
    PREFETCHED_BATCHES,
    Samples,
    cubes_of_epoch,
    ordered_batches,
    prefetch,
    training_batches,
)
from raygenesis.training.workers import Workers
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


# --- the order of training ------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.integers(24, 300), st.sampled_from([24, 25, 32, 64]), st.integers(0, 5), st.integers(0, 50), st.integers(1, 4),
    st.integers(1, 6),
)  # fmt: skip
def test_any_number_of_workers_shares_the_same_pieces_of_the_same_batches(
    num_samples, batch_size, seed, epoch, num_pieces, world_size
):
    alone = training_batches(num_samples, batch_size, seed, epoch, num_pieces=num_pieces)
    ranks = range(world_size)
    shares = [
        training_batches(num_samples, batch_size, seed, epoch, Workers(rank=rank, world_size=world_size), num_pieces)
        for rank in ranks
    ]
    assert {len(share) for share in shares} == {len(alone)} == {max(1, num_samples // batch_size)}
    for batch, *parts in zip(alone, *shares, strict=True):
        assert len(batch) == num_pieces
        for piece, *own in zip(batch, *parts, strict=True):
            assert np.concatenate(own).tolist() == piece.tolist()
            # Nobody waits for nothing, and for one cube at the most.
            assert min(map(len, own)) >= 1 and max(map(len, own)) - min(map(len, own)) <= 1
    # Pieces change nothing in what a batch is.
    whole = training_batches(num_samples, batch_size, seed, epoch)
    for batch, (indices,) in zip(alone, whole, strict=True):
        assert np.concatenate(batch).tolist() == indices.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 160), st.integers(0, 50))
def test_every_sample_is_seen_at_most_once_an_epoch_and_only_a_rest_is_left_out(num_samples, batch_size, epoch):
    batches = [indices for (indices,) in training_batches(num_samples, batch_size, 0, epoch)]
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen) and set(seen.tolist()) <= set(range(num_samples))
    assert num_samples - len(seen) < batch_size
    assert {len(batch) for batch in batches} == {min(batch_size, num_samples)}
    assert cubes_of_epoch(num_samples, batch_size) == (len(batches[0]), len(seen))


def test_fewer_samples_than_a_batch_make_one_smaller_batch():
    ((batch,),) = training_batches(5, 64, 0, 0)
    assert sorted(batch.tolist()) == [0, 1, 2, 3, 4]


def test_the_order_is_the_seeds_and_another_each_epoch():
    def orders(seed):
        return [np.concatenate(training_batches(96, 8, seed, epoch), None).tolist() for epoch in range(20)]

    assert orders(0) == orders(0)
    every = orders(0) + orders(1)
    assert len({tuple(order) for order in every}) == 40


def test_other_samples_are_left_out_each_epoch():
    seen = [np.concatenate(training_batches(10, 4, 0, epoch), None).tolist() for epoch in range(50)]
    left_out = [set(range(10)) - set(rows) for rows in seen]
    assert all(len(rest) == 2 for rest in left_out)
    assert set.union(*left_out) == set(range(10))


@pytest.mark.parametrize(("num_samples", "world_size"), [(23, 1), (23, 2), (23, 4), (8, 4), (3, 4), (0, 2)])
def test_in_order_every_sample_comes_once_over_the_workers(num_samples, world_size):
    shares = [ordered_batches(num_samples, 4, Workers(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(num_samples))
    assert all(0 < len(batch) <= 4 for share in shares for batch in share)
    assert all((np.diff(np.concatenate(share)) > 0).all() for share in shares if share)


# --- prefetching ----------------------------------------------------------------------------------


class Counting:
    """Samples that count what they were asked for, and fail at one batch."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = 0, fails_at

    def batch(self, indices):
        if self.asked == self.fails_at:
            raise KeyError("a damaged cell")
        self.asked += 1
        return indices


def decoding():
    return [thread for thread in threading.enumerate() if thread.name == "decode"]


def test_prefetched_batches_come_in_order_and_the_thread_ends():
    batches = [np.array([n]) for n in range(20)]
    assert [int(batch[0]) for batch in prefetch(Counting(), batches)] == list(range(20))
    assert not decoding()
    assert list(prefetch(Counting(), [])) == []


def test_an_error_in_the_thread_is_raised_where_the_batches_are_used():
    feed = prefetch(Counting(fails_at=3), [np.array([n]) for n in range(20)])
    seen = [next(feed) for _ in range(3)]
    assert len(seen) == 3
    with pytest.raises(KeyError, match="a damaged cell"):
        next(feed)
    assert not decoding()


def test_a_consumer_that_leaves_early_stops_the_thread_a_few_batches_ahead():
    source = Counting()
    feed = prefetch(source, [np.array([n]) for n in range(1000)])
    next(feed)
    assert decoding()
    feed.close()
    assert not decoding()
    assert source.asked <= PREFETCHED_BATCHES + 2


def test_nothing_is_decoded_before_the_first_batch_is_asked_for():
    source = Counting()
    feed = prefetch(source, [np.array([0])])
    assert not decoding() and source.asked == 0
    feed.close()
