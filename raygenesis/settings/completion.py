"""What a shell proposes for presets and settings on a command line that is being typed."""

from __future__ import annotations

from raygenesis.settings.loading import load_settings, preset_names
from raygenesis.settings.trees import flatten


def complete_preset(incomplete: str) -> list[str]:
    """The presets that begin with what has been typed."""
    return [name for name in preset_names() if name.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """The settings, as `key.path=`, that begin with what has been typed."""
    keys = flatten(load_settings().model_dump(mode="json"))
    return [f"{key}=" for key in keys if key.startswith(incomplete)]
