"""Every message that a user may meet, collected from the source: errors, warnings, and why a scan is left out."""

from __future__ import annotations

import ast
import html
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "raygenesis"

# Rooms of the package, in the order of the pipeline, and what a user was doing who meets a message of theirs.
GROUPS = {
    "Command line and settings": ("cli.py", "settings", "text"),
    "Workspace and object stores": ("workspace",),
    "Before a job starts, and clusters": ("pipeline.py", "planning", "cluster"),
    "Reading scans": ("archive",),
    "Embed, neighbours, discover, crop": ("discovery", "patterns"),
    "Pretrain": ("pretraining", "training"),
    "Weights": ("networks",),
    "Sweep": ("sweeps",),
    "Fine-tune and compare": ("transfer", "studies"),
    "Report and demo": ("report", "demo"),
}

# Validators of pydantic raise ValueError, which the command line shows as it does a RaygenesisError.
VALIDATED = ("settings/", "studies/plan.py", "transfer/description.py")

# Calls whose argument is the reason why a file or scan is left out: position, or name, of that argument.
REASONS = {"SetAside": 1, "IntakeOutcome": "reason"}
WARNING = "warning: "

PLACEHOLDER = "…"


@dataclass(frozen=True, order=True)
class Message:
    """A message. text: with placeholders such as ‹folder›; kind: the error's class; file: below the package."""

    text: str
    kind: str
    file: str


def messages() -> dict[str, list[Message]]:
    """The messages of each group, in alphabetical order, without repetitions."""
    trees = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    errors = _error_classes(trees.values())
    room_of = {room: group for group, rooms in GROUPS.items() for room in rooms}
    found: dict[str, set[Message]] = defaultdict(set)
    for file, tree in trees.items():
        kinds = errors | ({"ValueError"} if file.startswith(VALIDATED) else set())
        for node in ast.walk(tree):
            for kind, text in _said(node, kinds):
                if any(letter.isalpha() for letter in text):
                    found[room_of[file.partition("/")[0]]].add(Message(text, kind, file))
    return {group: sorted(found[group]) for group in GROUPS}


def markdown() -> str:
    """The messages as sections of a page: a list a group, as HTML, whose text is left as it is."""
    lines = []
    for group, some in messages().items():
        lines += [f"### {group}", "", '<ul class="messages">']
        lines += [
            f"<li><code>{html.escape(each.text)}</code> <small>{each.kind}, {each.file}</small></li>" for each in some
        ]
        lines += ["</ul>", ""]
    return "\n".join(lines)


def _error_classes(trees: Iterable[ast.Module]) -> set[str]:
    """Names of RaygenesisError and of the classes that are derived from it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    errors = {"RaygenesisError"}
    while more := {name for name, above in bases.items() if above & errors} - errors:
        errors |= more
    return errors


def _said(node: ast.AST, kinds: set[str]) -> Iterator[tuple[str, str]]:
    """Class and text of the message that a node raises or records, if it does."""
    if isinstance(node, ast.Raise):
        call = node.exc
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in kinds and call.args:
            yield call.func.id, _text(call.args[0])
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "say" and len(node.args) > 1 and (text := _text(node.args[1])).startswith(WARNING):
            yield "warning", text.removeprefix(WARNING)
        place = REASONS.get(node.func.id)
        if isinstance(place, int) and len(node.args) > place:
            yield "left out", _text(node.args[place])
        yield from (("left out", _text(each.value)) for each in node.keywords if place and each.arg == place)


def _text(node: ast.expr) -> str:
    """A string expression as a user sees it, its values as placeholders; empty where nothing of it is known."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _placeholder(part) if isinstance(part, ast.FormattedValue) else _text(part) for part in node.values
        )
    if isinstance(node, ast.BinOp):
        return _text(node.left) + (_text(node.right) or PLACEHOLDER)
    return ""


def _placeholder(part: ast.FormattedValue) -> str:
    value = part.value
    while isinstance(value, (ast.Subscript, ast.Starred)):
        value = value.value
    name = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else PLACEHOLDER
    return name if name == PLACEHOLDER else f"‹{name.strip('_').replace('_', ' ')}›"
