"""What predicts fine-tuning, against SciPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raygenesis.studies.agreement import LearntTarget, agreements
from raygenesis.transfer.results import TrialResult
from raygenesis.workspace.artifacts import RUNS
from raygenesis.workspace.manifest_files import write_manifest
from raygenesis.workspace.workspace import Workspace
from tests.support.cases import write_run
from tests.support.trials import trials
from tests.support.workspaces import target_of

# Three initialisations of two pretrainings each, whose measures are those of their runs.
RUN_NAMES = {name: f"{name}-0,{name}-1" for name in ("a", "b", "c")}
RANKS = {"a-0": 3.0, "a-1": 9.0, "b-0": 5.0, "b-1": 4.0, "c-0": 12.0, "c-1": 11.0}
RETRIEVALS = {"a-0": 0.1, "a-1": 0.3, "b-0": 0.2, "b-1": None, "c-0": 0.9, "c-1": 0.8}
SCORES = {"a-0": 0.5, "a-1": 0.6, "b-0": 0.55, "b-1": 0.65, "c-0": 0.8, "c-1": 0.7}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.open(tmp_path)
    for run, rank in RANKS.items():
        write_run(made.run(run))
        manifest = RUNS.require(made.run(run))
        write_manifest(made.run(run), replace(manifest, effective_rank=rank, retrieval=RETRIEVALS[run]))
    return made


def of_run(scores: Mapping[str, float], metric: str, num_trials: int = 4) -> dict[str, list[TrialResult]]:
    """Trials that take a run's score, a little up and a little down; random weights have no run."""
    found = {"random": trials([0.1] * num_trials, metric)}
    for name in RUN_NAMES:
        values = [scores[f"{name}-{number % 2}"] + (0.01 if number < 2 else -0.01) for number in range(num_trials)]
        found[name] = [replace(each, source=each.trial % 2) for each in trials(values, metric)]
    return found


def target(
    scores: Mapping[str, float], metric: str = "dice", digest: str = "t", **changed: Any
) -> LearntTarget:  # fmt: skip
    task = {"dice": "segmentation", "mae": "regression"}[metric]
    facts = {"settings": {"finetune": {"mode": changed.pop("mode", "full")}}, "runs": RUN_NAMES, **changed}
    manifest = target_of(dict.fromkeys(("random", *RUN_NAMES), ""), task=task, inputs={"target": digest}, **facts)
    return LearntTarget(manifest, {5: of_run(scores, metric)})


def test_each_measure_is_correlated_over_the_runs_that_have_it(workspace: Workspace) -> None:
    retrieval, rank = agreements({"boxes": target(SCORES)}, workspace)
    assert (retrieval.measure, retrieval.num_runs, rank.measure, rank.num_runs) == (
        "anatomy retrieval", 5, "effective rank", 6,
    )  # fmt: skip
    runs = sorted(RANKS)
    expected = stats.spearmanr([RANKS[run] for run in runs], [SCORES[run] for run in runs]).statistic
    assert rank.correlation == pytest.approx(expected)
    known = [run for run in runs if RETRIEVALS[run] is not None]
    expected = stats.spearmanr([RETRIEVALS[run] for run in known], [SCORES[run] for run in known]).statistic
    assert retrieval.correlation == pytest.approx(expected)
    assert rank.as_row()["target"] == "boxes" and rank.as_row()["labelled"] == 5


def test_of_an_error_less_is_better(workspace: Workspace) -> None:
    plain, error = (agreements({"x": target(SCORES, metric)}, workspace)[1].correlation for metric in ("dice", "mae"))
    assert error == pytest.approx(-plain)


def test_a_probe_of_the_same_labels_is_a_measure_and_no_target(workspace: Workspace) -> None:
    probed = {run: score**2 for run, score in SCORES.items()}
    targets = {"full": target(SCORES), "probed": target(probed, mode="probe"), "other": target(SCORES, digest="u")}
    found = agreements(targets, workspace)
    assert {each.target for each in found} == {"full", "other"}
    (probe,) = [each for each in found if each.measure.startswith("probe")]
    assert (probe.target, probe.measure, probe.num_runs) == ("full", "probe (probed)", 6)
    assert probe.correlation == pytest.approx(1)


def test_fewer_than_five_runs_or_no_spread_are_not_correlated(workspace: Workspace) -> None:
    few = target(SCORES, runs={name: RUN_NAMES[name] for name in ("a", "b")})
    assert agreements({"boxes": few}, workspace) == []
    assert agreements({"boxes": target(dict.fromkeys(SCORES, 0.5))}, workspace) == []


def test_a_runs_score_is_the_mean_of_its_own_trials() -> None:
    found = target(SCORES).by_run()
    assert found == pytest.approx(SCORES)
    assert np.mean(list(found.values())) == pytest.approx(np.mean(list(SCORES.values())))
