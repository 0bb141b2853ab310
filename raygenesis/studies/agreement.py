"""What predicts fine-tuning: how well measures that need none agree with it over the runs of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from raygenesis.transfer.initialisations import SEPARATOR
from raygenesis.transfer.metrics import PRIMARY
from raygenesis.transfer.results import Results
from raygenesis.transfer.split import most_labelled
from raygenesis.transfer.statistics import primary_figures
from raygenesis.workspace.artifacts import RUNS
from raygenesis.workspace.manifest import TransferManifest, Tree
from raygenesis.workspace.workspace import Workspace

# With fewer runs a correlation says nothing.
FEWEST_RUNS = 5

# The mode of fine-tuning that is a measure itself, of targets with the same labels.
PROBE = "probe"

AGREEMENT_NOTE = (
    "What predicts fine-tuning: Spearman's correlation, over pretraining runs, of a measure that needs no fine-tuning "
    "with the mean score of the run's trials with the most labelled subjects; positive where a higher measure goes "
    "with a better score. Few runs show little: without any relation, one in twenty correlations of ten runs is beyond "
    "0.65 in either direction; of five runs, only 1 and -1 are as rare."
)


@dataclass(frozen=True)
class LearntTarget:
    """A finished target and its trials."""

    manifest: TransferManifest
    results: Results

    @property
    def labelled(self) -> int | str:
        """The most labelled subjects, as `finetune.num_labelled` has it."""
        return most_labelled(self.manifest.extent.num_labelled, self.manifest.counts.pool_subjects)

    @property
    def is_probe(self) -> bool:
        """Whether nothing was fine-tuned, and its scores are measures."""
        return self.manifest.settings.get("finetune", {}).get("mode") == PROBE

    def by_run(self) -> dict[str, float]:
        """The score, the higher the better, of each of the workspace's runs: a mean over its trials."""
        task, found = self.manifest.task, {}
        for name, trials in self.results[self.labelled].items():
            for source, run in enumerate(self.manifest.runs.get(name, "").split(SEPARATOR)):
                own = [trial for trial in trials if trial.source == source]
                if run and own:
                    found[run] = PRIMARY[task].sign * float(primary_figures(task, own).mean())
        return found


@dataclass(frozen=True)
class Agreement:
    """How a measure agrees with fine-tuning on a target. correlation: Spearman's over runs; num_runs: of these."""

    target: str
    labelled: int | str
    measure: str
    num_runs: int
    correlation: float

    def as_row(self) -> Tree:
        """A row of the table."""
        return {
            "target": self.target, "labelled": self.labelled, "measure": self.measure, "runs": self.num_runs,
            "Spearman correlation": self.correlation,
        }  # fmt: skip


def agreements(targets: Mapping[str, LearntTarget], workspace: Workspace) -> list[Agreement]:
    """How anatomy retrieval, effective rank and probes on the same labels agree with fine-tuning, target by target.

    Only measures that at least five runs have, and that vary among these.
    """
    runs = {run for target in targets.values() for run in target.by_run()}
    manifests = {run: manifest for run in sorted(runs) if (manifest := RUNS.read(workspace.run(run)))}
    known: dict[str, dict[str, float]] = {
        "anatomy retrieval": {run: each.retrieval for run, each in manifests.items() if each.retrieval is not None},
        "effective rank": {run: each.effective_rank for run, each in manifests.items()},
    }
    found = []
    for title, target in targets.items():
        if target.is_probe:
            continue
        same = target.manifest.inputs.get("target")
        probes = {
            f"probe ({name})": other.by_run()
            for name, other in targets.items()
            if other.is_probe and other.manifest.inputs.get("target") == same
        }
        scores = target.by_run()
        for measure, values in (known | probes).items():
            both = sorted(scores.keys() & values.keys())
            x, y = ([each[run] for run in both] for each in (values, scores))
            if len(both) >= FEWEST_RUNS and np.ptp(x) and np.ptp(y):
                correlation = float(stats.spearmanr(x, y).statistic)
                found.append(Agreement(title, target.labelled, measure, len(both), correlation))
    return found
