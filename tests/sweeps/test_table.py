"""The table: seeds together, what was trained to the end first, failures last, and what it all cost."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raygenesis.errors import WorkspaceError
from raygenesis.sweeps.records import TrialRecord, read_trials, write_trial
from raygenesis.sweeps.table import costs, rank_points, seeds_note, trial_rows
from raygenesis.text.tables import as_csv
from raygenesis.workspace.files import read_json
from raygenesis.workspace.manifest import SweepCost, Tree


def trial(width: int, seed: int = 0, status: str = "whole", **fields: Any) -> TrialRecord:
    usual = {"epochs": 4, "patterns": 9, "seconds": 2.0, "cpu_seconds": 3.0, "gpu_seconds": 0.5, "loss": 1.0}
    return TrialRecord(point={"base_width": width}, seed=seed, status=status, **{**usual, **fields})


def rank(trials: Sequence[TrialRecord], objective: str) -> list[Tree]:
    return [point.flat() for point in rank_points(trials, objective)]


def note(trials: Sequence[TrialRecord], num_seeds: int) -> str:
    return seeds_note([point.spread for point in rank_points(trials, "retrieval")], num_seeds)


def test_points_are_ranked_by_the_mean_of_their_seeds() -> None:
    trials = [trial(2, 0, retrieval=0.5), trial(2, 1, retrieval=0.7), trial(4, 0, retrieval=0.9)]
    table = rank([*trials, trial(4, 1, retrieval=0.2)], "retrieval")
    assert [(row["rank"], row["base_width"]) for row in table] == [(1, 2), (2, 4)]
    assert table[0]["retrieval"] == pytest.approx(0.6) and table[0]["spread"] == pytest.approx(0.02**0.5)
    assert (table[0]["seconds"], table[0]["cpu_seconds"], table[0]["gpu_seconds"]) == (4.0, 6.0, 1.0)
    assert rank(trials[2:], "retrieval")[0]["spread"] is None


def test_a_loss_is_best_where_it_is_least() -> None:
    table = rank([trial(2, loss=0.3), trial(4, loss=0.1), trial(8, loss=None)], "loss")
    assert [row["base_width"] for row in table] == [4, 2, 8]


def test_stopped_points_come_after_whole_ones_and_failed_ones_last_without_a_rank() -> None:
    table = rank(
        [
            trial(2, status="failed", reason="no memory", epochs=None, patterns=None),
            trial(4, status="stopped", retrieval=0.95, reason="stopped at epoch 1"),
            trial(8, retrieval=0.1),
        ],
        "retrieval",
    )
    assert [(row["rank"], row["base_width"], row["note"]) for row in table] == [
        (1, 8, ""), (2, 4, "stopped at epoch 1"), (None, 2, "no memory"),
    ]  # fmt: skip
    assert table[2]["retrieval"] is None and table[2]["seconds"] == 2.0


def test_a_seed_that_failed_is_told_and_not_averaged() -> None:
    (row,) = rank([trial(2, 0, retrieval=0.5), trial(2, 1, status="failed", reason="killed")], "retrieval")
    assert (row["retrieval"], row["seeds"], row["status"], row["note"]) == (0.5, 1, "whole", "killed")


def test_points_stopped_before_their_target_was_tried_are_ranked_by_the_proxy() -> None:
    stopped = {"status": "stopped", "reason": "stopped at epoch 1"}
    table = rank(
        [trial(2, **stopped, retrieval=0.3), trial(4, **stopped, retrieval=0.4), trial(8, target=0.1, retrieval=0.1)],
        "target",
    )
    assert [row["base_width"] for row in table] == [8, 4, 2]
    assert table[0]["target"] == 0.1 and table[1]["target"] is None and table[1]["retrieval"] == 0.4


def test_costs_count_every_trial_and_say_what_was_in_vain() -> None:
    trials = [trial(2), trial(4, status="stopped"), trial(8, status="failed", cpu_seconds=None)]
    assert costs(trials) == SweepCost(
        seconds=6.0, cpu_seconds=6.0, gpu_seconds=1.5, stopped_seconds=2.0, failed_seconds=2.0
    )


def test_the_note_on_seeds_says_what_can_be_told_apart() -> None:
    one = [trial(2, retrieval=0.5)]
    assert "one seed" in note(one, 1) and "mean nothing" in note(one, 1)
    two = [trial(2, seed, retrieval=value) for seed, value in enumerate((0.4, 0.6))]
    # s.d. of 0.4 and 0.6 is 0.141; of a difference of two such means of two it is as much, and twice that 0.28.
    assert "is 0.141" in note(two, 2) and "less than about 0.28" in note(two, 2)
    assert "no point was twice" in note(one, 2)


def test_the_files_hold_every_column() -> None:
    trials = [trial(2, retrieval=0.5), trial(4, status="failed", reason='x, "y"', traceback="long")]
    rows = list(csv.DictReader(io.StringIO(as_csv(trial_rows(trials)))))
    assert rows[0]["base_width"] == "2" and rows[1]["reason"] == 'x, "y"' and "traceback" not in rows[0]
    assert rows[0]["reason"] == "" and rows[1]["cpu_seconds"] == "3.0"


def test_a_record_s_file_says_what_there_is_to_say(tmp_path: Path) -> None:
    """Its keys are those that readers of earlier versions know; JSON has no NaN."""
    write_trial(tmp_path, trial(2, retrieval=0.5, accuracy=math.nan))
    write_trial(tmp_path, TrialRecord(point={"base_width": 4}, seed=0, status="failed", reason="no", seconds=1.0))
    files = [read_json(path) for path in tmp_path.iterdir()]
    whole, failed = sorted(files, key=len, reverse=True)
    assert failed == {"point": {"base_width": 4}, "seed": 0, "status": "failed", "seconds": 1.0, "reason": "no"}
    assert list(whole) == [
        "point", "seed", "status", "retrieval", "rankme", "loss", "accuracy", "chance", "restoration", "patterns",
        "epochs", "seconds", "cpu_seconds", "gpu_seconds",
    ]  # fmt: skip
    assert whole["accuracy"] is None and {record.status for record in read_trials(tmp_path)} == {"whole", "failed"}
    next(tmp_path.iterdir()).write_text('{"point": {}, "status": "whole"}')
    with pytest.raises(WorkspaceError, match=r"trial-\w+\.json is damaged \(seed: field required\)"):
        read_trials(tmp_path)
