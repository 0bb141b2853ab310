"""The table of a target as people read it."""

from __future__ import annotations

from collections.abc import Sequence

from raygenesis.text.tables import cell
from raygenesis.transfer.metrics import TITLES
from raygenesis.transfer.statistics import Comparison, Difference

LEGEND = (
    "Mean ± s.d. over trials. **Best**; * cannot be told from the best at p < 0.05 (independent two-sample t-test over "
    "trials, Welch). p over trials: the same test; p over subjects: paired permutation test on what trials say of each "
    "test subject on average. All p but those of the marks are corrected by Holm. g: Hedges' effect size. Intervals "
    "(of the mean over trials, Student's t) are cut to what the figure can be, and say little with two trials."
)


def readable(table: Sequence[Comparison]) -> list[dict[str, str]]:
    """A row of texts for each comparison; columns that are empty in all rows are left out."""
    rows = []
    several = len({row.initialisation for row in table}) > 1
    for row in table:
        to_random, g, p_trials, p_subjects = _texts(row.against_random)
        to_best, _, p_best, _ = _texts(row.against_best)
        rows.append(
            {
                "initialisation": row.initialisation, "labelled": str(row.labelled), "trials": str(row.trials),
                "rate": cell(row.rate, "g"),
                TITLES[row.metric]: mean_and_deviation(row, marked=several),
                "95 % interval": f"{row.low:.3f} to {row.high:.3f}",
                "to random": to_random, "g": g, "p trials": p_trials, "p subjects": p_subjects,
                "to best": to_best, "p best": p_best,
                "epochs to converge": cell(row.epochs_to_converge, ".0f"), "s/trial": f"{row.seconds_per_trial:.1f}",
            }
        )  # fmt: skip
    empty = {column for column in rows[0] if all(row.get(column) in (None, "–") for row in rows)}
    return [{column: text for column, text in row.items() if column not in empty} for row in rows]


def mean_and_deviation(row: Comparison, marked: bool = True) -> str:
    """Mean ± standard deviation of the primary figure; marked: the best is bold, and what is like it has a star."""
    text = f"{row.mean:.3f} ± {row.sd:.3f}"
    if not marked:
        return text
    return f"**{text}**" if row.is_best else f"{text} *" if row.is_like_best else text


def _texts(difference: Difference | None) -> tuple[str, str, str, str]:
    """Difference, effect size, and p over trials and over subjects, corrected."""
    if difference is None:
        return ("–",) * 4
    return (
        cell(difference.difference, "+.3f"), cell(difference.effect_size, "+.1f"), cell(difference.p_holm, ".3f"),
        cell(difference.p_subjects_holm, ".3f"),
    )  # fmt: skip
