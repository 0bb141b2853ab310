"""Who may reach what, and where no secret may stand: of all files under infra/ and jobs/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support.manifests import CHECKOUT, INFRA, OVERLAYS, cluster_of, containers_of, groups_of, rendered, the

LAUNCHERS = sorted((INFRA / "launcher").glob("*.yaml"))
CLOSED = {6379, 8265, 10001}

# NAME=value, NAME: value or "NAME": "value"; the value is a literal unless it begins like a variable, a path, a name
# of something that holds it, or a mode.
ASSIGNED = re.compile(
    r"""(?ix) [\w.-]* (?: token | secret | password | passwd | api_?key | access_?key | private_?key | credential )
    [\w.-]* ["']? \s* [:=] \s* (?P<value> ["']? [^\s"'#,}\]]+ )"""
)
HARMLESS = re.compile(r"""^["']? (?: \$ | ~/ | \{ | \[ | token$ | required$ | false$ )""", re.VERBOSE)
KEYS = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{40,}\b|\bhf_[A-Za-z0-9]{20,}")


def secrets_in(text: str) -> list[str]:
    """What looks like a secret that is written out."""
    assigned = [match[0] for match in ASSIGNED.finditer(text) if not HARMLESS.match(match["value"])]
    return assigned + KEYS.findall(text)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_ray_answers_to_its_token_only(overlay: str) -> None:
    assert cluster_of(rendered(overlay))["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_launched_ray_answers_to_its_token_only(path: Path) -> None:
    launcher = yaml.safe_load(path.read_text())
    starts = [
        line
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for line in launcher[key]
        if "ray start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line.split("ray start")[0] for line in starts)
    assert launcher["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    (head,) = [line for line in starts if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in head


def test_slurm_ray_answers_to_a_token_of_the_job() -> None:
    script = (INFRA / "slurm" / "raygenesis.sbatch").read_text()
    assert "RAY_AUTH_TOKEN=$(openssl rand -hex 32)\n" in script and "RAY_AUTH_MODE=token" in script
    assert "--dashboard-host" not in script  # Ray's own choice is 127.0.0.1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_service_is_open_to_the_world(overlay: str) -> None:
    manifests = rendered(overlay)
    for manifest in manifests:
        assert manifest["kind"] not in ("Ingress", "Gateway", "HTTPRoute", "Secret")
        assert manifest["kind"] != "Service" or manifest["spec"].get("type", "ClusterIP") == "ClusterIP"
    head = cluster_of(manifests)["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP" and not head.get("enableIngress")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_pods_are_closed_to_all_but_themselves_the_operator_and_prometheus(overlay: str) -> None:
    manifests = rendered(overlay)
    policy = the("NetworkPolicy", manifests)["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    for name, group in groups_of(cluster_of(manifests)):
        pod = group["template"]
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), name
        assert not pod["spec"].get("hostNetwork"), name
        assert not any("hostPort" in port for port in pod["spec"]["containers"][0]["ports"]), name
    for rule in policy["ingress"]:
        (source,) = rule["from"]
        if source == {"podSelector": policy["podSelector"]}:
            continue
        assert set(source) <= {"namespaceSelector", "podSelector"} and source["namespaceSelector"]["matchLabels"]
        ports = {port["port"] for port in rule["ports"]}
        operator = source.get("podSelector", {}).get("matchLabels") == {"app.kubernetes.io/name": "kuberay-operator"}
        assert ports & CLOSED == ({8265} if operator else set())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_have_no_rights_that_they_do_not_need(overlay: str) -> None:
    cluster = cluster_of(rendered(overlay))
    for name, group in groups_of(cluster):
        pod = group["template"]["spec"]["securityContext"]
        assert pod["runAsNonRoot"] and pod["runAsUser"] == 1000, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        # The head's autoscaler asks the Kubernetes API for pods; workers have nothing to ask it.
        assert group["template"]["spec"].get("automountServiceAccountToken", True) == (name == "head")
    for name, container in containers_of(cluster):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], name
        assert context["capabilities"] == {"drop": ["ALL"]} and not context.get("privileged"), name
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert {"/tmp", "/home/raygenesis"} <= writable <= {"/tmp", "/home/raygenesis", "/dev/shm", "/workspace"}, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_requests_equal_limits(overlay: str) -> None:
    for name, container in containers_of(cluster_of(rendered(overlay))):
        resources = container["resources"]
        assert resources["requests"] == resources["limits"] and {"cpu", "memory"} <= resources["limits"].keys(), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_head_is_not_evicted(overlay: str) -> None:
    budget = the("PodDisruptionBudget", rendered(overlay))["spec"]
    labels = cluster_of(rendered(overlay))["headGroupSpec"]["template"]["metadata"]["labels"]
    assert budget["minAvailable"] == 1
    # KubeRay adds the second label.
    assert budget["selector"]["matchLabels"].items() <= {**labels, "ray.io/node-type": "head"}.items()


def test_no_file_holds_a_secret() -> None:
    files = [path for folder in ("infra", "jobs") for path in (CHECKOUT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_text() for path in files if "__pycache__" not in path.parts}
    assert len(texts) > 20
    assert {path: found for path, text in texts.items() if (found := secrets_in(text))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "export RAY_AUTH_TOKEN=hunter2", 'auth_token: "abcdef"', "AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI",
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE", '"password": "correct"', "-----BEGIN RSA PRIVATE KEY-----",
    ],
)  # fmt: skip
def test_a_secret_is_seen(line: str) -> None:
    assert secrets_in(line)


@pytest.mark.parametrize("line", ["RAY_AUTH_TOKEN=$(openssl rand -hex 32)", "authOptions:\n  mode: token"])
def test_what_is_no_secret_is_not(line: str) -> None:
    assert not secrets_in(line)
