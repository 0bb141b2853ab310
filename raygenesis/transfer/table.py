"""The comparison of initialisations as lines, CSV, Markdown and LaTeX; the paper's Table 2 beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from raygenesis.transfer.statistics import Against, Comparison

LEGEND = (
    "Mean ± s.d. over trials, with the 95 % confidence interval of the mean. * cannot be told from the best (bold) at "
    "p < 0.05. p: independent two-sample t-test (Welch) over trials against random weights and against the best; p by "
    "subject: paired permutation test over test subjects against random weights; all corrected by Holm."
)
HEAD = (
    "initialisation", "labelled", "trials", "mean ± s.d.", "95 % interval", "to random", "g", "p random",
    "p random by subject", "p best", "epochs to converge", "s/trial",
)  # fmt: skip


def as_csv(table: Sequence[Comparison]) -> str:
    """Every figure of every row; columns of p-values are given uncorrected and as Holm corrects them."""
    rows = [row.flat() for row in table]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def lines_of(table: Sequence[Comparison]) -> list[str]:
    """Lines of one width a column."""
    rows = [HEAD, *(_cells(row, mark="*") for row in table)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        for first, *cells in rows
    )
    metrics = {row.metric for row in table}
    return [f"{', '.join(sorted(metrics))}:", *("  ".join(cells) for cells in padded)]


def as_markdown(table: Sequence[Comparison]) -> str:
    rows = [HEAD, ["---"] * len(HEAD), *(_cells(row, mark="*", bold="**{}**") for row in table)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + f"\n\n{LEGEND}\n"


def as_latex(table: Sequence[Comparison]) -> str:
    """A tabular of its own; needs no package."""
    rows = [HEAD, *(_cells(row, mark="$^*$", bold=r"\textbf{{{}}}", plus_minus=r"$\pm$") for row in table)]
    lines = [" & ".join(_escaped(cell) for cell in cells) + r" \\" for cells in rows]
    columns = "l" + "r" * (len(HEAD) - 1)
    head, *body = lines
    inside = "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}"]
    )
    return f"{inside}\n% {LEGEND}\n"


def _cells(row: Comparison, mark: str, bold: str = "{}", plus_minus: str = "±") -> list[str]:
    mean = f"{row.mean:.3f} {plus_minus} {row.sd:.3f}"
    told = bold.format(mean) if row.is_best else mean + (mark if row.is_like_best else "")
    random, best = row.against_random, row.against_best
    return [
        row.initialisation, str(row.labelled), str(row.trials), told, f"{row.low:.3f} to {row.high:.3f}",
        _of(random, "difference", "+.3f"), _of(random, "effect_size", "+.1f"), _of(random, "p_holm", ".3f"),
        _of(random, "p_subjects_holm", ".3f"), _of(best, "p_holm", ".3f"), _cell(row.epochs_to_converge, ".0f"),
        f"{row.seconds_per_trial:.1f}",
    ]  # fmt: skip


def _of(against: Against | None, key: str, form: str) -> str:
    return _cell(None if against is None else getattr(against, key), form)


def _cell(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)


def _escaped(cell: str) -> str:
    for letter in "%_&#":
        cell = cell.replace(letter, f"\\{letter}")
    return cell.replace("–", "--").replace("±", r"$\pm$")
