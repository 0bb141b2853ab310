"""Pairs: one class, two patients, each pattern at most once, as many as can be, and the same for any workers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.pretraining.pairs import epoch_pairs, pair_up
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import PretrainingSettings
from raygenesis.training.order import cubes_of_epoch
from raygenesis.training.workers import Workers
from tests.support.orders import paired_batches
from tests.support.synthetic import pattern_table, samples


def most_pairs(classes: list[int], patients: list[int]) -> int:
    """How many pairs there can be: half a class, unless one patient has more of it than all others."""
    total = 0
    for own in set(classes):
        counts = Counter(patient for of, patient in zip(classes, patients, strict=True) if of == own)
        size = sum(counts.values())
        total += min(size // 2, size - max(counts.values()))
    return total


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60), st.integers(0, 9))
def test_pairs_are_of_one_class_and_two_patients_and_no_more_can_be_made(rows: Any, seed: int) -> None:
    classes, patients = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    pairs = pair_up(classes, patients, np.random.default_rng(seed))
    one, other = pairs.T
    assert (classes[one] == classes[other]).all() and (patients[one] != patients[other]).all()
    assert len(np.unique(pairs)) == pairs.size
    assert len(pairs) == most_pairs(classes.tolist(), patients.tolist())


def balanced(num_classes: int = 3, num_patients: int = 8, num_scales: int = 2) -> tuple[np.ndarray, np.ndarray]:
    each = np.indices((num_classes, num_patients, num_scales)).reshape(3, -1)
    return each[0], each[1]


def test_where_every_patient_has_as_many_each_pattern_is_paired() -> None:
    classes, patients = balanced()
    assert sorted(epoch_pairs(classes, patients, 0, 0).ravel().tolist()) == list(range(48))


def test_partners_and_order_change_with_epoch_and_seed_alone() -> None:
    classes, patients = balanced(1, 12, 1)
    assert epoch_pairs(classes, patients, 4, 7).tolist() == epoch_pairs(classes, patients, 4, 7).tolist()
    every = [epoch_pairs(classes, patients, seed, epoch) for seed in (0, 1) for epoch in range(100)]
    assert len({pairs.tobytes() for pairs in every}) == 200
    # Each of the 11 others is the partner of pattern 0 about as often, and it is the first of its pair half the time.
    rows = [pairs[(pairs == 0).any(1)][0] for pairs in every]
    partners = Counter(int(row.sum()) for row in rows)
    assert set(partners) == set(range(1, 12)) and max(partners.values()) < 40
    assert 70 < sum(row[0] == 0 for row in rows) < 130


# --- from the task to batches -----------------------------------------------------------------------


def task(**chosen: Any) -> PretextTask:
    given = {"base_width": 2, "batch_size": 6, "average_decay": 0.9, "lambda_pair": 0.5, **chosen}
    return PretextTask(PretrainingSettings(**given), 3, (32, 32), num_references=1, num_coordinates=3)


def test_a_task_pairs_patterns_of_its_classes_from_different_scans() -> None:
    columns = samples(pattern_table(33, (32, 32), 3), (32, 32)).columns
    for chosen in ({}, {"lambda_pair": None, "lambda_cross": 0.2}):
        pairs = task(**chosen).pairs(columns, 5)
        assert pairs is not None and pairs.shape == (15, 2)  # of 11 scans one is left alone at each place
        for name, equal in (("coordinate", True), ("volume_id", False)):
            assert ((columns[name][pairs[:, 0]] == columns[name][pairs[:, 1]]) == equal).all()
    # Without a weight the order is what it was.
    for chosen in ({"lambda_pair": None}, {"lambda_pair": 0.0}):
        assert task(**chosen).pairs(columns, 5) is None


@pytest.mark.parametrize("num_pieces", [1, 2])
def test_any_number_of_workers_shares_the_same_pairs_of_the_same_batches(num_pieces: int) -> None:
    columns = samples(pattern_table(120, (32, 32), 3), (32, 32)).columns
    ids = columns["pattern_id"]
    pairs = task().pairs(columns, 2)
    assert pairs is not None
    alone = paired_batches(pairs, 22, num_pieces=num_pieces)
    assert [sum(map(len, batch)) for batch in alone] == [22] * 5
    assert cubes_of_epoch(pairs.size, 22) == (22, 110)
    assert np.concatenate([np.concatenate(batch) for batch in alone]).tolist() == pairs.ravel()[:110].tolist()
    for world_size in (2, 4):
        shares = [
            paired_batches(pairs, 22, Workers(rank=rank, world_size=world_size), num_pieces)
            for rank in range(world_size)
        ]
        for batch, *parts in zip(alone, *shares, strict=True):
            for piece, *own in zip(batch, *parts, strict=True):
                assert ids[np.concatenate(own)].tolist() == ids[piece].tolist()
                for rows in own:  # a pair is never parted
                    assert len(rows) >= 2 and len(rows) % 2 == 0
                    assert (columns["label"][rows[::2]] == columns["label"][rows[1::2]]).all()


def test_fewer_pairs_than_a_batch_make_one_smaller_batch() -> None:
    ((rows,),) = paired_batches(np.arange(6).reshape(3, 2), 64)
    assert rows.tolist() == list(range(6))
