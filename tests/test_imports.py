"""The package's folders import one way, in the order data flows."""

from __future__ import annotations

import ast
from pathlib import Path

import raygenesis

PACKAGE = Path(raygenesis.__file__).parent
ORDER = (
    "settings", "archive", "training", "patterns", "discovery", "pretraining", "planning", "transfer", "sweeps",
    "report",
)  # fmt: skip
# Networks of a target are what `planning` has to count.
ALLOWED = {("planning/work.py", "transfer")}


def imported(path: Path) -> set[str]:
    """Folders of the package that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raygenesis."):
            found.add((node.module or "").split(".")[1])
    return found & set(ORDER)


def test_a_folder_imports_from_those_before_it_alone() -> None:
    backwards = {
        (f"{folder}/{path.name}", other)
        for number, folder in enumerate(ORDER)
        for path in sorted((PACKAGE / folder).glob("*.py"))
        for other in imported(path) & set(ORDER[number + 1 :])
    }
    assert backwards == ALLOWED | {("discovery/encoders.py", "pretraining")}  # the latter for type checkers alone
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= {*ORDER, "demo"}
