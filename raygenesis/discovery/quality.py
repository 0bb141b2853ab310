"""Whether discovery found anatomy that recurs: patterns of neighbours against those of random patients.

By a one-sided Mann-Whitney test (paper Fig. 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from raygenesis.workspace.manifest import Likeness, Quality, RankLikeness

PATIENTS_PER_GROUP = 8
NUM_RANDOM = 24
SIGNIFICANT = 0.05
FEW_PATIENTS = 10


def rank_groups(num_neighbours: int) -> list[tuple[int, int]]:
    """First and last rank of groups that double in width: 1–3, 4–7, 8–15 and so on, up to K - 1."""
    groups, first = [], 1
    width = 3
    while first < num_neighbours:
        groups.append((first, min(first + width, num_neighbours) - 1))
        first, width = first + width, 4 if width == 3 else 2 * width
    return groups


def sampled(ranks: tuple[int, int]) -> list[int]:
    """At most PATIENTS_PER_GROUP ranks of a group, evenly."""
    first, last = ranks
    return np.unique(np.linspace(first, last, min(PATIENTS_PER_GROUP, last - first + 1)).round().astype(int)).tolist()


def even_ranks(num_neighbours: int) -> list[int]:
    """At most NUM_RANDOM ranks of 1 to K - 1, evenly: what all neighbours are judged by."""
    count = min(NUM_RANDOM, num_neighbours - 1)
    return np.unique(np.linspace(1, num_neighbours - 1, count).round().astype(int)).tolist() if count else []


def sampled_ranks(num_neighbours: int) -> list[int]:
    """All ranks that are looked at: evenly, and of each group."""
    of_groups = [rank for ranks in rank_groups(num_neighbours) for rank in sampled(ranks)]
    return sorted({*even_ranks(num_neighbours), *of_groups})


def likeness(anchors: NDArray[np.float32], cubes: NDArray[np.float32]) -> tuple[float, float]:
    """Mean Pearson correlation of a patient's cubes [C, voxels] with the reference's [C, voxels].

    Of the same coordinate (within a class), and of different ones (between classes).
    """
    correlation = correlations(anchors, cubes)
    same = np.eye(len(anchors), dtype=bool)
    between = correlation[~same]
    return float(correlation[same].mean()), float(between.mean()) if between.size else 0.0


@dataclass(frozen=True)
class MeasuredVisit:
    """Likeness of one patient's patterns to a reference's. rank: of the neighbour; -1 of a random patient."""

    reference: int
    rank: int
    within: float
    between: float


def quality_of(visits: Sequence[MeasuredVisit], num_neighbours: int) -> Quality:
    """How alike the patterns of neighbours are, and of random patients.

    visits: one a patient and reference. The p-value is that of a one-sided Mann-Whitney test that neighbours are more
    alike within a class than random patients, after each reference's mean is taken off; None where there is nobody to
    compare with.
    """
    even = set(even_ranks(num_neighbours))
    near = [visit for visit in visits if visit.rank in even]
    random = [visit for visit in visits if visit.rank < 0]
    p_value = None
    if near and random:
        means = {
            number: np.mean([visit.within for visit in visits if visit.reference == number])
            for number in {visit.reference for visit in visits}
        }
        ours, theirs = ([visit.within - means[visit.reference] for visit in group] for group in (near, random))
        p_value = float(mannwhitneyu(ours, theirs, alternative="greater").pvalue)
    by_rank = tuple(
        RankLikeness(ranks=ranks, **vars(_likeness([visit for visit in visits if ranks[0] <= visit.rank <= ranks[1]])))
        for ranks in rank_groups(num_neighbours)
    )
    quality = Quality(neighbours=_likeness(near), random=_likeness(random), by_rank=by_rank, p_value=p_value)
    return replace(quality, warning=_warning(quality))


def _warning(quality: Quality) -> str | None:
    """What a user should know before spending GPU-days on these patterns, or None."""
    near, random = quality.neighbours, quality.random
    if quality.p_value is not None and quality.p_value > SIGNIFICANT:
        few = min(near.num_patients, random.num_patients)
        advice = "train the auto-encoder longer, lower discovery.num_neighbours or add scans"
        if few < FEW_PATIENTS:
            advice = f"{few} patients may be too few to decide; otherwise {advice}"
        return (
            "neighbours are not more similar than random patients: their patterns of a class correlate with the "
            f"reference's by {near.within:.3f}, random patients' by {random.within:.3f} (p = {quality.p_value:.2g}); "
            f"{advice}"
        )
    if near.within is not None and near.between is not None and near.within <= near.between:
        return (
            f"places are not distinguished: patterns of one class correlate by {near.within:.3f}, of different classes "
            f"by {near.between:.3f}; the scans may not show the same body part, or lie differently "
            "(discovery.alignment=rigid)"
        )
    return None


def _likeness(visits: Sequence[MeasuredVisit]) -> Likeness:
    within, between = [visit.within for visit in visits], [visit.between for visit in visits]
    return Likeness(
        num_patients=len(visits),
        values=tuple(within),
        within=float(np.mean(within)) if visits else None,
        between=float(np.mean(between)) if visits else None,
    )


def correlations(anchors: NDArray[np.float32], cubes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pearson's, of each of the anchors [m, voxels] with each of the cubes [n, voxels]: [m, n]; 0 of a flat cube."""
    return _standard(anchors) @ _standard(cubes).T


def _standard(cubes: NDArray[np.float32]) -> NDArray[np.float32]:
    cubes = cubes - cubes.mean(1, keepdims=True)
    return cubes / np.maximum(np.linalg.norm(cubes, axis=1, keepdims=True), 1e-9)
