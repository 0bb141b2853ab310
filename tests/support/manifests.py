"""The Kubernetes manifests as `kubectl kustomize` renders them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
INFRA = CHECKOUT / "infra"
OVERLAYS = ["cluster", "cluster-s3", "job", "job-queued"]

Manifest = dict[str, Any]


@cache
def rendered(overlay: str | Path) -> list[Manifest]:
    """All objects of an overlay below infra/kuberay, or of a folder of one's own."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl, which renders the manifests")
    command = [kubectl, "kustomize", INFRA / "kuberay" / overlay]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def the(kind: str, manifests: list[Manifest]) -> Manifest:
    """The only object of a kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def cluster_of(manifests: list[Manifest]) -> Manifest:
    """The specification of the Ray cluster, its own or a job's."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] in ("RayCluster", "RayJob")]
    return found["spec"] if found["kind"] == "RayCluster" else found["spec"]["rayClusterSpec"]


def groups_of(cluster: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Name and specification of the head and of each group of workers."""
    yield "head", cluster["headGroupSpec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group


def containers_of(cluster: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Name and specification of each container, the autoscaler's among them."""
    for name, group in groups_of(cluster):
        for container in group["template"]["spec"]["containers"]:
            yield f"{name}/{container['name']}", container
    if cluster["enableInTreeAutoscaling"]:
        yield "autoscaler", cluster["autoscalerOptions"]


def mebibytes(quantity: str) -> float:
    """A Kubernetes quantity of bytes with a binary suffix."""
    return float(quantity[:-2]) * {"Mi": 1, "Gi": 2**10, "Ti": 2**20}[quantity[-2:]]
