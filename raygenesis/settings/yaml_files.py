"""YAML files, of which every fault is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raygenesis.errors import SettingsError
from raygenesis.settings.trees import MutableTree
from raygenesis.workspace.files import Place


def read_yaml(path: Place, kind: str) -> Any:
    """The content of a YAML file; kind: what messages call it. Raises SettingsError in one sentence."""
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"{kind} {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML: {_fault(error)}") from None


def read_mapping(path: Path, kind: str) -> MutableTree:
    """The mapping in a YAML file that describes a `kind`. Raises SettingsError in one sentence."""
    tree = read_yaml(path, kind)
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise SettingsError(f"{path} must hold a mapping that describes a {kind}, and holds {found}")
    return tree


def _fault(error: Exception) -> str:
    """Where the file is at fault, and how."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).splitlines()[0]
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
