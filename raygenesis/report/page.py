"""Templates made into pages, and how figures are written for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from raygenesis.amounts import duration, several, size
from raygenesis.tables import cell

SYMBOLS = {"lambda_cls": "λcls", "lambda_rec": "λrec", "num_neighbours": "K", "num_coordinates": "C"}
WORDS = {
    **SYMBOLS, "dice": "Dice", "iou": "IoU", "auc": "AUC", "sd": "s.d.", "rankme": "RankMe",
}  # fmt: skip


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page from a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    filters = (("size", size), ("duration", duration), ("number", number), ("words", words), ("counted", counted))
    environment.filters.update(filters)
    return environment.get_template(template).render(context)


def number(value: Any) -> str:
    if isinstance(value, str):
        return value  # it may be markup
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else cell(value)


def counted(counts: Mapping[str, int]) -> str:
    """`125 volumes, 1 part`: counts under their names."""
    return ", ".join(several(count, name.replace("_", " ")) for name, count in counts.items())


def words(key: str) -> str:
    return WORDS.get(key) or " ".join(WORDS.get(word, word) for word in key.split("_"))
