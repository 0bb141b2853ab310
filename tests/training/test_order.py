"""The order of an epoch: of the seed and the epoch, whoever shares the work, and wherever samples lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.training.order import NUM_STREAMS, Layout, cubes_of_epoch, epoch_order, held_out_batches
from raygenesis.training.workers import Workers
from tests.support.orders import training_batches


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
@pytest.mark.parametrize("is_stored", [False, True])
def test_held_out_every_sample_comes_once_over_the_workers_by_row_groups(num_samples, world_size, is_stored):
    groups = np.random.default_rng(0).permutation(num_samples) // 5
    layout = Layout(groups, 2) if is_stored else None
    ranks = (Workers(rank=rank, world_size=world_size) for rank in range(world_size))
    shares = [held_out_batches(num_samples, 4, workers, layout) for workers in ranks]
    rows = [row for share in shares for batch in share for row in batch]
    assert sorted(rows) == list(range(num_samples))
    assert all(0 < len(batch) <= 4 for share in shares for batch in share)
    assert (np.diff(groups[rows] if is_stored else rows) >= 0).all()


# --- the order of a store that is larger than the window ------------------------------------------

SIZE = 16  # of a row group


def stored(num_samples, window, size=SIZE):
    """Samples whose numbers do not follow where they lie: those of a row group are of one scan."""
    return Layout(np.random.default_rng(1).permutation(num_samples) // size, window)


def test_a_store_that_fits_into_the_window_is_permuted_as_a_whole():
    rows = [epoch_order(800, 3, 2, layout) for layout in (None, stored(800, 50))]
    assert rows[0].units.tolist() == rows[1].units.tolist() and rows[1].streams is None
    assert epoch_order(800, 3, 2, stored(800, 49)).streams is not None


@settings(max_examples=30, deadline=None)
@given(
    st.integers(300, 1500), st.sampled_from([24, 25, 64, 100]), st.sampled_from([1, 4, 40]), st.integers(1, 3),
    st.sampled_from([1, 2, 3, 4, 5, 8]),
)  # fmt: skip
def test_any_number_of_workers_shares_the_same_pieces_of_a_large_store(num, batch_size, window, num_pieces, world_size):
    layout = stored(num, window, 5)
    alone = training_batches(num, batch_size, 7, 1, num_pieces=num_pieces, layout=layout)
    shares = [
        training_batches(num, batch_size, 7, 1, Workers(rank=rank, world_size=world_size), num_pieces, layout)
        for rank in range(world_size)
    ]
    for batch, *parts in zip(alone, *shares, strict=True):
        for piece, *own in zip(batch, *parts, strict=True):
            assert sorted(np.concatenate(own).tolist()) == sorted(piece.tolist()) and min(map(len, own)) > 0
    seen = np.concatenate([np.concatenate(batch) for batch in alone])
    assert len(set(seen.tolist())) == len(seen) == num // batch_size * batch_size
    again = training_batches(num, batch_size, 7, 1, num_pieces=num_pieces, layout=layout)
    assert np.concatenate([np.concatenate(batch) for batch in again]).tolist() == seen.tolist()
    other = training_batches(num, batch_size, 7, 2, layout=layout)
    assert np.concatenate([np.concatenate(batch) for batch in other]).tolist() != seen.tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_a_row_group_is_read_once_an_epoch_and_held_while_the_window_passes(world_size, batch_size):
    layout = stored(16_000, 128)
    num_groups, reads, most_held = 1000, 0, 0
    for rank in range(world_size):
        workers = Workers(rank=rank, world_size=world_size)
        first, last = {}, {}
        for number, (rows,) in enumerate(training_batches(16_000, batch_size, 0, 0, workers, layout=layout)):
            for group in layout.groups[rows].tolist():
                first.setdefault(group, number)
                last[group] = number
        reads += len(first)
        begins, ends = np.sort(list(first.values())), np.sort(list(last.values()))
        held = np.searchsorted(begins, begins, "right") - np.searchsorted(ends, begins, "left")
        most_held += int(held.max())
    assert reads <= 1.1 * num_groups
    # A window, and of each stream the group that begins and one that ends.
    assert 128 <= most_held <= 128 + 3 * NUM_STREAMS


@pytest.mark.parametrize("batch_size", [16, 64])
def test_batches_are_mixed_as_well_as_those_of_a_full_permutation(batch_size):
    """Of scans that lie together, and of classes: how many a batch has, and how often the commonest."""
    number = 16_000
    layout = stored(number, 128)
    scans = layout.groups // 4
    classes = np.random.default_rng(2).permutation(number) % 40
    for labels in (scans, classes):
        figures = []
        for order in (layout, None):
            batches = [rows for (rows,) in training_batches(number, batch_size, 0, 0, layout=order)]
            counts = [np.unique(labels[rows], return_counts=True)[1] for rows in batches]
            figures.append((np.mean([len(some) for some in counts]), np.mean([some.max() for some in counts])))
        (num_different, commonest), (num_permuted, commonest_permuted) = figures
        assert num_different > 0.98 * num_permuted and commonest < 1.03 * commonest_permuted


def test_samples_that_lie_together_are_far_apart_in_the_order():
    layout = stored(16_000, 128)
    rows = epoch_order(16_000, 0, 0, layout).units[:, 0]
    place = np.empty(16_000)
    place[rows] = np.arange(16_000)
    spread = [np.ptp(place[layout.groups == group]) for group in range(0, 1000, 50)]
    assert np.median(spread) > 0.5 * 128 * SIZE  # of the window's samples
