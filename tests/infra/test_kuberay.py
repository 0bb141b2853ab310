"""KubeRay's manifests against the schemas of KubeRay and Kubernetes, and against what they are said to do."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import raygenesis
from tests.support.manifests import CHECKOUT, INFRA, OVERLAYS, Manifest, cluster_of, groups_of, mebibytes, rendered, the

# KubeRay's own definitions of its resources, where they lie beside the checkout.
DEFINITIONS = CHECKOUT.parent / "shared" / "kuberay-crds"
KUBERNETES = kubernetes_validate.latest_version()


def closed(schema: Any) -> Any:
    """As the API server reads it: an object with listed properties has no others."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema and "additionalProperties" not in schema:
        schema["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return schema


@cache
def schema_of(kind: str) -> jsonschema.protocols.Validator:
    path = DEFINITIONS / f"{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's definition of {kind} is not at {path}")
    definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))


def validate(manifest: Manifest) -> None:
    if manifest["apiVersion"].startswith("ray.io/"):
        schema_of(manifest["kind"]).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def pod_of(group: Manifest) -> Manifest:
    template = group["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod", **template["metadata"]},
        "spec": template["spec"],
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_object_fits_its_schema(overlay: str) -> None:
    manifests = rendered(overlay)
    for manifest in manifests:
        validate(manifest)
    for _, group in groups_of(cluster_of(manifests)):
        validate(pod_of(group))


def test_the_schemas_know_a_misspelt_field_and_a_wrong_type() -> None:
    cluster = the("RayCluster", rendered("cluster"))
    for change in (
        {"enableInTreeAutoscalling": True},
        {"enableInTreeAutoscaling": "yes"},
        {"authOptions": {"mode": "on"}},
    ):
        wrong = copy.deepcopy(cluster)
        wrong["spec"].update(change)
        with pytest.raises(jsonschema.ValidationError):
            validate(wrong)
    pod = copy.deepcopy(pod_of(cluster["spec"]["headGroupSpec"]))
    pod["spec"]["containers"][0]["imagge"] = "raygenesis"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(pod)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_pod_has_room_for_its_object_store_in_memory(overlay: str) -> None:
    for name, group in groups_of(cluster_of(rendered(overlay))):
        pod = group["template"]["spec"]
        (ray,) = pod["containers"]
        (shm,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        store = int(group["rayStartParams"]["object-store-memory"]) / 2**20
        assert shm["medium"] == "Memory", name
        assert store < mebibytes(shm["sizeLimit"]) <= mebibytes(ray["resources"]["limits"]["memory"]) / 2, name
        assert {"name": "shm", "mountPath": "/dev/shm"} in ray["volumeMounts"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_mount_is_a_volume_of_the_pod_and_each_claim_is_among_the_objects(overlay: str) -> None:
    manifests = rendered(overlay)
    claims = {manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == "PersistentVolumeClaim"}
    used = set()
    for _, group in groups_of(cluster_of(manifests)):
        pod = group["template"]["spec"]
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == names
        used |= {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
    assert used == claims
    assert ("raygenesis-workspace" in claims) != overlay.endswith("s3")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_head_runs_no_tasks_and_only_training_has_gpus(overlay: str) -> None:
    groups = dict(groups_of(cluster_of(rendered(overlay))))
    assert groups["head"]["rayStartParams"]["num-cpus"] == "0"
    gpus = {
        name: "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name, group in groups.items()
    }
    assert gpus == {"head": False, "cpu": False, "gpu": True, "gpu8": True}
    spot = {name for name, group in groups.items() if "spot" in str(group["template"]["spec"].get("tolerations"))}
    assert spot == {"cpu"}
    for name in ("cpu", "gpu", "gpu8"):
        assert 0 <= groups[name]["minReplicas"] <= groups[name]["replicas"] <= groups[name]["maxReplicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_of_this_version_and_of_their_machine(overlay: str) -> None:
    for name, group in groups_of(cluster_of(rendered(overlay))):
        device = "cuda" if name.startswith("gpu") else "cpu"
        assert group["template"]["spec"]["containers"][0]["image"] == f"raygenesis:{raygenesis.__version__}-{device}"


def test_a_queued_job_waits_for_room_and_leaves_nothing() -> None:
    job = the("RayJob", rendered("job-queued"))
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "raygenesis"}
    assert job["spec"]["suspend"] and job["spec"]["shutdownAfterJobFinishes"]
    assert not job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]
    assert "suspend" not in the("RayJob", rendered("job"))["spec"]
    assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")


def test_a_job_is_the_cluster_of_the_same_files_with_the_settings_of_other_jobs() -> None:
    job = the("RayJob", rendered("job"))
    assert job["spec"]["rayClusterSpec"] == the("RayCluster", rendered("cluster"))["spec"]
    settings = yaml.safe_load((CHECKOUT / "jobs" / "runtime-env.yaml").read_text())["env_vars"]
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": settings}


def test_the_entrypoint_of_a_job_is_a_script_that_takes_its_options(tmp_path: Path) -> None:
    entrypoint = the("RayJob", rendered("job"))["spec"]["entrypoint"].replace("/opt/raygenesis", str(CHECKOUT))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "WORKSPACE": str(tmp_path / "workspace"),
    }
    done = subprocess.run(entrypoint, shell=True, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "scans folder /scans does not exist" in done.stderr


def test_an_object_store_takes_the_place_of_the_workspace_volume() -> None:
    told = the("ConfigMap", rendered("cluster-s3"))["data"]
    assert told["WORKSPACE"].startswith("s3://") and "AWS_REGION" in told
    assert the("ConfigMap", rendered("cluster"))["data"] == {"WORKSPACE": "/workspace"}
    for _, group in groups_of(cluster_of(rendered("cluster-s3"))):
        sources = group["template"]["spec"]["containers"][0]["envFrom"]
        assert {"secretRef": {"name": "raygenesis-s3", "optional": True}} in sources


def test_volumes_are_shared_by_all_machines() -> None:
    for claim in (manifest for manifest in rendered("cluster") if manifest["kind"] == "PersistentVolumeClaim"):
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_pod_monitor_selects_the_pods_and_a_port_that_they_have() -> None:
    monitor = yaml.safe_load((INFRA / "grafana" / "podmonitor.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for _, group in groups_of(cluster_of(rendered("cluster"))):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
        assert endpoint["port"] in {port["name"] for port in group["template"]["spec"]["containers"][0]["ports"]}
