"""What semantics add, against SciPy."""

from __future__ import annotations

import pytest
from scipy import stats

from raygenesis.studies.semantics import gains
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
