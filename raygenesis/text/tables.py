"""Tables as lines and as CSV, and their cells as people read them. A table is a sequence of rows, each by column."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def cell(value: Any, form: str = ".4g") -> str:
    """The text of a value: `–` for None; form: of what is no whole number."""
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, float) else str(value)


def aligned(lines: Sequence[Sequence[str]], sides: str = "l") -> list[str]:
    """Lines of cells, each column as wide as its widest cell.

    sides: `l` or `r` of each column, left or right; the last holds for those that follow.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pads = [str.rjust if side == "r" else str.ljust for side in sides.ljust(len(widths), sides[-1])]
    return [
        "  ".join(pad(text, width) for pad, text, width in zip(pads, line, widths, strict=True)).rstrip()
        for line in lines
    ]


def columns_of(rows: Rows) -> list[str]:
    """All columns that any row has, in their order."""
    return list(dict.fromkeys(column for row in rows for column in row))


def as_csv(rows: Rows, columns: Sequence[str] = ()) -> str:
    """columns: those that there are without rows, too."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
