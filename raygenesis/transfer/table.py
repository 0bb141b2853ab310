"""Tables of a comparison as lines, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from raygenesis.text.tables import Rows, aligned, cell, columns_of
from raygenesis.transfer.metrics import WORDS
from raygenesis.transfer.statistics import Comparison, Difference

LEGEND = (
    "Mean ± s.d. over trials. **Best**; * cannot be told from the best at p < 0.05 (independent two-sample t-test over "
    "trials, Welch). p over trials: the same test; p over subjects: paired permutation test on what trials say of each "
    "test subject on average. All p but those of the marks are corrected by Holm. g: Hedges' effect size. Intervals "
    "(of the mean over trials, Student's t) are cut to what the figure can be, and say little with two trials."
)


def told(table: Sequence[Comparison]) -> list[dict[str, str]]:
    """What a reader wants to know of each initialisation; columns that say nothing are left out."""
    rows = []
    compared = len({row.initialisation for row in table}) > 1
    for row in table:
        random, best = row.against_random, row.against_best
        rows.append(
            {
                "initialisation": row.initialisation, "labelled": str(row.labelled), "trials": str(row.trials),
                WORDS[row.metric]: marked(
                    f"{row.mean:.3f} ± {row.sd:.3f}", compared and row.is_best, compared and row.is_like_best
                ),
                "95 % interval": f"{row.low:.3f} to {row.high:.3f}",
                "to random": _of(random, "difference", "+.3f"), "g": _of(random, "effect_size", "+.1f"),
                "p trials": _of(random, "p_holm", ".3f"), "p subjects": _of(random, "p_subjects_holm", ".3f"),
                "to best": _of(best, "difference", "+.3f"), "p best": _of(best, "p_holm", ".3f"),
                "epochs to converge": cell(row.epochs_to_converge, ".0f"), "s/trial": f"{row.seconds_per_trial:.1f}",
            }
        )  # fmt: skip
    empty = {column for column in rows[0] if all(row.get(column) in (None, "–") for row in rows)}
    return [{column: text for column, text in row.items() if column not in empty} for row in rows]


def wide(rows: Rows) -> list[dict[str, str]]:
    """A row an initialisation, a column a target and number of labelled subjects (paper Table 2).

    rows: of `Comparison.flat`, with `target` and `is_like_best`.
    """
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        column = f"{row['target']}, {row['labelled']} labelled: {WORDS[row['metric']]}"
        text = marked(f"{row['mean']:.3f} ± {row['sd']:.3f}", row["is_best"], row["is_like_best"])
        table.setdefault(row["initialisation"], {"initialisation": row["initialisation"]})[column] = text
    return list(table.values())


def in_words(semantics: Rows) -> Rows:
    """The rows of `semantics_of` with their figures' names as people write them."""
    return [{**row, "metric": WORDS[row["metric"]]} for row in semantics]


def marked(text: str, is_best: bool, is_like_best: bool) -> str:
    return f"**{text}**" if is_best else f"{text} *" if is_like_best else text


def lines_of(rows: Rows) -> list[str]:
    """Lines of one width a column, the first column to the left."""
    return aligned(_cells(rows, _text), "lr")


def markdown(rows: Rows) -> str:
    head, *body = _cells(rows, _text)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


def latex(rows: Rows) -> str:
    """A tabular; needs no package."""
    head, *body = (" & ".join(cells) + r" \\" for cells in _cells(rows, _in_latex))
    columns = "l" + "r" * (len(columns_of(rows)) - 1)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}", ""]
    )


def _of(against: Difference | None, key: str, form: str) -> str:
    return cell(None if against is None else getattr(against, key), form)


def _cells(rows: Rows, text_of: Any) -> list[list[str]]:
    """The names of the columns, and each row's texts."""
    columns = columns_of(rows)
    return [[text_of(name) for name in columns], *([text_of(row.get(name, "–")) for name in columns] for row in rows)]


def _text(value: Any) -> str:
    return cell(value, ".3f")


def _in_latex(value: Any) -> str:
    escaped = re.sub(r"([%_&#$])", r"\\\1", _text(value))
    escaped = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped).replace(" *", "$^*$")
    return escaped.replace("–", "--").replace("±", r"$\pm$").replace("λ", r"$\lambda$")
