"""What infra/README.md shows: its own overlay, its commands as far as they need no cluster, its files and settings."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raygenesis.settings import PretrainingSettings
from tests.support.manifests import CHECKOUT, INFRA, OVERLAYS, cluster_of, containers_of, rendered

README = (INFRA / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
RAY = Path(sys.executable).with_name("ray")


def output_of(*command: str | Path, **environment: str) -> str:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, env={**outside, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_overlay_of_ones_own_names_registry_and_storage(tmp_path: Path) -> None:
    assert "kubectl kustomize my-cluster" in COMMANDS
    (overlay,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    shutil.copytree(INFRA, tmp_path / "infra")
    (tmp_path / "my-cluster").mkdir()
    (tmp_path / "my-cluster" / "kustomization.yaml").write_text(overlay)
    manifests = rendered(tmp_path / "my-cluster")
    images = {container["image"] for _, container in containers_of(cluster_of(manifests)) if "image" in container}
    assert images == {"REGISTRY/raygenesis:0.1.0-cpu", "REGISTRY/raygenesis:0.1.0-cuda"}
    tags = {tag for line in COMMANDS for tag in re.findall(r"--tag (\S+)", line)}
    assert tags == images
    claims = [manifest["spec"] for manifest in manifests if manifest["kind"] == "PersistentVolumeClaim"]
    assert [claim["storageClassName"] for claim in claims] == ["shared-files"] * 2


def test_the_secret_is_what_pods_look_for(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    (line,) = [line for line in COMMANDS if "create secret" in line]
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    (tmp_path / "FILE").write_text("".join(f"{name}=made-up\n" for name in names))
    line = line.replace("FILE", str(tmp_path / "FILE"))
    secret = yaml.safe_load(output_of(*shlex.split(line), "--dry-run=client", "--output=yaml"))
    assert secret["data"].keys() == set(names)
    for _, container in containers_of(cluster_of(rendered("cluster-s3"))):
        references = [source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source]
        assert references == ([secret["metadata"]["name"]] if "image" in container else [])


def test_the_token_is_made_where_the_launcher_takes_it_from(tmp_path: Path) -> None:
    assert "ray get-auth-token --generate" in COMMANDS
    token = output_of(RAY, "get-auth-token", "--generate", HOME=str(tmp_path)).strip()
    assert len(token) == 64 and (tmp_path / ".ray" / "auth_token").read_text() == token


@pytest.mark.slow
def test_ray_has_the_commands_and_their_options() -> None:
    shown = re.findall(
        r"\bray (job \w+|[a-z-]+)((?: [^\n`|&]*)?)", "\n".join([*COMMANDS, *re.findall("`([^`]*)`", README)])
    )
    asked = {verb: set() for verb, _ in shown}
    for verb, rest in shown:
        asked[verb] |= set(re.findall(r" (--[a-z-]+)", rest.split(" -- ")[0]))
    assert {"up", "down", "dashboard", "get-auth-token", "job submit", "job list", "job logs"} <= asked.keys()
    for verb, options in asked.items():
        told = output_of(RAY, *verb.split(), "--help")
        assert all(option in told for option in options), verb


def test_files_and_settings_are_those_of_the_tree() -> None:
    named = set(re.findall(r"`((?:kuberay|launcher|slurm|grafana)/[\w./-]*)`", README))
    assert {f"kuberay/{overlay}" for overlay in OVERLAYS} <= named
    assert all((INFRA / name).exists() for name in named)
    for line in COMMANDS:
        for path in re.findall(r"(?:infra|jobs)/[\w./-]+", line):
            assert (CHECKOUT / path).exists(), path
    settings = re.findall(r"pretraining\.(\w+)=(\[[\d,]+\]|\w+)", README)
    assert {"num_workers", "use_gpu", "scale_learning_rate"} == {name for name, _ in settings}
    for name, value in settings:
        PretrainingSettings.model_validate({name: yaml.safe_load(value)})
