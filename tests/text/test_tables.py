"""Tables as lines, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.text.names import printable
from raygenesis.text.tables import aligned, as_csv, cell, latex, markdown


def test_a_cell_is_as_people_read_it() -> None:
    assert [cell(value) for value in (None, 0.123456, 12, True, "x", np.float64(2))] == [
        "–", "0.1235", "12", "True", "x", "2",
    ]  # fmt: skip
    assert [cell(value, ".1f") for value in (None, 0.16, 12)] == ["–", "0.2", "12"]


def test_columns_are_aligned_to_their_sides() -> None:
    lines = [("name", "n", "score"), ("a", "10", "0.5"), ("long name", "2", "")]
    assert aligned(lines) == ["name       n   score", "a          10  0.5", "long name  2"]
    assert aligned(lines, "lr") == ["name        n  score", "a          10    0.5", "long name   2"]
    assert aligned(lines, "rrl")[1] == "        a  10  0.5"


CELL = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=6).filter(
    lambda text: text[0] not in "=+-@\t"
)
ROWS = st.lists(st.dictionaries(st.sampled_from("abc"), CELL, min_size=1), min_size=1, max_size=4)


@given(ROWS)
def test_csv_comes_back_as_it_was(rows: list[dict[str, str | None]]) -> None:
    back = list(csv.DictReader(io.StringIO(as_csv(rows), newline="")))
    columns = {column for each in rows for column in each}
    assert back == [{column: printable(each.get(column) or "") for column in columns} for each in rows]


@pytest.mark.parametrize(
    "text", ["=HYPERLINK(1)", "+1+1", "-1+cmd", "@SUM(A1)", "\t=1", "\r=1", "-", "+", "-1_0", "=1"]
)
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    (back,) = csv.DictReader(io.StringIO(as_csv([{"name": text}]), newline=""))
    assert back["name"][0] not in "=+-@\t\r\n" and back["name"].endswith(text.strip())


@pytest.mark.parametrize("number", [-0.5, -3, "-0.5", "+1e-3", "-.5", "-inf", float("-inf")])
def test_numbers_stay_numbers(number: float | str) -> None:
    (back,) = csv.DictReader(io.StringIO(as_csv([{"figure": number}])))
    assert float(back["figure"]) == float(number)


def test_csv_keeps_numbers_whole() -> None:
    (back,) = csv.DictReader(io.StringIO(as_csv([{"p": 0.1 + 0.2, "n": None}])))
    assert float(back["p"]) == 0.1 + 0.2 and back["n"] == ""


def test_markdown_has_a_head_and_a_line_a_row() -> None:
    assert markdown([{"a": 1, "b": 0.12345}, {"a": "x", "c": None}]).splitlines() == [
        "| a   | b     | c   |", "|-----|-------|-----|", "| 1   | 0.123 | –   |", "| x   | –     | –   |",
    ]  # fmt: skip


def test_latex_is_escaped_and_marks_bold_and_stars() -> None:
    text = latex([{"a_b": "**0.5 ± 0.1**", "10% & more": "0.4 ± 0.1 *", "λ": None}])
    assert [re.sub(" +", " ", line).strip() for line in text.splitlines()] == [
        r"\begin{tabular}{lrr}", r"\hline", r"a\_b & 10\% \& more & $\lambda$ \\", r"\hline",
        r"\textbf{0.5 $\pm$ 0.1} & 0.4 $\pm$ 0.1$^*$ & -- \\", r"\hline", r"\end{tabular}",
    ]  # fmt: skip


@given(st.lists(st.text("ab_%&#$±λ–*0. ", max_size=8), min_size=2, max_size=2))
@settings(deadline=None)
def test_latex_leaves_no_sign_that_means_something_there(cells: list[str]) -> None:
    line = latex([{"a": cells[0], "b": cells[1]}]).splitlines()[4]
    plain = re.sub(r"\\[%_&#$]|\$(?:\^\*|\\pm|\\lambda)\$", "", line)
    assert plain.count("&") == 1 and not set("%_#$") & set(plain)
