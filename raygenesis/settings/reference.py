"""Every setting on one page, written from the code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raygenesis.settings.tree import Settings

HEAD = """# Settings

All settings are one tree. The file of a preset lists what differs from these defaults, and `key.path=value` on the
command line overrides the preset. `raygenesis config` prints the resolved tree. Defaults are the paper's 3D numbers,
but for the recipe of fine-tuning (`--preset paper-3d` has the paper's).

<!-- Written by `raygenesis config --reference > docs/settings.md`; a test compares. -->
"""


def reference() -> str:
    """The page, in Markdown: a table for each section of the tree."""
    return "\n".join([HEAD, *_section(Settings, "")])


def _section(section: type[BaseModel], prefix: str) -> Iterator[str]:
    rows = {name: field for name, field in section.model_fields.items() if _below(field) is None}
    if rows:
        yield from ("| setting | default | meaning |", "| --- | --- | --- |")
        for name, field in rows.items():
            meaning = " ".join(filter(None, (field.description, _choices(field))))
            yield f"| `{prefix}{name}` | {_default(field)} | {_escaped(meaning)} |"
        yield ""
    for name, field in section.model_fields.items():
        below = _below(field)
        if below is not None:
            yield from (f"## `{prefix}{name}`", "", f"{_escaped((below.__doc__ or '').strip().splitlines()[0])}", "")
            yield from _section(below, f"{prefix}{name}.")


def _below(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _choices(field: FieldInfo) -> str:
    values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f"One of {', '.join(f'`{value}`' for value in values)}." if values else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"`{_in_yaml(field.default)}`"


def _in_yaml(value: Any) -> str:
    """A value as YAML writes it in one line."""
    if isinstance(value, BaseModel):
        changed = {name: each for name, each in value.model_dump().items() if each}
        return "{" + ", ".join(f"{name}: {_in_yaml(each)}" for name, each in changed.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_in_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
