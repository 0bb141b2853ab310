"""Pages from templates, and how values are written on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from raygenesis.report.parts import Absent
from raygenesis.text.amounts import duration, several, size
from raygenesis.text.tables import cell
from raygenesis.transfer.metrics import TITLES as FIGURES

SYMBOLS = {"lambda_cls": "λcls", "lambda_rec": "λrec", "num_neighbours": "K", "num_coordinates": "C"}
HEADINGS = {
    **SYMBOLS, **FIGURES, "sd": "s.d.", "rankme": "RankMe",
}  # fmt: skip

# Of counts whose names do not say it: what is counted (plural), and what of it.
COUNTED = {
    "known": ("scans", "known before"), "removed": ("volumes", "removed"),
    "new": ("scans", "embedded in the last call"), "added": ("scans", "added in the last call"),
    "training": ("scans", "trained on"), "validation": ("held out",),
    "indexed_before": ("scans", "indexed before"), "left_out": ("examples", "left out"),
    "validation_examples": ("examples", "to validate on"), "test_examples": ("examples", "to test on"),
    "pool_subjects": ("subjects", "to draw labelled ones from"), "seen_subjects": ("subjects", "seen in pretraining"),
    "stopped": ("trials", "stopped early"), "rows": ("rows", "in its table"),
}  # fmt: skip


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page from a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    filters = (
        ("size", size),
        ("duration", duration),
        ("number", value_text),
        ("heading", heading),
        ("counted", counts_text),
    )
    environment.filters.update(filters)
    environment.tests["absent"] = lambda part: isinstance(part, Absent)
    return environment.get_template(template).render(context)


def value_text(value: Any) -> str:
    """The text of a cell of a table: whole numbers with commas, text as it is, which may be markup."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else cell(value)


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts in words, without zeros: `125 volumes, 1 part`."""
    return ", ".join(
        " ".join(_count_text(name, count)) for name, count in counts.items() if count
    ) or "nothing"  # fmt: skip


def _count_text(name: str, count: int) -> tuple[str, ...]:
    units, *rest = COUNTED.get(name, (name.replace("_", " "),))
    return several(count, units), *rest


def heading(key: str) -> str:
    """The heading of a column: words with spaces between them, names as people write them."""
    return HEADINGS.get(key) or re.sub(r"\w+", lambda word: HEADINGS.get(word[0], word[0]), key.replace("_", " "))
