"""Arguments of a command line that give settings again."""

from __future__ import annotations

from typing import Any

import pytest

from raygenesis.settings import PRESETS, command_line_of, load_settings

CHANGES = [
    [], ["seed=3"], ["archive.subject_pattern='(IXI\\d+-\\w+: [0-9]+)'", "intensity.window=[-1000,400.5]"],
    ["pretraining.learning_rate=1e-05", "pretraining.corruption=in-painting", "finetune.num_labelled=[5,20%]"],
    ["prices.cpu_hour=0.05", "discovery.box=null", "archive.subject_pattern='null'", "pretraining.trackers=[]"],
]  # fmt: skip


def loaded(arguments: list[str]) -> Any:
    has_preset = arguments[:1] == ["--preset"]
    return load_settings(*((arguments[1], arguments[2:]) if has_preset else ("cpu-small", arguments)))


@pytest.mark.parametrize("overrides", CHANGES)
@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_arguments_give_the_settings_that_they_are_for(preset: str, overrides: list[str]) -> None:
    settings = load_settings(preset, overrides)
    arguments = command_line_of(settings.model_dump(mode="json"))
    assert loaded(arguments).model_dump() == settings.model_dump()
    # No more than what was given: the nearest preset is found.
    assert len(arguments) <= len(overrides) + 2


def test_of_some_sections_only_these_are_given() -> None:
    tree = load_settings("paper-3d", ["discovery.num_neighbours=7"]).model_dump(mode="json", include={"discovery"})
    found = loaded(command_line_of({**tree, "method": "exact", "space": {"a": [1]}}))
    assert found.model_dump(mode="json", include={"discovery"}) == tree
    assert command_line_of({}) == [] == command_line_of({"plan": {"targets": {}}})
