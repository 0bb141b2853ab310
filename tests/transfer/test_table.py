"""Tables as text, Markdown and LaTeX."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from raygenesis.transfer.statistics import Comparison, Difference
from raygenesis.transfer.table import in_words, latex, lines_of, markdown, marked, told, wide


def row(name: str, mean: float = 0.5, **changed: Any) -> Comparison:
    given = {
        "initialisation": name, "labelled": 5, "trials": 3, "metric": "dice", "mean": mean, "sd": 0.01, "low": 0.4,
        "high": 0.6, "is_best": False, "seconds_per_trial": 1.26, "epochs_to_converge": 12.4,
        "seconds_to_converge": 0.5, "figures": {"dice": mean},
    }  # fmt: skip
    return Comparison(**given | changed)


TABLE = [
    row("random", against_best=Difference(-0.1, -2.0, 0.2, 0.3, 0.4, 0.6)),
    row("far_off", 0.3, against_best=Difference(-0.3, -9.0, 0.01, 0.02, 0.02, 0.04),
        against_random=Difference(-0.2, -5.04, 0.03, 0.02, 0.06, 0.04)),
    row("ours", 0.6, is_best=True, against_random=Difference(0.1, 2.0, None, None)),
]  # fmt: skip


def test_what_a_reader_is_told() -> None:
    random, far, ours = told(TABLE)
    assert far == {
        "initialisation": "far_off", "labelled": "5", "trials": "3", "Dice": "0.300 ± 0.010",
        "95 % interval": "0.400 to 0.600", "to random": "-0.200", "g": "-5.0", "p trials": "0.060",
        "p subjects": "0.040", "to best": "-0.300", "p best": "0.020", "epochs to converge": "12", "s/trial": "1.3",
    }  # fmt: skip
    assert random["Dice"] == "0.500 ± 0.010 *" and ours["Dice"] == "**0.600 ± 0.010**"
    assert random["to random"] == "–" and ours["p trials"] == "–"


def test_columns_that_say_nothing_are_left_out() -> None:
    rows = told([row("a", is_best=True, epochs_to_converge=None), row("b", epochs_to_converge=None)])
    assert list(rows[0]) == ["initialisation", "labelled", "trials", "Dice", "95 % interval", "s/trial"]


def test_a_column_a_target_and_number_of_labelled() -> None:
    rows = [
        {"target": target, **each.flat(), "labelled": labelled, "is_like_best": each.is_like_best}
        for target in ("boxes", "balls") for labelled in (5, "10%") for each in TABLE
    ]  # fmt: skip
    table = wide(rows)
    assert [each["initialisation"] for each in table] == ["random", "far_off", "ours"]
    assert list(table[0])[1:] == [
        "boxes, 5 labelled: Dice", "boxes, 10% labelled: Dice", "balls, 5 labelled: Dice", "balls, 10% labelled: Dice",
    ]  # fmt: skip
    assert table[2]["balls, 10% labelled: Dice"] == "**0.600 ± 0.010**"


def test_figures_are_written_as_people_write_them() -> None:
    of = {"auc": "AUC", "mae": "mean absolute error", "dice": "Dice"}
    for metric, words in of.items():
        each = row("ours", metric=metric)
        assert words in told([each])[0] and metric not in told([each])[0]
        (across,) = wide([{"target": "sex", **each.flat(), "is_like_best": True}])
        assert list(across)[1] == f"sex, 5 labelled: {words}"
        assert in_words([{"metric": metric, "gain": 0.1}]) == [{"metric": words, "gain": 0.1}]


def test_the_best_is_bold_and_its_likes_are_starred() -> None:
    assert [marked("x", *which) for which in ((True, True), (False, True), (False, False))] == ["**x**", "x *", "x"]


def test_markdown_has_a_head_and_a_line_a_row() -> None:
    assert markdown([{"a": 1, "b": 0.12345}, {"a": "x", "c": None}]).splitlines() == [
        "| a | b | c |", "| --- | --- | --- |", "| 1 | 0.123 | – |", "| x | – | – |",
    ]  # fmt: skip


def test_lines_are_of_one_width_a_column() -> None:
    lines = lines_of(told(TABLE))
    assert len(lines) == 4 and lines[2].startswith("far_off  ")
    at = lines[0].index("trials") + len("trials")
    assert all(line[at - 1] == "3" and line[at] == " " for line in lines[1:])


def test_latex_is_escaped_and_marks_bold_and_stars() -> None:
    text = latex([{"a_b": "**0.5 ± 0.1**", "10% & more": "0.4 ± 0.1 *", "λ": None}])
    assert text.splitlines() == [
        r"\begin{tabular}{lrr}", r"\hline", r"a\_b & 10\% \& more & $\lambda$ \\", r"\hline",
        r"\textbf{0.5 $\pm$ 0.1} & 0.4 $\pm$ 0.1$^*$ & -- \\", r"\hline", r"\end{tabular}",
    ]  # fmt: skip


@given(st.lists(st.text("ab_%&#$±λ–*0. ", max_size=8), min_size=2, max_size=2))
def test_latex_leaves_no_sign_that_means_something_there(cells: list[str]) -> None:
    line = latex([{"a": cells[0], "b": cells[1]}]).splitlines()[4]
    plain = re.sub(r"\\[%_&#$]|\$(?:\^\*|\\pm|\\lambda)\$", "", line)
    assert plain.count("&") == 1 and not set("%_#$") & set(plain)
