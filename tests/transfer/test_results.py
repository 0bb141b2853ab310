"""A target's trials: what is compared of those that are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raygenesis.errors import WorkspaceError
from raygenesis.transfer.metrics import AnsweredCase, SegmentedCase
from raygenesis.transfer.results import TrialResult, read_result, result_path, results_in, write_result
from raygenesis.workspace.manifest import Extent


def test_what_was_compared_before_is_left_out_and_without_an_extent_nothing_is(tmp_path: Path) -> None:
    for start in ("ours", "random"):
        for labelled in (5, "10%"):
            for number in (10, 2, 0):
                figures = {"dice": 0.5}
                trial = TrialResult(initialisation=start, labelled=labelled, trial=number, figures=figures, seconds=1.0)
                write_result(tmp_path, trial)
    everything = results_in(tmp_path, None)
    assert {labelled: set(starts) for labelled, starts in everything.items()} == {
        5: {"ours", "random"}, "10%": {"ours", "random"},
    }  # fmt: skip
    assert [trial.trial for trial in everything[5]["ours"]] == [0, 2, 10]
    extent = Extent(initialisations={"random": "", "ours": "", "lost": ""}, num_labelled=(5,), num_trials=3)
    compared = results_in(tmp_path, extent)
    assert list(compared) == [5] and list(compared[5]) == ["random", "ours"]
    assert [trial.trial for trial in compared[5]["ours"]] == [0, 2]


SEGMENTED = SegmentedCase("a/b.nii", "b", 0.5, 0.25, [0.5], [0.25], [1], [2], [2])
ANSWERED = (
    AnsweredCase("c", "c", (0, 1), [0.25, 0.75]),
    AnsweredCase("d", "d", 1.5, 2.5),
    AnsweredCase("e", "e", 1, 0.5),
)


@pytest.mark.parametrize("test", [(SEGMENTED,), ANSWERED])
def test_a_result_comes_back_as_it_was_written(tmp_path: Path, test: tuple[SegmentedCase | AnsweredCase, ...]) -> None:
    result = TrialResult(
        key="k", initialisation="ours", labelled="10%", trial=1, seed=3, subjects=2, figures={"auc": 0.75}, seconds=1.5,
        steps=2, loss=0.5, rate=0.003, source=1, curve=((1, 0.25), (2, 0.5)), learnt_from=("x", "y"), test=test,
    )  # fmt: skip
    write_result(tmp_path, result)
    path = result_path(tmp_path, "ours", "10%", 1)
    assert read_result(path) == result and path.name == "trial-ours-10percent-1.json"
    assert [type(case.value) for case in read_result(path).test if isinstance(case, AnsweredCase)] == [
        type(case.value) for case in test if isinstance(case, AnsweredCase)
    ]
    assert list(json.loads(path.read_text())) == [
        "key", "initialisation", "source", "labelled", "trial", "seed", "subjects", "figures", "seconds",
        "epochs_to_converge", "seconds_to_converge", "steps", "loss", "rate", "curve", "learnt_from", "test",
    ]  # fmt: skip


def test_tuning_trials_are_no_trials_of_the_table(tmp_path: Path) -> None:
    for rate in (0.001, 1e-5):
        tried = TrialResult(initialisation="a", labelled="10%", trial=1, figures={"dice": 0.5}, seconds=1.0, rate=rate)
        write_result(tmp_path, tried, tunes=True)
        assert read_result(result_path(tmp_path, "a", "10%", 1, rate)) == tried
    assert {path.name for path in tmp_path.iterdir()} == {
        "tuning-a-10percent-0.001-1.json", "tuning-a-10percent-1e-05-1.json",
    }  # fmt: skip
    assert results_in(tmp_path, None) == {}


def test_a_damaged_result_is_one_sentence(tmp_path: Path) -> None:
    assert read_result(tmp_path / "none.json") is None
    (tmp_path / "trial-a-5-0.json").write_text('{"initialisation": "a", "labelled": 5, "trial": 0, "seconds": 1}')
    with pytest.raises(WorkspaceError, match=r"trial-a-5-0\.json is damaged \(figures: field required\): remove it"):
        read_result(tmp_path / "trial-a-5-0.json")
