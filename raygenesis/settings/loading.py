"""The tree of settings from a preset and overrides, from a run's folder, or from a plain tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raygenesis.errors import SettingsError
from raygenesis.settings.faults import validation_fault
from raygenesis.settings.tree import Settings
from raygenesis.settings.trees import MutableTree
from raygenesis.settings.yaml_files import read_yaml
from raygenesis.workspace.files import Place, as_place
from raygenesis.workspace.manifest import Tree

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "cpu-small"


def load_settings(preset: str = DEFAULT_PRESET, overrides: list[str] | None = None) -> Settings:
    """Resolve a preset and overrides of it.

    preset: a name, or a path to a YAML file. overrides: `key.path=value`, whose values are YAML. Raises SettingsError:
    one sentence that names the key, the value and the remedy.
    """
    tree = _read_preset(preset)
    for override in overrides or []:
        _apply_override(tree, override)
    return settings_from(tree, frozenset(override.partition("=")[0] for override in overrides or []))


def settings_from(tree: Tree, given: frozenset[str] = frozenset()) -> Settings:
    """Validate a plain tree; `given`: see `Settings`. Raises SettingsError with the first fault in one sentence."""
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(validation_fault(error, Settings)) from None
    settings._given = given
    return settings


def adopt(settings: Settings, other: Tree) -> Settings:
    """The settings, with the sections of another tree as they are there, but for keys that were given one by one.

    What is no section of settings, as manifests have it beside them, is ignored. Raises SettingsError.
    """
    tree = settings.model_dump(mode="json")
    for section, value in other.items():
        if section in settings.given or section not in tree:
            continue
        if isinstance(value, Mapping):
            tree[section] |= {key: each for key, each in value.items() if f"{section}.{key}" not in settings.given}
        else:
            tree[section] = value
    return settings_from(tree, settings.given)


def settings_of_run(folder: Place) -> Settings | None:
    """The settings in the folder of a pretraining run; None if it is no run's. Raises SettingsError if damaged."""
    config = folder / "config.yaml"
    if not config.is_file():
        return None
    try:
        return load_settings(str(config))
    except SettingsError as error:
        raise SettingsError(f"{config}: {error}") from None


def as_yaml(settings: Settings) -> str:
    """The resolved tree as YAML; a file of it is a preset."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def preset_names() -> list[str]:
    """The names of the presets that the package brings, in alphabetical order."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _read_preset(preset: str) -> MutableTree:
    path = as_place(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if not path.is_file():
        raise SettingsError(f"preset {preset!r} is neither a YAML file nor one of: {', '.join(preset_names())}")
    tree = read_yaml(path, "preset")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path} must hold a mapping of settings, not a {type(tree).__name__}")
    return tree


def _apply_override(tree: MutableTree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(f"{override!r} is not a setting: write key.path=value")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"{key}: {text!r} is not a YAML value") from None
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"{key}: {parent!r} is a value and has no settings below it")
    tree[leaf] = value
