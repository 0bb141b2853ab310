"""Settings from a preset and overrides, as YAML, and every mistake in them in one sentence."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raygenesis.errors import SettingsError
from raygenesis.settings.tree import Settings
from raygenesis.workspace.files import Place, as_place

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "cpu-small"


def load_settings(preset: str = DEFAULT_PRESET, overrides: list[str] | None = None) -> Settings:
    """Resolve a preset (a name, or a path to a YAML file) and `key.path=value` overrides.

    Raises SettingsError: one sentence naming the key, the value and the remedy.
    """
    tree = _read_preset(preset)
    for override in overrides or []:
        _apply_override(tree, override)
    return settings_from(tree, frozenset(override.partition("=")[0] for override in overrides or []))


def settings_from(tree: dict[str, Any], given: frozenset[str] = frozenset()) -> Settings:
    """Validate a plain tree; `given`: see `Settings`. Raises SettingsError with the first fault in one sentence."""
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(sentence(error, Settings)) from None
    settings._given = given
    return settings


def adopt(settings: Settings, theirs: Mapping[str, Any]) -> Settings:
    """The settings, with the sections of another tree as they are there, but for keys that were given one by one.

    What is no section of settings, as manifests have it beside them, is passed by.
    """
    tree = settings.model_dump(mode="json")
    for section, value in theirs.items():
        if section in settings.given or section not in tree:
            continue
        if isinstance(value, Mapping):
            tree[section] |= {key: each for key, each in value.items() if f"{section}.{key}" not in settings.given}
        else:
            tree[section] = value
    return settings_from(tree, settings.given)


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of several trees in one; of a key that several have, the last's value."""
    whole: dict[str, Any] = {}
    for tree in trees:
        for section, value in tree.items():
            whole[section] = whole.get(section, {}) | value if isinstance(value, dict) else value
    return whole


def dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a tree of settings by their keys, `section.key`."""
    sections = {section: value if isinstance(value, dict) else {"": value} for section, value in tree.items()}
    return {f"{section}.{key}".rstrip("."): value for section, keys in sections.items() for key, value in keys.items()}


def command_line_of(tree: Mapping[str, Any]) -> list[str]:
    """The fewest words of a command line, a preset and `key=value`, that give the sections of a tree of settings.

    None where this version cannot have them.
    """
    found = []
    for name in sorted(path.stem for path in PRESETS.glob("*.yaml")):
        preset = load_settings(name)
        try:
            wanted = dotted(adopt(preset, tree).model_dump(mode="json"))
        except SettingsError:  # it has other dimensions
            continue
        there = dotted(preset.model_dump(mode="json"))
        changed = [f"{key}={_as_word(value)}" for key, value in wanted.items() if value != there[key]]
        found.append([*(("--preset", name) if name != DEFAULT_PRESET else ()), *changed])
    return min(found, key=len, default=[])


def _as_word(value: Any) -> str:
    """A value as `_apply_override` reads it."""
    try:
        is_plain = isinstance(value, str) and yaml.safe_load(value) == value
    except yaml.YAMLError:
        is_plain = False
    return value if is_plain else json.dumps(value, ensure_ascii=False, separators=(",", ": "))


def settings_beside(folder: Place) -> Settings | None:
    """The settings of the pretraining run whose folder it is; None if it is not one's. Raises SettingsError."""
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


def _read_preset(preset: str) -> dict[str, Any]:
    path = as_place(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise SettingsError(f"preset {preset!r} is neither a YAML file nor one of: {known}")
    tree = read_yaml(path, "preset")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path} must hold a mapping of settings, not a {type(tree).__name__}")
    return tree


def read_yaml(path: Place, kind: str) -> Any:
    """What a YAML file holds; kind: what sentences call it. Raises SettingsError in one sentence."""
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"{kind} {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML: {_yaml_fault(error)}") from None


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """The mapping in a YAML file that describes a `kind`. Raises SettingsError in one sentence."""
    tree = read_yaml(path, kind)
    if not isinstance(tree, dict):
        there = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise SettingsError(f"{path} must hold a mapping that describes a {kind}, and holds {there}")
    return tree


def _yaml_fault(error: Exception) -> str:
    """Where a YAML file is at fault, and how."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).splitlines()[0]
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(f"{override!r} is not a setting: write key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"{key}: {text!r} is not a YAML value") from None
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"{key}: {parent!r} is a value and has no settings below it")
    tree[leaf] = value


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault that pydantic found in a tree of `model`."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")  # a misspelling explains the rest
    # Where several types are allowed, the name of the one that was tried comes last.
    key = ".".join(str(part) for part in fault["loc"] if str(part).replace("_", "").isalnum())
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {key!r}{_nearest(fault['loc'], model)}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    return f"{key}={fault['input']!r} is not allowed: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _nearest(location: tuple[int | str, ...], model: Any) -> str:
    for part in location[:-1]:
        if isinstance(part, int):
            model = get_args(model)[0]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    known = list(getattr(model, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f": did you mean {'.'.join([*map(str, location[:-1]), close[0]])!r}?"
    return f": known here are {', '.join(known)}" if known else ""
