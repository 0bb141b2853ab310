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

from raygenesis.transfer.metrics import PRIMARY, of_subjects

# Differences this small are rounding: no spread, so no test.
NO_SPREAD = 1e-9
MOST_RESAMPLES, MOST_NUMBERS = 9999, 2 * 10**7
CONFIDENCE = 0.95
RANDOM = "random"

Trials = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Against:
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

    low, high: confidence interval (95 %, Student's t) of the mean over trials. figures: means of all figures. The best
    initialisation has no `against_best`, random weights no `against_random`.
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
    against_random: Against | None = None
    against_best: Against | None = None
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
        none = asdict(Against(0.0, None, None, None))
        for name in ("against_random", "against_best"):
            row |= {f"{key}_{name}": (parts[name] or dict.fromkeys(none))[key] for key in none}
        return row | {f"mean_{key}": value for key, value in parts["figures"].items()}


def compare(results: Mapping[str, Trials], task: str, labelled: int | str) -> list[Comparison]:
    """One row per initialisation, in the order given.

    results: per initialisation its trials, each with `figures`, `test` (cases as `metrics.figures` takes them),
    `seconds`, `epochs_to_converge` and `seconds_to_converge`, in the same order of seeds.
    """
    primary = PRIMARY[task]
    values = {name: np.array([trial["figures"][primary.name] for trial in trials]) for name, trials in results.items()}
    best = max(values, key=lambda name: primary.sign * values[name].mean())
    told = {name: of_subjects(task, [trial["test"] for trial in trials]) for name, trials in results.items()}

    def against(other: str) -> dict[str, Against]:
        found = {}
        for name in results:
            if other in results and name != other:
                p_subjects = _over_subjects(told[name], told[other])
                found[name] = _over_trials(values[name], values[other], primary.sign, p_subjects)
        return _corrected(found)

    to_random, to_best = against(RANDOM), against(best)
    rows = []
    for name, trials in results.items():
        mean, sd, count = float(values[name].mean()), float(values[name].std(ddof=1)), len(trials)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * sd / count**0.5
        means = {key: float(np.mean([trial["figures"][key] for trial in trials])) for key in trials[0]["figures"]}
        rows.append(
            Comparison(
                name, labelled, count, primary.name, mean, sd, mean - half, mean + half, name == best,
                _mean(trials, "seconds"), _mean(trials, "epochs_to_converge"), _mean(trials, "seconds_to_converge"),
                to_random.get(name), to_best.get(name), means,
            )
        )  # fmt: skip
    return rows


def semantics_of(results: Mapping[int | str, Mapping[str, Trials]], task: str) -> list[dict[str, Any]]:
    """What semantics add to each restoration task that was compared with and without (paper Fig. 2).

    results: by the number of labelled subjects, by initialisation. p-values are corrected by Holm within each number.
    """
    primary = PRIMARY[task]
    rows = []
    for labelled, starts in results.items():
        pairs = [(name, f"{name}+semantics") for name in starts if f"{name}+semantics" in starts]
        if "models-genesis" in starts and "models-genesis+semantics" not in starts and "semantic-genesis" in starts:
            pairs.append(("models-genesis", "semantic-genesis"))
        found = {}
        for without, with_semantics in pairs:
            figures = [
                np.array([trial["figures"][primary.name] for trial in starts[name]])
                for name in (with_semantics, without)
            ]
            told = [of_subjects(task, [trial["test"] for trial in starts[name]]) for name in (with_semantics, without)]
            found[without, with_semantics] = (figures, _over_trials(*figures, primary.sign, _over_subjects(*told)))
        corrected = _corrected({pair: row for pair, (_, row) in found.items()})
        for (without, with_semantics), (figures, _) in found.items():
            row = corrected[without, with_semantics]
            rows.append(
                {
                    "labelled": labelled, "without": without, "with": with_semantics, "metric": primary.name,
                    "mean without": float(figures[1].mean()), "mean with": float(figures[0].mean()),
                    "gain": row.difference, "g": row.effect_size, "p trials": row.p_holm,
                    "p subjects": row.p_subjects_holm,
                }
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


def paired_by_subject(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], values: NDArray[Any] | None, seed: int = 0
) -> float | None:
    """p of a two-sided permutation test that exchanges two initialisations' answers subject by subject.

    ours, theirs: [subjects] figures whose mean is compared, or, with `values`, answers [subjects, classes] whose mean
    AUC is. None where they answer alike.
    """
    if np.abs(ours - theirs).max() <= NO_SPREAD:
        return None
    num_resamples = min(MOST_RESAMPLES, max(99, MOST_NUMBERS // ours.size))
    swaps = np.random.default_rng(seed).random((num_resamples, len(ours))) < 0.5
    swaps[0] = False  # the first is what was observed
    if values is None:
        differences = np.where(swaps, -1, 1) @ (ours - theirs) / len(ours)
    else:
        differences = np.zeros(num_resamples)
        columns = _positives(values, ours.shape[1])
        for positive, number in columns:
            first = np.where(swaps, theirs[:, number], ours[:, number])
            second = np.where(swaps, ours[:, number], theirs[:, number])
            differences += (aucs(positive, first) - aucs(positive, second)) / len(columns)
    observed = abs(differences[0])
    # The observed one counts as one of those that are possible.
    return float((np.abs(differences) >= observed - NO_SPREAD).mean())


def aucs(positive: NDArray[np.bool_], answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas under the ROC curves of answers [..., n] about n subjects, by ranks."""
    ranks = stats.rankdata(answers, axis=-1)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    return (ranks[..., positive].sum(-1) - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def _positives(values: NDArray[Any], num_classes: int) -> list[tuple[NDArray[np.bool_], int]]:
    """Which subjects are of a class, and its number, of every class whose AUC counts."""
    if values.ndim == 2:
        each = [(values[:, number] > 0, number) for number in range(num_classes)]
    elif num_classes == 2:
        each = [(values == 1, 1)]
    else:
        each = [(values == number, number) for number in range(num_classes)]
    return [(positive, number) for positive, number in each if positive.any() and not positive.all()]


def _over_subjects(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> float | None:
    names, told, values = ours
    if names != theirs[0] or len(names) < 2:
        return None
    return paired_by_subject(told, theirs[1], values)


def _over_trials(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], sign: int, p_subjects: float | None
) -> Against:
    difference = sign * float(ours.mean() - theirs.mean())
    if max(np.ptp(ours), np.ptp(theirs)) <= NO_SPREAD:
        return Against(difference, None, None, p_subjects)
    moments = ((values.mean(), values.std(ddof=1), len(values)) for values in (ours, theirs))
    p = float(stats.ttest_ind_from_stats(*next(moments), *next(moments), equal_var=False).pvalue)
    degrees = len(ours) + len(theirs) - 2
    squares = (len(ours) - 1) * ours.var(ddof=1) + (len(theirs) - 1) * theirs.var(ddof=1)
    cohen = difference / (squares / degrees) ** 0.5
    return Against(difference, float(cohen * (1 - 3 / (4 * degrees - 1))), p, p_subjects)


def _corrected(found: Mapping[Any, Against]) -> dict[Any, Against]:
    pairs = zip(
        found.items(), holm([row.p for row in found.values()]), holm([row.p_subjects for row in found.values()]),
        strict=True,
    )  # fmt: skip
    return {
        name: Against(row.difference, row.effect_size, row.p, row.p_subjects, p_holm, p_subjects_holm)
        for (name, row), p_holm, p_subjects_holm in pairs
    }


def _mean(trials: Trials, key: str) -> float | None:
    values = [trial[key] for trial in trials if trial[key] is not None]
    return float(np.mean(values)) if values else None
