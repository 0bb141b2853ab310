"""Trees of settings as plain mappings: merged and flattened."""

from __future__ import annotations

from typing import Any

from raygenesis.workspace.manifest import Tree

MutableTree = dict[str, Any]


def merge(*trees: Tree) -> MutableTree:
    """The sections of several trees in one; of a key that several have, the last one's value."""
    whole: MutableTree = {}
    for tree in trees:
        for section, value in tree.items():
            whole[section] = whole.get(section, {}) | value if isinstance(value, dict) else value
    return whole


def flatten(tree: Tree) -> MutableTree:
    """The values of a tree of settings by their keys, `section.key`."""
    sections = {section: value if isinstance(value, dict) else {"": value} for section, value in tree.items()}
    return {f"{section}.{key}".rstrip("."): value for section, keys in sections.items() for key, value in keys.items()}
