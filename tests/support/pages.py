"""The pages of the documentation, and the commands and snippets that they show.

A block marked `console` or `python` is run (`tests/end_to_end/test_documentation.py`); one marked `sh` or `py`, which
needs a cluster or data that are not here, is only checked, as all are (`tests/docs/test_pages.py`). A YAML block with a
title is the file of that name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
README = CHECKOUT / "README.md"
ROOMS = [CHECKOUT / path for path in ("raygenesis/archive", "raygenesis/pretraining", "raygenesis/transfer", "infra")]

BLOCK = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. title: the name of the file that it is, if any."""

    language: str
    title: str
    text: str


def site() -> dict[str, Any]:
    return yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text())


def pages() -> list[Path]:
    """The README, and the site's own pages in their order."""
    return [README, *(DOCS / name for name in _names(site()["nav"]) if (DOCS / name).is_file())]


def all_pages() -> list[Path]:
    """Also those that the site takes from elsewhere."""
    others = [CHECKOUT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    return [*pages(), *(room / "README.md" for room in ROOMS), *others]


def _names(tree: Any) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    below = tree.values() if isinstance(tree, dict) else tree
    return [name for each in below for name in _names(each)]


def blocks(page: Path, *languages: str) -> list[Block]:
    found = [Block(language, title, text) for language, title, text in BLOCK.findall(page.read_text())]
    return [block for block in found if block.language in languages]


def lines(page: Path, *languages: str) -> list[str]:
    """The command lines of a page, without what is said of them."""
    shown = (line.partition("  #")[0].strip() for block in blocks(page, *languages) for line in block.text.splitlines())
    return [line for line in shown if line and not line.startswith("#")]
