"""What semantics add, against SciPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from raygenesis.studies.semantics import SEMANTICS_NOTE, gains
from raygenesis.transfer.results import TrialResult
from tests.support.trials import OTHERS, OURS, THEIRS, hedges, trials


def test_semantics_are_what_pairs_differ_by() -> None:
    starts = {
        "in-painting": trials(THEIRS), "in-painting+semantics": trials(OURS), "models-genesis": trials(OTHERS),
        "semantic-genesis": trials(OURS), "rotation": trials(OURS),
    }  # fmt: skip
    rows = [gain.as_row() for gain in gains({5: starts}, "segmentation")]
    assert [(row["without"], row["with"]) for row in rows] == [
        ("in-painting", "in-painting+semantics"), ("models-genesis", "semantic-genesis"),
    ]  # fmt: skip
    assert rows[0]["gain"] == pytest.approx(0.06) and rows[0]["g"] == pytest.approx(hedges(OURS, THEIRS))
    ps = [stats.ttest_ind(OURS, figures, equal_var=False).pvalue for figures in (THEIRS, OTHERS)]
    assert [row["p trials"] for row in rows] == pytest.approx([ps[0], 2 * ps[1]])
    assert gains({5: {"random": trials(OURS)}}, "segmentation") == []


def test_semantics_of_an_error_are_a_gain_where_it_shrinks() -> None:
    starts = {"rubiks-cube": trials(OURS, "mae"), "rubiks-cube+semantics": trials(THEIRS, "mae")}
    (gain,) = gains({"10%": starts}, "regression")
    assert gain.difference.difference == pytest.approx(0.06) and gain.labelled == "10%"


def test_semantic_genesis_is_compared_with_both_controls_also_over_seeds() -> None:
    def seeded(figures: list[float]) -> list[TrialResult]:
        return [replace(trial, source=trial.trial % 2) for trial in trials(figures)]

    starts = {
        "models-genesis": seeded(OTHERS),
        "models-genesis-on-patterns": seeded(THEIRS),
        "semantic-genesis": seeded(OURS),
    }
    rows = [gain.as_row() for gain in gains({5: starts}, "segmentation")]
    assert [(row["without"], row["with"]) for row in rows] == [
        ("models-genesis", "semantic-genesis"), ("models-genesis-on-patterns", "semantic-genesis"),
    ]  # fmt: skip
    means = [[np.mean(figures[source::2]) for source in (0, 1)] for figures in (OURS, OTHERS, THEIRS)]
    expected = [stats.ttest_ind(means[0], other).pvalue for other in means[1:]]
    least, most = sorted(expected)
    by_holm = {least: min(1, 2 * least), most: min(1, max(2 * least, most))}
    assert [row["p seeds"] for row in rows] == pytest.approx([by_holm[p] for p in expected])
    only = [gain.as_row() for gain in gains({5: {name: trials(OURS) for name in starts}}, "segmentation")]
    assert {row["p seeds"] for row in only} == {None}
    assert "models-genesis-on-patterns" in SEMANTICS_NOTE
