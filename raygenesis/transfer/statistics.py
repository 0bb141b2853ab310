"""Comparing initialisations: means, deviations, intervals, effect sizes, and tests over trials and over subjects.

Over trials: the independent two-sample t-test (paper section 3) in Welch's form, which does not assume equal variances.
Over subjects: a paired permutation test on the scores of each test subject, averaged over trials; it asks whether the
difference holds for other subjects, which trials that share a test set cannot show. Over seeds, where initialisations
have several pretrainings: `seeds.py`. All are corrected by Holm's method for the number of initialisations that are
compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raygenesis.settings.streams import RESAMPLES
from raygenesis.transfer.curves import NO_CURVES, steps_to_random
from raygenesis.transfer.metrics import PRIMARY, CaseScores, case_scores, positives
from raygenesis.transfer.results import Trials
from raygenesis.transfer.seeds import NO_SPREAD, SeededFigures, p_over_seeds
from raygenesis.workspace.manifest import Tree

NUM_RESAMPLES, FEWER_RESAMPLES = 9999, 1999
MANY_CASES = 5000  # of more, fewer resamples
MAX_NUMBERS = 2 * 10**6  # of numbers that are held in memory at a time
CONFIDENCE = 0.95

Key = TypeVar("Key")


@dataclass(frozen=True)
class Difference:
    """Difference of one initialisation from another.

    difference: of the means of the primary figure, positive where the other is worse. effect_size: Hedges' g, with the
    same sign. p: over trials; p_subjects: over test subjects; p_seeds: over pretraining seeds and trials together, None
    where either side has a single one; p_holm, p_subjects_holm, p_seeds_holm: corrected by Holm's method. None where
    nothing varies.
    """

    difference: float
    effect_size: float | None
    p: float | None
    p_subjects: float | None
    p_holm: float | None = None
    p_subjects_holm: float | None = None
    p_seeds: float | None = None
    p_seeds_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One initialisation over its trials of one number of labelled subjects. Deviations are a sample's (n − 1).

    low, high: confidence interval (95 %, Student's t) of the mean over trials, within what the figure can be. figures:
    means of all figures. The best initialisation has no `against_best`, random weights no `against_random`.
    pretrainings: that trials began with, 0 of random weights. steps_to_score: mean number of steps to 90 % of random
    weights' final validation score over those trials, num_reaching, that reach it; None without curves. rate: the
    learning rate, where it was chosen from a grid.
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
    pretrainings: int = 1
    steps_to_score: float | None = None
    num_reaching: int | None = None
    rate: float | None = None

    @property
    def is_like_best(self) -> bool:
        """Whether it is the best, or does not differ from it at p < 0.05 over trials (paper Table 2)."""
        best = self.against_best
        if self.is_best or best is None:
            return True
        return abs(best.difference) <= NO_SPREAD if best.p is None else best.p >= 1 - CONFIDENCE

    def as_row(self) -> Tree:
        """A row of a table: names of nested figures are joined by underscores, as in `p_against_best`, `mean_dice`."""
        row = asdict(self)
        nested = {name: row.pop(name) for name in ("against_random", "against_best", "figures")}
        for name in ("against_random", "against_best"):
            row |= {f"{part.name}_{name}": (nested[name] or {}).get(part.name) for part in fields(Difference)}
        return row | {f"mean_{name}": figure for name, figure in nested["figures"].items()}

    @classmethod
    def from_row(cls, row: Tree) -> Comparison:
        """The comparison of which `row` is the `as_row`."""
        figures = {name.removeprefix("mean_"): figure for name, figure in row.items() if name.startswith("mean_")}
        plain = {part.name: row[part.name] for part in fields(cls) if part.name in row}
        random, best = (_difference_in(row, name) for name in ("against_random", "against_best"))
        return cls(**plain, against_random=random, against_best=best, figures=figures)


def _difference_in(row: Tree, name: str) -> Difference | None:
    """The difference that a row of `Comparison.as_row` holds under a name."""
    parts = {part.name: row.get(f"{part.name}_{name}") for part in fields(Difference)}
    return None if parts["difference"] is None else Difference(**parts)  # type: ignore[arg-type] # checked


def compare_initialisations(
    results: Mapping[str, Trials], task: str, labelled: int | str, randoms: Mapping[str, str]
) -> list[Comparison]:
    """One row per initialisation, in the order given.

    results: the trials of each initialisation, all in the same order of seeds. randoms: by initialisation the name of
    the random weights that it is compared with, where there are any.
    """
    primary = PRIMARY[task]
    values = {name: primary_figures(task, trials) for name, trials in results.items()}
    seeded = {
        name: SeededFigures.of(values[name], trials, name in randoms.values()) for name, trials in results.items()
    }
    steps = steps_to_random(results, task, randoms)
    best = max(values, key=lambda name: primary.sign * values[name].mean())
    scores = {name: case_scores(task, [trial.test for trial in trials]) for name, trials in results.items()}

    def differences(others: Mapping[str, str]) -> dict[str, Difference]:
        found = {}
        for name, other in others.items():
            if name in results and other in results and name != other:
                p_subjects = paired_by_subject(scores[name], scores[other])
                difference = difference_of(values[name], values[other], primary.sign, p_subjects)
                found[name] = replace(difference, p_seeds=p_over_seeds(seeded[name], seeded[other]))
        return corrected(found)

    against_random, against_best = differences(randoms), differences(dict.fromkeys(results, best))
    rows = []
    for name, trials in results.items():
        mean, sd, count = float(values[name].mean()), float(values[name].std(ddof=1)), len(trials)
        reaching = steps.get(name, NO_CURVES)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * sd / count**0.5
        rows.append(
            Comparison(
                name, labelled, count, primary.name, mean, sd, max(0.0, mean - half), min(primary.most, mean + half),
                name == best, float(np.mean([trial.seconds for trial in trials])),
                _mean([trial.epochs_to_converge for trial in trials]),
                _mean([trial.seconds_to_converge for trial in trials]),
                against_random.get(name), against_best.get(name),
                {key: float(np.mean([trial.figures[key] for trial in trials])) for key in trials[0].figures},
                pretrainings=seeded[name].num_pretrainings, steps_to_score=reaching.mean,
                num_reaching=reaching.num_reaching, rate=trials[0].rate,
            )
        )  # fmt: skip
    return rows


def primary_figures(task: str, trials: Trials) -> NDArray[np.float64]:
    """The primary figure of each trial, [trials]."""
    return np.array([trial.figures[PRIMARY[task].name] for trial in trials])


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected by Holm's method for their number; None stays None and does not count as a test."""
    order = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, number) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[number] = highest
    return corrected


def paired_by_subject(ours: CaseScores, theirs: CaseScores, seed: int = 0) -> float | None:
    """p-value of a two-sided permutation test that exchanges two initialisations' scores, all of a subject together.

    The mean over cases is compared, or the mean AUC; there each initialisation's answers are replaced, before the
    exchange, by their ranks, from which an AUC is computed. None where the scores are alike, or of other cases.
    """
    names, subject_of = np.unique(ours.subjects, return_inverse=True)
    if ours.subjects != theirs.subjects or len(names) < 2 or np.abs(ours.scores - theirs.scores).max() <= NO_SPREAD:
        return None
    num_resamples = NUM_RESAMPLES if len(subject_of) <= MANY_CASES else FEWER_RESAMPLES
    swaps = RESAMPLES.generator(seed).random((num_resamples, len(names))) < 0.5
    swaps[0] = False  # the first is what was observed
    chunks = np.array_split(swaps, -(-len(swaps) * len(subject_of) // MAX_NUMBERS))
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
        return np.where(swaps, -1, 1) @ (ours.scores - theirs.scores) / len(ours.scores)
    found = np.zeros(len(swaps))
    counted = positives(ours.values, ours.scores.shape[1])
    both = {number: positive for number, positive in counted.items() if 0 < positive.sum() < len(positive)}
    for number, positive in both.items():
        first, second = (stats.rankdata(one.scores[:, number]) for one in (ours, theirs))
        found += aucs(positive, np.where(swaps, second, first)) - aucs(positive, np.where(swaps, first, second))
    return found / len(both)


def difference_of(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], sign: int, p_subjects: float | None
) -> Difference:
    """Difference of two initialisations by the primary figures of their trials, not yet corrected.

    sign: of the figure, as `Primary` has it. p_subjects: as `paired_by_subject` found it.
    """
    difference = sign * float(ours.mean() - theirs.mean())
    if max(np.ptp(ours), np.ptp(theirs)) <= NO_SPREAD:
        return Difference(difference, None, None, p_subjects)
    moments = ((values.mean(), values.std(ddof=1), len(values)) for values in (ours, theirs))
    p = float(stats.ttest_ind_from_stats(*next(moments), *next(moments), equal_var=False).pvalue)
    degrees = len(ours) + len(theirs) - 2
    squares = (len(ours) - 1) * ours.var(ddof=1) + (len(theirs) - 1) * theirs.var(ddof=1)
    cohen = difference / (squares / degrees) ** 0.5
    return Difference(difference, float(cohen * (1 - 3 / (4 * degrees - 1))), p, p_subjects)


def corrected(differences: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """The same differences with their p-values corrected by Holm's method for the number of differences."""
    p_holm = holm([each.p for each in differences.values()])
    p_subjects_holm = holm([each.p_subjects for each in differences.values()])
    p_seeds_holm = holm([each.p_seeds for each in differences.values()])
    every = zip(differences.items(), p_holm, p_subjects_holm, p_seeds_holm, strict=True)
    return {
        key: replace(each, p_holm=p, p_subjects_holm=p_subjects, p_seeds_holm=p_seeds)
        for (key, each), p, p_subjects, p_seeds in every
    }


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None
