"""Groups, outliers and duplicates of points whose kinds are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from raygenesis.discovery.duplicates import candidates, first_copies
from raygenesis.discovery.exact import Neighbours
from raygenesis.discovery.groups import NO_GROUP, groups_of
from raygenesis.discovery.neighbour_table import among
from raygenesis.discovery.outliers import RANK, outliers, radii, sparsity


def nearest(points: np.ndarray, k: int = 32) -> Neighbours:
    """Each point's nearest others, padded to k."""
    there = min(k, len(points) - 1)
    if not there:
        return Neighbours(np.full((1, k), -1), np.full((1, k), np.inf, np.float32))
    distances, numbers = NearestNeighbors(n_neighbors=there).fit(points).kneighbors()
    lacking = [(0, 0), (0, k - there)]
    return Neighbours(
        np.pad(numbers, lacking, constant_values=-1), np.float32(np.pad(distances, lacking, constant_values=np.inf))
    )


def grouped(points: np.ndarray, left_out: np.ndarray | None = None) -> np.ndarray:
    found = nearest(points)
    kept = np.ones(len(points), bool) if left_out is None else ~left_out
    found = among(found, kept)
    return groups_of(found, radii(found), ~kept)


def clusters(
    sizes: list[int], spreads: list[float], seed: int = 0, d: int = 24, apart: float = 6.0
) -> tuple[np.ndarray, np.ndarray]:
    """Points of so many Gaussians, and which each is of, shuffled."""
    generator = np.random.default_rng(seed)
    centres = apart * generator.standard_normal((len(sizes), d))
    kinds = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return centres[kinds] + np.array(spreads)[kinds, None] * generator.standard_normal((len(kinds), d)), kinds


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_clusters_however_dense_and_numbered_by_size(seed):
    points, kinds = clusters([400, 150, 60, 20], [1.0, 0.3, 2.0, 1.0], seed)
    found = grouped(points)
    assert adjusted_rand_score(kinds, found) > 0.999
    sizes = np.bincount(found)
    assert (np.diff(sizes) <= 0).all() and sizes.tolist() == [400, 150, 60, 20]


def test_one_cloud_is_one_group_even_if_small():
    for number in (1, 2, 3, 8, 17, 48, 500):
        points = np.random.default_rng(number).standard_normal((number, 16))
        assert (grouped(points) == 0).all(), number


def test_two_small_groups_are_told_apart_though_each_lists_the_other():
    """Of 32 neighbours a third are of the other group, and mutual."""
    points, kinds = clusters([20, 20], [1, 1], d=16)
    assert adjusted_rand_score(kinds, grouped(points)) == 1


def test_a_few_scans_between_two_groups_do_not_link_them():
    points, kinds = clusters([300, 200], [1, 1], d=8, apart=5)
    ends = points[kinds == 0].mean(0), points[kinds == 1].mean(0)
    chain = np.linspace(*ends, 8)[2:-2]
    found = grouped(np.concatenate([points, chain]))
    assert adjusted_rand_score(kinds, found[: len(kinds)]) == 1
    assert set(found[len(kinds) :].tolist()) <= {0, 1, NO_GROUP}


def test_a_few_scans_join_the_group_beside_them_and_those_far_or_left_out_have_none():
    points, kinds = clusters([100, 80], [1, 1])
    beside, far = (points[kinds == 1].mean(0) + step for step in (1.6, 6))
    few = np.concatenate([place + 0.1 * np.random.default_rng(1).standard_normal((4, 24)) for place in (far, beside)])
    points = np.concatenate([points, few])
    left_out = np.zeros(len(points), bool)
    left_out[:7] = True
    found = grouped(points, left_out)
    assert (found[:7] == NO_GROUP).all() and (found[7:-8] != NO_GROUP).all()
    assert (found[-8:-4] == NO_GROUP).all()
    assert len(set(found[-4:].tolist()) | set(found[7:-8][kinds[7:] == 1].tolist())) == 1


def test_equal_groups_are_numbered_by_their_first_scan():
    points, kinds = clusters([40, 40, 40], [1, 1, 1], seed=3)
    found = grouped(points)
    firsts = [int(np.flatnonzero(found == group)[0]) for group in range(3)]
    assert firsts == sorted(firsts) and adjusted_rand_score(kinds, found) == 1


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 1000), st.floats(0.01, 1000))
def test_groups_depend_neither_on_the_scale_nor_on_the_order(seed, scale):
    points, _ = clusters([60, 40, 15], [1, 0.5, 2], seed)
    order = np.random.default_rng(seed).permutation(len(points))
    found = grouped(points)
    assert adjusted_rand_score(found[order], grouped(points[order] * scale)) == 1


# --- outliers -------------------------------------------------------------------------------------


def test_sparsity_is_the_radius_by_the_usual_one_of_the_neighbours():
    points, _ = clusters([80, 60], [1, 0.2])
    found = nearest(points)
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)[:, 1:]
    radius = distances[:, RANK - 1]
    np.testing.assert_allclose(radii(found), radius, rtol=1e-5)
    for number, value in enumerate(sparsity(found, radius)):
        others = np.argsort(np.linalg.norm(points - points[number], axis=1))[1 : RANK + 1]
        assert value == pytest.approx(radius[number] / np.median(radius[others]), rel=1e-5)


def test_points_far_from_all_are_sparse_beside_a_dense_and_beside_a_loose_group():
    points, kinds = clusters([120, 120], [1.0, 0.1])
    far = np.stack([points[kinds == kind].mean(0) + 6 * spread for kind, spread in ((0, 1.0), (1, 0.1))])
    found = nearest(np.concatenate([points, far]))
    values = sparsity(found, radii(found))
    assert values[-2:].min() > 1.5 > np.percentile(values[:-2], 99)


def test_scans_without_neighbours_or_all_alike_are_not_sparse():
    alone = nearest(np.zeros((2, 3)))
    alone = among(alone, np.array([True, False]))
    assert np.isinf(radii(alone)).all() and sparsity(alone, radii(alone)).tolist() == [1, 1]
    same = nearest(np.ones((30, 3)))
    assert sparsity(same, radii(same)).tolist() == [1] * 30


def test_outliers_are_less_than_half_as_alike_as_usual():
    usual = np.array([[0.6, 0.7, 0.5], [0.8, 0.4, 0.6]])  # 0.6 each
    likeness = np.array([[0.29, 0.9, 0.0], [0.31, 0.9, 0.0], [np.nan] * 3, [np.nan, 0.1, 0.2], [0.1, 0.1, 0.9]])
    assert outliers(np.array([4, 6, 7, 9, 11]), likeness, usual).tolist() == [4, 9, 11]
    assert outliers(np.array([4]), likeness[:1], np.empty((0, 3))).tolist() == []
    assert outliers(np.array([4]), likeness[:1] / 10, usual / 10).tolist() == []  # of noise nothing is like anything


# --- duplicates -----------------------------------------------------------------------------------


def test_candidates_are_pairs_of_near_scans_once():
    found = Neighbours(
        np.array([[2, 1], [0, -1], [0, 1], [-1, -1]]), np.array([[1, 2], [2, np.inf], [1, 3], [np.inf] * 2], np.float32)
    )
    assert candidates(found).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert candidates(among(found, np.zeros(4, bool))).shape == (0, 2)


def test_of_copies_of_copies_the_first_scan_counts():
    assert first_copies(np.array([[1, 4], [4, 6], [2, 3]]), 8).tolist() == [0, 1, 2, 2, 1, 5, 1, 7]
    assert first_copies(np.empty((0, 2), np.int64), 3).tolist() == [0, 1, 2]
