"""The command line that gives settings again."""

from __future__ import annotations

import json
from typing import Any

import yaml

from raygenesis.errors import SettingsError
from raygenesis.settings.loading import DEFAULT_PRESET, adopt, load_settings, preset_names
from raygenesis.settings.trees import flatten
from raygenesis.workspace.manifest import Tree


def command_line_of(tree: Tree) -> list[str]:
    """The fewest arguments, a preset and `key=value`, that give the sections of a tree of settings.

    An empty list where this version has no such settings.
    """
    found = []
    for name in preset_names():
        preset = load_settings(name)
        try:
            wanted = flatten(adopt(preset, tree).model_dump(mode="json"))
        except SettingsError:  # it has other dimensions
            continue
        given = flatten(preset.model_dump(mode="json"))
        changed = [f"{key}={_as_yaml_value(value)}" for key, value in wanted.items() if value != given[key]]
        found.append([*(("--preset", name) if name != DEFAULT_PRESET else ()), *changed])
    return min(found, key=len, default=[])


def _as_yaml_value(value: Any) -> str:
    """A value as an override has it: plain text where YAML reads that as this text, otherwise JSON."""
    try:
        is_plain = isinstance(value, str) and yaml.safe_load(value) == value
    except yaml.YAMLError:
        is_plain = False
    return value if is_plain else json.dumps(value, ensure_ascii=False, separators=(",", ": "))
