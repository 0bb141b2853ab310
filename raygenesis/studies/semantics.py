"""What semantics add: each restoration task with and without them (paper Fig. 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from raygenesis.transfer.metrics import PRIMARY, case_scores
from raygenesis.transfer.results import Results, Trials
from raygenesis.transfer.seeds import SeededFigures, p_over_seeds
from raygenesis.transfer.statistics import Difference, corrected, difference_of, paired_by_subject, primary_figures
from raygenesis.workspace.manifest import Tree

# What a reader must know of the gains.
SEMANTICS_NOTE = (
    "A gain, and its p, are not of semantics alone. Tasks with semantics learn from patterns, cubes at some places in "
    "the most similar patients; those without learn from random crops of all training scans. And of as many cubes, "
    "tasks with semantics spend some on classification alone, which leaves fewer to restoration. Against "
    "models-genesis-on-patterns, which restores the same patterns without their labels, where cubes come from is the "
    "same: that gain is of the labels, less what fewer cubes to restore cost; against models-genesis it is of the "
    "places, the labels, the fewer cubes to restore and, where semantic-genesis is compared with it, the flips, which "
    "only the set of Models Genesis has."
)


@dataclass(frozen=True)
class Gain:
    """How a restoration task with semantics differs from the same without, after one number of labelled subjects.

    without, with_semantics: names of the two initialisations; mean_without, mean_with: of the figure `metric` over
    trials.
    """

    labelled: int | str
    without: str
    with_semantics: str
    metric: str
    mean_without: float
    mean_with: float
    difference: Difference

    def as_row(self) -> Tree:
        """A row of `semantics.csv`."""
        return {
            "labelled": self.labelled, "without": self.without, "with": self.with_semantics, "metric": self.metric,
            "mean without": self.mean_without, "mean with": self.mean_with, "gain": self.difference.difference,
            "g": self.difference.effect_size, "p trials": self.difference.p_holm,
            "p subjects": self.difference.p_subjects_holm, "p seeds": self.difference.p_seeds_holm,
        }  # fmt: skip


def gains(results: Results, task: str) -> list[Gain]:
    """The gain of each restoration task by semantics (paper Fig. 2; read `SEMANTICS_NOTE`).

    results: of one target, as `results_in` reads them. p-values are corrected by Holm's method within each number of
    labelled subjects.
    """
    return [gain for labelled, trials in results.items() for gain in _gains_at(labelled, trials, task)]


def _gains_at(labelled: int | str, trials: Mapping[str, Trials], task: str) -> list[Gain]:
    pairs = _pairs(trials)
    values = {name: primary_figures(task, trials[name]) for pair in pairs for name in pair}
    scores = {name: case_scores(task, [trial.test for trial in trials[name]]) for name in values}
    seeded = {name: SeededFigures.of(values[name], trials[name], is_random=False) for name in values}
    differences = corrected(
        {
            (without, semantic): replace(
                difference_of(
                    values[semantic], values[without], PRIMARY[task].sign,
                    paired_by_subject(scores[semantic], scores[without]),
                ),
                p_seeds=p_over_seeds(seeded[semantic], seeded[without]),
            )
            for without, semantic in pairs
        }
    )  # fmt: skip
    return [
        Gain(
            labelled, without, semantic, PRIMARY[task].name, float(values[without].mean()),
            float(values[semantic].mean()), difference,
        )
        for (without, semantic), difference in differences.items()
    ]  # fmt: skip


def _pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Initialisations without and with semantics; Semantic Genesis is Models Genesis with semantics.

    It is also compared with the same restoration on the same patterns.
    """
    names = list(names)
    pairs = [(name, f"{name}+semantics") for name in names if f"{name}+semantics" in names]
    if {"models-genesis", "semantic-genesis"} <= set(names) and "models-genesis+semantics" not in names:
        pairs.append(("models-genesis", "semantic-genesis"))
    if {"models-genesis-on-patterns", "semantic-genesis"} <= set(names):
        pairs.append(("models-genesis-on-patterns", "semantic-genesis"))
    return pairs
