"""Comparing initialisations: means, deviations, intervals, effect sizes, and tests over trials and over subjects.

Over trials: the independent two-sample t-test (paper section 3) in Welch's form, which does not suppose equal spread.
Over subjects: a paired permutation test on what trials say of each test subject on average; it asks whether the
difference holds for other subjects, which trials that share a test set cannot tell. Both are corrected by Holm for the
number of initialisations that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raygenesis.transfer.metrics import PRIMARY, CaseScores, case_scores, positives

# Differences this small are rounding: no spread, so no test.
NO_SPREAD = 1e-9
NUM_RESAMPLES, FEWER_RESAMPLES = 9999, 1999
MANY_CASES = 5000  # of more, fewer resamples
MOST_NUMBERS = 2 * 10**6  # at once
CONFIDENCE = 0.95
RANDOM = "random"


Trials = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """A comparison with another initialisation.

    difference: of the means of the primary figure, positive where the other is worse. effect_size: Hedges' g, likewise.
    p: over trials; p_subjects: over test subjects; each also corrected by Holm. None where nothing varies.
    """

    difference: float
    effect_size: float | None
    p: float | None
    p_subjects: float | None
    p_holm: float | None = None
    p_subjects_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One initialisation over its trials of one number of labelled subjects. Deviations are a sample's (n − 1).

    low, high: confidence interval (95 %, Student's t) of the mean over trials, within what the figure can be. figures:
    means of all figures. The best initialisation has no `against_best`, random weights no `against_random`.
    """

    initialisation: str
    labelled: int | str
    trials: int
    metric: str
    mean: float
    sd: float
    low: float
    high: float
    is_best: bool
    seconds_per_trial: float
    epochs_to_converge: float | None
    seconds_to_converge: float | None
    against_random: Difference | None = None
    against_best: Difference | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_like_best(self) -> bool:
        """Whether it is the best, or cannot be told from it at p < 0.05 over trials (paper Table 2)."""
        best = self.against_best
        if self.is_best or best is None:
            return True
        return abs(best.difference) <= NO_SPREAD if best.p is None else best.p >= 1 - CONFIDENCE

    def flat(self) -> dict[str, Any]:
        """A row of a table: nested figures with their names joined by underscores."""
        row = asdict(self)
        parts = {name: row.pop(name) for name in ("against_random", "against_best", "figures")}
        none = asdict(Difference(0.0, None, None, None))
        for name in ("against_random", "against_best"):
            row |= {f"{key}_{name}": (parts[name] or dict.fromkeys(none))[key] for key in none}
        return row | {f"mean_{key}": value for key, value in parts["figures"].items()}


def compare_initialisations(
    results: Mapping[str, Trials], task: str, labelled: int | str, randoms: Mapping[str, str]
) -> list[Comparison]:
    """One row per initialisation, in the order given.

    results: per initialisation its trials, each with `figures`, `test` (cases as `metrics.figures` takes them),
    `seconds`, `epochs_to_converge` and `seconds_to_converge`, in the same order of seeds. randoms: the name of the
    random weights that each is compared with, where there are any.
    """
    primary = PRIMARY[task]
    values = {name: np.array([trial["figures"][primary.name] for trial in trials]) for name, trials in results.items()}
    best = max(values, key=lambda name: primary.sign * values[name].mean())
    told = {name: case_scores(task, [trial["test"] for trial in trials]) for name, trials in results.items()}

    def against(others: Mapping[str, str]) -> dict[str, Difference]:
        found = {}
        for name, other in others.items():
            if name in results and other in results and name != other:
                p_subjects = paired_by_subject(told[name], told[other])
                found[name] = _over_trials(values[name], values[other], primary.sign, p_subjects)
        return _corrected(found)

    to_random, to_best = against(randoms), against(dict.fromkeys(results, best))
    rows = []
    for name, trials in results.items():
        mean, sd, count = float(values[name].mean()), float(values[name].std(ddof=1)), len(trials)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * sd / count**0.5
        seconds = float(np.mean([trial["seconds"] for trial in trials]))
        means = {key: float(np.mean([trial["figures"][key] for trial in trials])) for key in trials[0]["figures"]}
        rows.append(
            Comparison(
                name, labelled, count, primary.name, mean, sd, max(0.0, mean - half), min(primary.most, mean + half),
                name == best,
                seconds, _mean(trials, "epochs_to_converge"), _mean(trials, "seconds_to_converge"),
                to_random.get(name), to_best.get(name), means,
            )
        )  # fmt: skip
    return rows


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction for so many tests; None stays None and is no test."""
    order = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, number) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[number] = highest
    return corrected


def paired_by_subject(ours: CaseScores, theirs: CaseScores, seed: int = 0) -> float | None:
    """p of a two-sided permutation test that exchanges two initialisations' answers, all of a subject together.

    The mean over cases is compared, or the mean AUC; there, before the exchange, each initialisation's answers give way
    to their ranks, which their AUC is made of. None where they answer alike, or about other cases.
    """
    names, subject_of = np.unique(ours.subjects, return_inverse=True)
    if ours.subjects != theirs.subjects or len(names) < 2 or np.abs(ours.told - theirs.told).max() <= NO_SPREAD:
        return None
    num_resamples = NUM_RESAMPLES if len(subject_of) <= MANY_CASES else FEWER_RESAMPLES
    swaps = np.random.default_rng(seed).random((num_resamples, len(names))) < 0.5
    swaps[0] = False  # the first is what was observed
    chunks = np.array_split(swaps, -(-len(swaps) * len(subject_of) // MOST_NUMBERS))
    differences = np.concatenate([_differences(ours, theirs, chunk[:, subject_of]) for chunk in chunks])
    # The observed one counts as one of those that are possible.
    return float((np.abs(differences) >= abs(differences[0]) - NO_SPREAD).mean())


def aucs(positive: NDArray[np.bool_], ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas under the ROC curves [m] of answers [m, n] about n cases: multiples of ½ from 1 to n, as ranks are.

    By counting: sorting each row anew would take ten times as long.
    """
    places = np.rint(2 * ranks).astype(np.int64)
    num_rows, width = len(places), 2 * places.shape[1] + 1
    offsets = np.arange(num_rows)[:, None] * width
    negatives = np.bincount((places[:, ~positive] + offsets).ravel(), minlength=num_rows * width).reshape(-1, width)
    at = places[:, positive]
    below = np.take_along_axis(negatives.cumsum(1), at - 1, 1)
    won = below + np.take_along_axis(negatives, at, 1) / 2
    return won.sum(1) / (positive.sum() * (~positive).sum())


def _differences(ours: CaseScores, theirs: CaseScores, swaps: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of the primary figures, [m], after each exchange of cases [m, cases]."""
    if ours.values is None:
        return np.where(swaps, -1, 1) @ (ours.told - theirs.told) / len(ours.told)
    found = np.zeros(len(swaps))
    counted = positives(ours.values, ours.told.shape[1])
    both = {number: positive for number, positive in counted.items() if 0 < positive.sum() < len(positive)}
    for number, positive in both.items():
        first, second = (stats.rankdata(one.told[:, number]) for one in (ours, theirs))
        found += aucs(positive, np.where(swaps, second, first)) - aucs(positive, np.where(swaps, first, second))
    return found / len(both)


def _over_trials(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], sign: int, p_subjects: float | None
) -> Difference:
    difference = sign * float(ours.mean() - theirs.mean())
    if max(np.ptp(ours), np.ptp(theirs)) <= NO_SPREAD:
        return Difference(difference, None, None, p_subjects)
    moments = ((values.mean(), values.std(ddof=1), len(values)) for values in (ours, theirs))
    p = float(stats.ttest_ind_from_stats(*next(moments), *next(moments), equal_var=False).pvalue)
    degrees = len(ours) + len(theirs) - 2
    squares = (len(ours) - 1) * ours.var(ddof=1) + (len(theirs) - 1) * theirs.var(ddof=1)
    cohen = difference / (squares / degrees) ** 0.5
    return Difference(difference, float(cohen * (1 - 3 / (4 * degrees - 1))), p, p_subjects)


def _corrected(found: Mapping[Any, Difference]) -> dict[Any, Difference]:
    pairs = zip(
        found.items(), holm([row.p for row in found.values()]), holm([row.p_subjects for row in found.values()]),
        strict=True,
    )  # fmt: skip
    return {
        name: Difference(row.difference, row.effect_size, row.p, row.p_subjects, p_holm, p_subjects_holm)
        for (name, row), p_holm, p_subjects_holm in pairs
    }


def _mean(trials: Trials, key: str) -> float | None:
    values = [trial[key] for trial in trials if trial[key] is not None]
    return float(np.mean(values)) if values else None
