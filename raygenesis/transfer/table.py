"""The table of a target as people read it."""

from __future__ import annotations

from collections.abc import Sequence

from raygenesis.text.tables import cell
from raygenesis.transfer.metrics import TITLES
from raygenesis.transfer.statistics import Comparison, Difference

LEGEND = (
    "Mean ± s.d. over trials. **Best**; n.s.: no significant difference from the best (p ≥ 0.05 in an independent "
    "two-sample t-test over trials, Welch). p over trials: the same test; p over subjects: paired permutation test on "
    "what trials say of each test subject on average. All p but those of n.s. are corrected by Holm. g: Hedges' effect "
    "size. Intervals (of the mean over trials, Student's t) are cut to what the figure can be, and say little with two "
    "trials. p seeds, where initialisations have several pretrainings: t-test on the mean of each pretraining's "
    "trials, each trial of random weights a seed of its own; two or three pretrainings show large differences alone, "
    "and a high p says nothing about smaller ones. Steps to 90 % of random's final: mean until a trial's validation "
    "score first reaches 90 % of what random weights have at the end (an error: that divided by 0.9), over those "
    "trials that reach it."
)

TO_RANDOM = "steps to 90 % of random's final"


def readable(table: Sequence[Comparison]) -> list[dict[str, str]]:
    """A row of texts for each comparison; columns that are empty in all rows are left out."""
    rows = []
    several = len({row.initialisation for row in table}) > 1
    has_seeds = any(row.pretrainings > 1 for row in table)
    for row in table:
        to_random, g, p_trials, p_subjects, p_seeds = _texts(row.against_random)
        to_best, _, p_best, _, _ = _texts(row.against_best)
        rows.append(
            {
                "initialisation": row.initialisation, "labelled": str(row.labelled), "trials": str(row.trials),
                "pretrainings": str(row.pretrainings) if has_seeds and row.pretrainings else "–",
                "rate": cell(row.rate, "g"),
                TITLES[row.metric]: mean_and_deviation(row, marked=several),
                "95 % interval": f"{row.low:.3f} to {row.high:.3f}",
                "to random": to_random, "g": g, "p trials": p_trials, "p subjects": p_subjects,
                "p seeds": p_seeds, "to best": to_best, "p best": p_best,
                "epochs to converge": cell(row.epochs_to_converge, ".0f"), TO_RANDOM: _steps_to_score(row),
                "s/trial": f"{row.seconds_per_trial:.1f}",
            }
        )  # fmt: skip
    empty = {column for column in rows[0] if all(row.get(column) in (None, "–") for row in rows)}
    return [{column: text for column, text in row.items() if column not in empty} for row in rows]


def mean_and_deviation(row: Comparison, marked: bool = True) -> str:
    """Mean ± s.d. of the primary figure; marked: the best is bold, and n.s. are those not significantly different."""
    text = f"{row.mean:.3f} ± {row.sd:.3f}"
    if not marked:
        return text
    return f"**{text}**" if row.is_best else f"{text} n.s." if row.is_like_best else text


def _steps_to_score(row: Comparison) -> str:
    """Mean number of steps, and how many trials reach the score."""
    if row.num_reaching is None:
        return "–"
    return f"{cell(row.steps_to_score, '.0f')} ({row.num_reaching} of {row.trials})"


def _texts(difference: Difference | None) -> tuple[str, str, str, str, str]:
    """Difference, effect size, and p over trials, over subjects and over seeds, corrected."""
    if difference is None:
        return ("–",) * 5
    return (
        cell(difference.difference, "+.3f"), cell(difference.effect_size, "+.1f"), cell(difference.p_holm, ".3f"),
        cell(difference.p_subjects_holm, ".3f"), cell(difference.p_seeds_holm, ".3f"),
    )  # fmt: skip
