"""Tables as lines, Markdown, LaTeX and CSV. A table is a sequence of rows, each of which maps columns to values."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from raygenesis.text.names import printable

Rows = Sequence[Mapping[str, Any]]

# What the cells begin with that spreadsheets compute, and texts among them that are numbers.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-](inf|nan)")

SIDES = {"l": "left", "r": "right"}


def cell(value: Any, form: str = ".4g") -> str:
    """The text of a value: `–` for None; form: format of floating-point numbers."""
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, float) else str(value)


def aligned(lines: Sequence[Sequence[str]], sides: str = "l") -> list[str]:
    """Lines of cells, each column as wide as its widest cell.

    sides: `l` or `r` for each column, left or right; the last holds for all columns that follow.
    """
    shown = [[printable(text) for text in line] for line in lines]
    return [line.rstrip() for line in _tabulated(shown, "plain", sides).splitlines()]


def markdown(rows: Rows) -> str:
    """A table in GitHub's Markdown; columns that a row lacks are `–` there."""
    return _tabulated(_cells(rows), "github", "l", headers="firstrow")


def latex(rows: Rows) -> str:
    """A tabular, which needs no package: `**x**` is bold there, and a star after a blank is raised."""
    cells = [[_in_latex(text) for text in line] for line in _cells(rows)]
    return _tabulated(cells, "latex_raw", "lr", headers="firstrow") + "\n"


def as_lines(rows: Rows) -> list[str]:
    """The names of the columns and each row as aligned lines, the first column to the left."""
    return aligned(_cells(rows), "lr")


def columns_of(rows: Rows) -> list[str]:
    """All columns that any row has, in their order."""
    return list(dict.fromkeys(column for row in rows for column in row))


def as_csv(rows: Rows, columns: Sequence[str] = ()) -> str:
    """CSV with a header; columns: those of the header, where there may be no rows.

    Texts that a spreadsheet would take for a formula have an apostrophe in front of them.
    """
    text = io.StringIO()
    names = list(columns or columns_of(rows))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_no_formula, names))
    writer.writerows([_no_formula(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """A cell of a CSV, a text in one line; numbers, as text too, stay numbers."""
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(FORMULA) and not NUMBER.fullmatch(value)
    return ("'" if is_formula else "") + printable(value, len(value))


def _tabulated(lines: Sequence[Sequence[str]], form: str, sides: str, headers: str = "") -> str:
    columns = sides.ljust(len(lines[0]), sides[-1])
    return tabulate(
        lines, headers, form, disable_numparse=True, preserve_whitespace=True,
        colalign=[SIDES[side] for side in columns],
    )  # fmt: skip


def _cells(rows: Rows) -> list[list[str]]:
    """The names of the columns, and each row's texts."""
    columns = columns_of(rows)
    return [columns, *([printable(cell(row.get(name), ".3f")) for name in columns] for row in rows)]


def _in_latex(text: str) -> str:
    escaped = re.sub(r"([%_&#$])", r"\\\1", text)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped).replace(" *", "$^*$")
    return escaped.replace("–", "--").replace("±", r"$\pm$").replace("λ", r"$\lambda$")
