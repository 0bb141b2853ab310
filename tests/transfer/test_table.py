"""The table of a target as people read it."""

from __future__ import annotations

from dataclasses import replace

from raygenesis.text.tables import as_lines
from raygenesis.transfer.statistics import Difference
from raygenesis.transfer.table import mean_and_deviation, readable
from tests.support.trials import TABLE, compared


def test_rows_as_people_read_them() -> None:
    random, far, ours = readable(TABLE)
    assert far == {
        "initialisation": "far_off", "labelled": "5", "trials": "3", "Dice": "0.300 ± 0.010",
        "95 % interval": "0.400 to 0.600", "to random": "-0.200", "g": "-5.0", "p trials": "0.060",
        "p subjects": "0.040", "to best": "-0.300", "p best": "0.020", "epochs to converge": "12", "s/trial": "1.3",
    }  # fmt: skip
    assert random["Dice"] == "0.500 ± 0.010 n.s." and ours["Dice"] == "**0.600 ± 0.010**"
    assert random["to random"] == "–" and ours["p trials"] == "–"


def test_columns_that_say_nothing_are_left_out() -> None:
    rows = readable([compared("a", is_best=True, epochs_to_converge=None), compared("b", epochs_to_converge=None)])
    assert list(rows[0]) == ["initialisation", "labelled", "trials", "Dice", "95 % interval", "s/trial"]


def test_a_rate_that_was_chosen_has_a_column() -> None:
    rows = readable([compared("a", is_best=True, rate=0.003), compared("b", rate=1e-5)])
    assert [row["rate"] for row in rows] == ["0.003", "1e-05"]


def test_figures_are_written_as_people_write_them() -> None:
    for metric, title in (("auc", "AUC"), ("mae", "mean absolute error"), ("dice", "Dice")):
        (texts,) = readable([compared("ours", metric=metric)])
        assert title in texts and metric not in texts


def test_the_best_is_bold_and_its_likes_are_starred() -> None:
    like, far = ({"against_best": Difference(-0.1, -1.0, p, None)} for p in (0.2, 0.01))
    texts = [mean_and_deviation(compared("x", **what)) for what in ({"is_best": True}, like, far)]
    assert texts == ["**0.500 ± 0.010**", "0.500 ± 0.010 n.s.", "0.500 ± 0.010"]
    assert mean_and_deviation(compared("x", is_best=True), marked=False) == "0.500 ± 0.010"


def test_lines_are_of_one_width_a_column() -> None:
    lines = as_lines(readable(TABLE))
    assert len(lines) == 4 and lines[2].startswith("far_off  ")
    at = lines[0].index("trials") + len("trials")
    assert all(line[at - 1] == "3" and line[at] == " " for line in lines[1:])


def test_pretrainings_and_steps_to_a_score_are_shown_where_there_are_any() -> None:
    against = Difference(0.1, 2.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
    several = compared("ours", pretrainings=3, against_random=against, steps_to_score=120.4, num_reaching=2)
    never = compared("never", pretrainings=2, num_reaching=0)
    random = compared("random", pretrainings=0)
    rows = {row["initialisation"]: row for row in readable([random, several, never])}
    assert [row["pretrainings"] for row in rows.values()] == ["–", "3", "2"]
    assert [rows[name]["p seeds"] for name in rows] == ["–", "0.060", "–"]
    steps = "steps to 90 % of random's final"
    assert [rows[name][steps] for name in rows] == ["–", "120 (2 of 3)", "– (0 of 3)"]
    (plain,) = readable([compared("ours", against_random=replace(against, p_seeds=None, p_seeds_holm=None))])
    assert not {"pretrainings", "p seeds", steps} & set(plain)
