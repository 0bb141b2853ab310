"""Quality: groups of ranks, likeness against NumPy's correlation, the test, and what a user is warned of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from raygenesis.discovery.quality import (
    NUM_RANDOM,
    PATIENTS_PER_GROUP,
    MeasuredVisit,
    even_ranks,
    likeness,
    quality_of,
    rank_groups,
    sampled,
)

many = settings(max_examples=100, deadline=None, derandomize=True, database=None)


# --- ranks ----------------------------------------------------------------------------------------


@many
@given(st.integers(1, 5000))
def test_groups_of_ranks_are_all_ranks_but_the_reference_each_once(num_neighbours):
    groups = rank_groups(num_neighbours)
    assert [rank for first, last in groups for rank in range(first, last + 1)] == list(range(1, num_neighbours))
    doubled = [3, *(2**n for n in range(2, 14))]
    for number, (first, last) in enumerate(groups):
        assert last - first + 1 == min(doubled[number], num_neighbours - first)


@many
@given(st.integers(1, 2000), st.integers(0, 2000))
def test_a_sample_of_a_group_holds_its_ends_and_lies_evenly(first, more):
    ranks = sampled((first, first + more))
    assert len(ranks) == min(PATIENTS_PER_GROUP, more + 1) == len(set(ranks))
    assert ranks[0] == first and ranks[-1] == first + more
    if len(ranks) > 2:
        assert 0 < min(np.diff(ranks)) >= max(np.diff(ranks)) - 1


@pytest.mark.parametrize("num_neighbours", [1, 2, 3, 24, 200, 1000])
def test_all_neighbours_are_judged_by_ranks_that_lie_evenly(num_neighbours):
    ranks = even_ranks(num_neighbours)
    assert len(ranks) == min(NUM_RANDOM, num_neighbours - 1)
    if ranks:
        assert np.mean(ranks) == pytest.approx(num_neighbours / 2, rel=0.02)


# --- likeness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_likeness_is_the_mean_correlation_within_and_between_places(count):
    generator = np.random.default_rng(count)
    anchors, cubes = generator.random((2, count, 200)).astype(np.float32)
    cubes += 0.5 * anchors
    told = np.corrcoef(np.concatenate([anchors, cubes]))[:count, count:]
    within, between = likeness(anchors, cubes)
    assert within == pytest.approx(np.diag(told).mean(), abs=1e-5)
    assert between == pytest.approx(told[~np.eye(count, dtype=bool)].mean(), abs=1e-5)


def test_likeness_does_not_see_brightness_and_contrast_nor_fail_of_flat_cubes():
    anchors = np.random.default_rng(0).random((3, 100)).astype(np.float32)
    assert likeness(anchors, 0.2 * anchors + 0.7)[0] == pytest.approx(1, abs=1e-4)
    assert likeness(anchors, np.full_like(anchors, 0.3)) == pytest.approx((0, 0), abs=1e-6)
    within, between = likeness(anchors[:1], anchors[:1])  # of one place there is no other
    assert within == pytest.approx(1, abs=1e-5) and between == 0


# --- the summary ----------------------------------------------------------------------------------


def visits(near: float, random: float, between: float = 0.1, references: int = 3, seed: int = 0) -> list[MeasuredVisit]:
    """8 neighbours and 24 random patients a reference, whose scans are the more alike the higher its number."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(references):
        for rank in [*range(1, 9), *[-1] * 24]:
            within = (near if rank > 0 else random) + 0.2 * number + 0.02 * generator.standard_normal()
            found.append(MeasuredVisit(number, rank, within, between))
    return found


def test_the_p_value_is_small_where_neighbours_are_more_alike():
    assert quality_of(visits(0.3, 0.25), 9).p_value < 1e-6
    assert quality_of(visits(0.25, 0.3), 9).p_value > 0.99


def test_the_p_value_is_even_where_neighbours_are_random_patients():
    values = np.array([quality_of(visits(0.3, 0.3, seed=seed), 9).p_value for seed in range(200)])
    assert (values < 0.05).mean() < 0.12 and values.min() > 1e-5 and 0.4 < values.mean() < 0.6


def test_a_reference_that_everybody_resembles_decides_nothing():
    """Neighbours of one reference against random patients of another would seem alike."""
    uneven = [visit for visit in visits(0.3, 0.3) if (visit.reference == 2) == (visit.rank > 0)]
    some = [visit for visit in visits(0.3, 0.3, seed=1) if visit.reference == 0 or visit.rank < 0]
    assert quality_of(uneven, 9).p_value > 1e-3 and quality_of(some, 9).p_value > 1e-3


def test_the_p_value_is_mann_whitneys_of_what_is_left_of_each_references_mean():
    given_visits = visits(0.31, 0.3, seed=7)
    within = np.array([visit.within for visit in given_visits])
    reference = np.array([visit.reference for visit in given_visits])
    near = np.array([visit.rank for visit in given_visits]) > 0
    left = within - np.array([within[reference == one].mean() for one in reference])
    ranks = rankdata(left)
    u = ranks[near].sum() - near.sum() * (near.sum() + 1) / 2
    generator = np.random.default_rng(0)
    num_near = int(near.sum())
    chance = [generator.permutation(ranks)[:num_near].sum() - num_near * (num_near + 1) / 2 for _ in range(20_000)]
    assert quality_of(given_visits, 9).p_value == pytest.approx((np.array(chance) >= u).mean(), abs=0.01)


def test_the_means_are_told_of_all_and_by_rank():
    told = quality_of(visits(0.3, 0.2, references=1), 13)
    given_visits = visits(0.3, 0.2, references=1)
    near = [visit.within for visit in given_visits if visit.rank > 0]
    assert told.neighbours.within == pytest.approx(np.mean(near)) and told.neighbours.num_patients == 8
    assert told.neighbours.between == pytest.approx(0.1) and told.random.num_patients == 24
    assert [group.ranks for group in told.by_rank] == [(1, 3), (4, 7), (8, 12)]
    assert [group.num_patients for group in told.by_rank] == [3, 4, 1]
    assert told.by_rank[0].within == pytest.approx(np.mean(near[:3]))
    assert list(told.neighbours.values) == near and len(told.random.values) == 24


def test_without_anybody_to_compare_with_there_is_no_p_value_and_no_warning():
    only_near = [visit for visit in visits(0.5, 0.2) if visit.rank > 0]
    only_random = [visit for visit in visits(0.5, 0.2) if visit.rank < 0]
    for some in ([], only_near, only_random):
        told = quality_of(some, 9)
        assert told.p_value is None and told.warning is None
    assert quality_of([], 9).neighbours.within is None


def test_patients_who_are_all_equally_alike_give_a_number():
    """Such as those of scans that show nothing."""
    flat = [MeasuredVisit(0, rank, 0.0, 0.0) for rank in [1, 2, 3, -1, -1, -1]]
    assert 0.05 < quality_of(flat, 4).p_value <= 1


# --- warnings -------------------------------------------------------------------------------------


def test_neighbours_no_better_than_random_patients_are_warned_of_with_the_remedy():
    sentence = quality_of(visits(0.25, 0.3, references=1), 9).warning
    assert sentence.startswith("neighbours are not more similar than random patients")
    for part in ("by 0.2", "random patients' by 0.2", "(p = ", "train the auto-encoder longer", "num_neighbours"):
        assert part in sentence
    assert "\n" not in sentence


def test_places_that_are_not_told_apart_are_told():
    sentence = quality_of(visits(0.3, 0.2, between=0.6), 9).warning
    assert sentence.startswith("places are not distinguished: patterns of one class correlate by 0.")
    assert "different classes by 0.600" in sentence and "discovery.alignment=rigid" in sentence


def test_of_good_patterns_nobody_is_warned():
    assert quality_of(visits(0.6, 0.4), 9).warning is None
