"""Whether a difference of two initialisations would hold for other seeds of their pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raygenesis.transfer.results import Trials

# Differences this small are rounding: no spread, so no test.
NO_SPREAD = 1e-9


@dataclass(frozen=True)
class SeededFigures:
    """The primary figures of an initialisation's trials, [trials].

    sources: the number of the pretraining that each trial began with; None of random weights, which each trial draws
    anew: there each trial is a seed of its own.
    """

    values: NDArray[np.float64]
    sources: NDArray[np.int64] | None

    @classmethod
    def of(cls, values: NDArray[np.float64], trials: Trials, is_random: bool) -> SeededFigures:
        """The figures `values` of these trials."""
        return cls(values, None if is_random else np.array([trial.source for trial in trials]))

    @property
    def num_pretrainings(self) -> int:
        """0 of random weights."""
        return 0 if self.sources is None else len(set(self.sources.tolist()))

    @property
    def by_seed(self) -> list[NDArray[np.float64]]:
        """The figures of each seed's trials."""
        sources = np.arange(len(self.values)) if self.sources is None else self.sources
        return [self.values[sources == source] for source in np.unique(sources)]


def p_over_seeds(ours: SeededFigures, theirs: SeededFigures) -> float | None:
    """p of a difference over pretraining seeds and trials together, two-sided; None where a side has a single seed.

    What is compared are the means of each seed's trials: trials of one seed are not independent, their means are.

    - Of two pretrained initialisations by Student's t-test, which takes their seeds to vary equally: two or three means
      cannot tell otherwise. Simulated without a difference, with 10 trials and seeds that vary as much as trials, it
      rejects at p < 0.05 in 4.9 % (two seeds each) and 5.0 % (three), and in at most 10 % where one of them varies five
      times as much. Welch's test over trials, ignoring seeds, rejects in 30 and 21 %, a hierarchical bootstrap (seeds,
      then trials within) in 21 and 11 %, Welch's over means in 2.4 and 3.5 % with half the power. A linear mixed model
      with Satterthwaite's degrees of freedom is the same test where seeds have equally many trials.
    - Against random weights by Welch's, as their means are single trials; the variance of a mean is taken to be no less
      than trials within seeds imply, for two means may lie close by chance. It rejects in 5.1 % (two seeds) and 4.8 %
      (three), without that bound in 8.6 and 6.0 %; where seeds vary twice as much as trials in 9.1 and 5.9 %.

    The price is power: with two seeds a side a difference of four standard deviations between seeds is found every
    second time, with three nine times of ten.
    """
    sides = [ours.by_seed, theirs.by_seed]
    is_random = [each.sources is None for each in (ours, theirs)]
    if min(map(len, sides)) < 2 or all(is_random):
        return None
    means = [np.array([values.mean() for values in side]) for side in sides]
    if max(map(np.ptp, means)) <= NO_SPREAD:
        return None
    if not any(is_random):
        return float(stats.ttest_ind(*means).pvalue)
    deviations = [max(mean.var(ddof=1), _least_variance(side)) ** 0.5 for mean, side in zip(means, sides, strict=True)]
    moments = [(mean.mean(), deviation, len(mean)) for mean, deviation in zip(means, deviations, strict=True)]
    return float(stats.ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue)


def _least_variance(by_seed: Sequence[NDArray[np.float64]]) -> float:
    """The variance of the means of seeds that do not differ, by that of trials within seeds; 0 with a trial a seed."""
    num_within = sum(len(values) - 1 for values in by_seed)
    if num_within == 0:
        return 0.0
    within = sum(float(np.square(values - values.mean()).sum()) for values in by_seed) / num_within
    return within * float(np.mean([1 / len(values) for values in by_seed]))
