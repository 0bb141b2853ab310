"""The cluster launcher's files against Ray's own schema, and against what they are said to do."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.manifests import CHECKOUT, INFRA

FILES = sorted((INFRA / "launcher").glob("*.yaml"))
launchers = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def launcher_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_there_is_a_file_for_each_cloud() -> None:
    assert [path.stem for path in FILES] == ["aws", "gcp"]


@launchers
def test_ray_takes_the_file_and_refuses_a_misspelt_key(path: Path) -> None:
    validate_config(prepare_config(launcher_of(path)))
    wrong = copy.deepcopy(launcher_of(path))
    wrong["idle_timeout_minuts"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config(wrong))


@launchers
def test_only_cpu_workers_are_spot_machines(path: Path) -> None:
    types = launcher_of(path)["available_node_types"]
    assert types.keys() == {"head", "cpu", "gpu", "gpu8"}
    assert {name for name, machine in types.items() if "spot" in str(machine["node_config"]).lower()} == {"cpu"}
    assert {name: machine["resources"] for name, machine in types.items()} == {
        "head": {"CPU": 0}, "cpu": {"CPU": 8}, "gpu": {"CPU": 8, "GPU": 1},
        "gpu8": {"CPU": 96, "GPU": 8},
    }  # fmt: skip


@launchers
def test_what_is_copied_is_there_and_makes_an_installation(path: Path) -> None:
    mounts = launcher_of(path)["file_mounts"]
    assert all((CHECKOUT / local).exists() for local in mounts.values() if not local.startswith("~"))
    project = (CHECKOUT / "pyproject.toml").read_text()
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "raygenesis", "jobs"}
    assert {local for local in mounts.values() if not local.startswith("~")} == needed
    for name in ("README.md", "LICENSE"):
        assert f'"{name}"' in project


@launchers
def test_ray_start_has_the_options_that_are_given(path: Path) -> None:
    known = subprocess.run(
        [Path(sys.executable).with_name("ray"), "start", "--help"], capture_output=True, text=True, check=True
    ).stdout
    launcher = launcher_of(path)
    lines = [*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]
    options = {option for line in lines for option in re.findall(r"--[a-z-]+", line)}
    assert len(options) >= 6 and {option for option in options if option not in known} == set()


def test_the_security_group_opens_nothing_but_ssh() -> None:
    """Ray's own rules are SSH and the group itself; a file can only add to them."""
    assert launcher_of(INFRA / "launcher" / "aws.yaml")["provider"]["security_group"].keys() == {"GroupName"}
