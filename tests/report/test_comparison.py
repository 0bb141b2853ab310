"""Scores and what predicts them, in the sections of targets and of comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raygenesis.report.artifact import Contents
from raygenesis.report.comparison import comparison_section
from raygenesis.report.report import report
from raygenesis.report.transfer import transfer_section
from raygenesis.transfer.results import write_result
from raygenesis.workspace.artifacts import COMPARISONS, TRANSFER
from raygenesis.workspace.manifest import Extent
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace
from tests.support.trials import trials
from tests.support.workspaces import begin, make_comparison, settings_of, target_of

AGREEMENT = {"target": "tissue", "labelled": 9, "measure": "effective rank", "runs": 6, "Spearman correlation": 0.75}
OVERVIEW = ({"initialisation": "random", "tissue": "0.5"},)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Two initialisations with five and with nine labelled subjects; curves of the latter alone."""
    made = Workspace.open(tmp_path)
    stage = Stage(TRANSFER, made.transfer("heads-tissue"), {}, {})
    begin(stage)
    for labelled, curve in ((5, ()), (9, ((10, 0.4), (20, 0.6)))):
        for rank, name in enumerate(("random", "ours")):
            for trial in trials([0.5 + 0.1 * rank, 0.6 + 0.1 * rank]):
                given = {"initialisation": name, "labelled": labelled, "subjects": labelled, "curve": curve}
                write_result(stage.folder, replace(trial, **given))
    names = {"random": "", "ours": ""}
    extent = Extent(initialisations=names, num_trials=2, num_labelled=(5, 9))
    finished = stage.finish(target_of(names, extent=extent, shown=({"initialisation": "random"},)))
    inputs = {"transfer tissue": finished.finished}
    make_comparison(made, inputs, overview=OVERVIEW, agreement=(AGREEMENT,))
    return made


def test_scores_are_drawn_by_labelled_subjects_and_by_steps(workspace: Workspace) -> None:
    contents = Contents.of(workspace)
    (target,), (comparison,) = contents.each(TRANSFER), contents.each(COMPARISONS)
    expected = ["Dice by labelled subjects", "Validation Dice by steps, 9 labelled"]
    titles = [chart.title for chart in transfer_section(target).charts]
    assert titles == ["Trials with 5 labelled subjects", "Trials with 9 labelled subjects", *expected]
    section = comparison_section(comparison, contents)
    assert section is not None and [chart.title for chart in section.scores] == expected
    assert [chart.of for chart in section.scores] == ["tissue in heads"] * 2
    assert section.agreement == (AGREEMENT,)


def test_the_page_shows_them_with_words_and_keeps_them_as_files(workspace: Workspace) -> None:
    path = report(workspace, settings_of(3))
    page = path.read_text()
    for of in ("target heads-tissue", "tissue in heads"):
        assert f"Dice by labelled subjects of {of}: Dice, mean ± s.d. over trials. At the right end: ours" in page
    assert "What predicts fine-tuning" in page and "effective rank" in page and "0.75" in page
    names = {file.stem for file in (path.parent / "figures").glob("*.svg")}
    assert {"tissue-in-heads-dice-by-labelled-subjects", "target-heads-tissue-dice-by-labelled-subjects"} <= names
    assert "tissue-in-heads-validation-dice-by-steps-9-labelled" in names
