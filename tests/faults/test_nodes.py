"""The pipeline on three Ray nodes: one machine's result, whichever node is lost, comes late or is started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygenesis.archive.ingest import ingest
from raygenesis.archive.intake import parallel as ingesting
from raygenesis.archive.intake.parallel import take_in_block
from raygenesis.discovery import embed as embedding
from raygenesis.discovery import encoders as encoding
from raygenesis.discovery import neighbours as indexing
from raygenesis.discovery import store_writer
from raygenesis.discovery.autoencoder_training import IdentityMapping
from raygenesis.discovery.crop import crop
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import Embedder, embed
from raygenesis.discovery.encoders import train_autoencoder
from raygenesis.pretraining import pretrain as pretraining
from raygenesis.pretraining.pretrain import pretrain
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import load_settings
from raygenesis.sweeps import trials as sweeping
from raygenesis.sweeps.sweep import sweep
from raygenesis.transfer import finetune as finetuning
from raygenesis.transfer.description import parse_description
from raygenesis.transfer.finetune import finetune
from raygenesis.transfer.trial import run_trial
from raygenesis.workspace.files import read_json
from raygenesis.workspace.object_store import remote
from raygenesis.workspace.workspace import Workspace
from tests.support.data import HEADS, needs_heads
from tests.support.main_job import NUM_HEADS, TINY, content, losses
from tests.support.s3 import BUCKET, s3_server
from tests.support.targets import SHAPE, write_boxes

pytestmark = [needs_heads, pytest.mark.slow, pytest.mark.timeout(3600)]

SETTINGS = [
    *TINY, "embedding.volumes_per_part=2", "index.method=hnsw", "index.volumes_per_shard=4",
    "discovery.patterns_per_part=12", "discovery.num_crops=4",
    "sweep.num_classification_epochs=1", "sweep.num_joint_epochs=1",
    f"finetune.input_shape={list(SHAPE)}", "finetune.num_labelled=2", "finetune.num_test=3", "finetune.num_trials=3",
    "finetune.num_steps=3", "finetune.batch_size=2",
]  # fmt: skip
Stage = Callable[[Path, Workspace], Any]


def settings() -> Any:
    return load_settings("cpu-small", SETTINGS)


def _finetune(root: Path, workspace: Workspace) -> None:
    tree = {"task": "segmentation", "images": "images", "labels": "labels"}
    finetune(parse_description(tree, root / "target", "target"), workspace, settings())


def _index(root: Path, workspace: Workspace) -> None:
    chosen = settings()
    indexing.build_index(workspace, chosen.index, chosen.discovery, chosen.seed)


STAGES: dict[str, Stage] = {
    "ingest": lambda root, workspace: ingest(root / "scans", workspace, settings()),
    "autoencoder": lambda _, workspace: train_autoencoder(workspace, settings()),
    "embed": lambda _, workspace: embed(workspace, settings()),
    "index": _index,
    "discover": lambda _, workspace: discover(workspace, settings()),
    "crop": lambda _, workspace: crop(workspace, settings()),
    "pretrain": lambda _, workspace: pretrain(workspace, settings()),
    "sweep": lambda _, workspace: sweep(workspace, settings()),
    "finetune": _finetune,
}


# The same work as ever, but slow enough for a node to be lost in the midst of it, and for another one to come.


def wait(seconds: float) -> None:
    time.sleep(seconds)
    deadline = time.monotonic() + 120
    while held().exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def held() -> Path:
    """Is there while a node is being started, and work waits for it."""
    return Path(os.environ["NODES_HELD"])


def slow_block(block: Any, **arguments: Any) -> Any:
    wait(0.5 * block.num_rows)
    return take_in_block(block, **arguments)


class SlowEmbedder(Embedder):
    def __call__(self, part: Any) -> Any:
        wait(1)
        return super().__call__(part)


def slow_patterns(part: Any, store: Any) -> Any:
    time.sleep(0.5)
    return cropped_part(part, store)


def slow_crops(part: Any, store: Any) -> Any:
    wait(0.5)
    return cropped_part(part, store)


class SlowGraphBuilder(indexing.GraphBuilder):
    def __call__(self, part: pa.Table) -> pa.Table:
        time.sleep(1)
        return super().__call__(part)


def slow_point(*arguments: Any, **shared: Any) -> None:
    wait(1)
    swept_point(*arguments, **shared)


cropped_part = store_writer.crop_part
swept_point = sweeping.run_sweep_trial


@dataclass(frozen=True)
class SlowMapping(IdentityMapping):
    def losses(self, model: Any, batch: Any, epoch: int, teacher: Any = None) -> Any:
        time.sleep(1)
        return super().losses(model, batch, epoch)


@dataclass(frozen=True)
class SlowTask(PretextTask):
    def losses(self, model: Any, batch: Any, epoch: int, teacher: Any = None) -> Any:
        time.sleep(1)
        return super().losses(model, batch, epoch)


def slow_trial(*arguments: Any) -> str:
    time.sleep(1)
    return run_trial(*arguments)


@dataclass(frozen=True)
class Loss:
    """When a node is lost: once `reached`, and one on which a process works whose title has `title` in it."""

    slow: Any  # what makes the stage slow
    title: str
    reached: Callable[[Path], bool]


GROWING = ("ingest", "embed", "crop", "sweep")  # stages in which a node comes, besides
LOSSES = {
    "ingest": Loss(
        mock.patch.object(ingesting, "take_in_block", slow_block), "slow_block",
        lambda ws: any(ws.glob("archive/volumes/*.ome.zarr/zarr.json")),
    ),
    "autoencoder": Loss(
        mock.patch.object(encoding, "IdentityMapping", SlowMapping), "RayTrainWorker",
        lambda ws: (ws / "autoencoder" / "metrics.parquet").exists(),
    ),
    "embed": Loss(
        mock.patch.object(embedding, "Embedder", SlowEmbedder), "SlowEmbedder",
        lambda ws: any(ws.glob("embeddings/part-*.parquet")),
    ),
    "index": Loss(
        mock.patch.object(indexing, "GraphBuilder", SlowGraphBuilder), "SlowGraphBuilder",
        lambda ws: any(ws.glob("index/shard-*.hnsw")),
    ),
    "discover": Loss(
        mock.patch.object(store_writer, "crop_part", slow_patterns), "slow_patterns",
        lambda ws: any(ws.glob("patterns/part-*.parquet")),
    ),
    "crop": Loss(
        mock.patch.object(store_writer, "crop_part", slow_crops), "slow_crops",
        lambda ws: any(ws.glob("crops/part-*.parquet")),
    ),
    "pretrain": Loss(
        mock.patch.object(pretraining, "PretextTask", SlowTask), "RayTrainWorker",
        lambda ws: (ws / "runs" / "default" / "metrics.parquet").exists(),
    ),
    "sweep": Loss(
        mock.patch.object(sweeping, "run_sweep_trial", slow_point), "ImplicitFunc",
        lambda ws: any(ws.glob("sweeps/default/trial-*.json")),
    ),
    "finetune": Loss(
        mock.patch.object(finetuning, "run_trial", slow_trial), "slow_trial",
        lambda ws: any(ws.glob("transfer/default/trial-*.json")),
    ),
}  # fmt: skip
FOLDERS = {
    "ingest": "archive", "autoencoder": "autoencoder", "embed": "embeddings", "index": "index", "discover": "patterns",
    "crop": "crops", "pretrain": "runs/default", "sweep": "sweeps/default", "finetune": "transfer/default",
}  # fmt: skip


@contextmanager
def nodes(num_workers: int) -> Iterator[Any]:
    """A cluster with this process at its head, where nothing but it works, and so many other nodes of 2 CPUs."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)  # while the head is alone: the driver is not to be lost
    for _ in range(num_workers):
        cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    try:
        with mock.patch.dict(os.environ, RAY_ADDRESS=cluster.address):  # as `ray job submit` has it
            yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()  # left to the end of the process, it ends it with an exit code of its own


def works_on(node: Any, title: str) -> bool:
    """Whether a node has a process that works and whose title has `title` in it."""
    (raylet,) = node.all_processes["raylet"]
    try:
        return any(title in " ".join(child.cmdline()) for child in psutil.Process(raylet.process.pid).children())
    except psutil.Error:
        return False


def check_whole(workspace: Path) -> None:
    """Whatever a reader sees is whole, though its writer has just been killed."""
    for path in workspace.glob("*/part-*.parquet"):
        assert pq.read_table(path).num_rows
    for volume in workspace.glob("archive/volumes/[!.]*.ome.zarr"):
        assert read_json(volume / "zarr.json")


def lose_one(cluster: Any, stage: str, workspace: Path, log: list[str]) -> None:
    """Kill a node that works; in some stages another one comes, and is waited for until it works."""
    loss = LOSSES[stage]
    while True:
        working = [node for node in cluster.worker_nodes if works_on(node, loss.title)]
        if working and loss.reached(workspace):
            break
        time.sleep(0.02)
    assert not (workspace / FOLDERS[stage] / "manifest.json").exists()
    if stage in GROWING:
        held().touch()
    cluster.remove_node(working[0], allow_graceful=False)
    log.append("lost")
    check_whole(workspace)
    if stage not in GROWING:
        return
    with mock.patch("ray._private.utils.set_sigterm_handler"):  # which only the main thread may set
        fresh = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes(120)
    held().unlink()
    used = False
    while not (workspace / FOLDERS[stage] / "manifest.json").exists():
        used = used or works_on(fresh, loss.title)
        time.sleep(0.02)
    if used:
        log.append("used")
    cluster.remove_node(fresh, allow_graceful=False)  # the system ends it with the thread that started it


def run_losing_nodes(root: str, location: str, *stages: str) -> None:
    """Some stages, each losing a node; prints what became of the nodes."""
    workspace = Workspace.existing(location)
    with nodes(2) as cluster:
        for stage in stages:
            log: list[str] = []
            watch = threading.Thread(target=lose_one, args=(cluster, stage, Path(location), log), daemon=True)
            watch.start()
            with LOSSES[stage].slow:
                STAGES[stage](Path(root), workspace)
            watch.join(60)
            print(f"nodes: {stage} {' '.join(log)}", flush=True)
            while len(cluster.worker_nodes) < 2:
                cluster.add_node(num_cpus=2)


def run_stages(root: str, location: str, *stages: str) -> None:
    """Some stages on a cluster of three nodes."""
    workspace = Workspace.existing(location)
    with nodes(2):
        for stage in stages:
            STAGES[stage](Path(root), workspace)


def in_a_process(
    function: Callable[..., None], *arguments: Any, cluster: bool = True, variables: Mapping[str, str] | None = None
) -> str:
    """What a function of this module prints in a process of its own, the driver of a cluster."""
    environment = {**os.environ, **(variables or {}), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if cluster:
        # On a busy machine a node may take long to answer and a worker to start, and neither is lost for that.
        environment |= {
            "RAY_AUTH_MODE": "disabled", "RAY_health_check_timeout_ms": "60000",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
        }  # fmt: skip
    code = f"import sys, raygenesis; from tests.faults import test_nodes; test_nodes.{function.__name__}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True,
        timeout=2400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run_alone(root: str, location: str) -> None:
    """All stages on this machine alone."""
    for make in STAGES.values():
        make(Path(root), Workspace.existing(location))


def made(workspace: Path) -> dict[str, bytes]:
    """Bytes of what must not depend on nodes."""
    crops = {path.name: path.read_bytes() for path in workspace.glob("crops/part-*.parquet")}
    return content(workspace) | {f"crops/{name}": cells for name, cells in crops.items()}


def figures(workspace: Path) -> dict[str, Any]:
    """What the trials of the sweep and of fine-tuning found."""
    swept = [read_json(path) for path in sorted(workspace.glob("sweeps/default/trial-*.json"))]
    results = {path.name: read_json(path) for path in workspace.glob("transfer/default/trial-*.json")}
    found = {name: (result["figures"], result["test"]) for name, result in results.items()}
    return found | {str(row["point"]): (row["status"], row["retrieval"], row["loss"]) for row in swept}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans, a target, and workspaces with one key, so that subjects have one name in all."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "scans").mkdir()
    for head in sorted(HEADS.glob("*.nii.gz"))[:NUM_HEADS]:
        shutil.copy(head, folder / "scans")
    write_boxes(folder / "target", 10)
    for name in ("alone", "restarted", "losing"):
        (folder / name / "private").mkdir(parents=True)
        (folder / name / "private" / "key").write_text("5e" * 32)
    return folder


@pytest.fixture(scope="module")
def alone(root: Path) -> Path:
    in_a_process(run_alone, root, root / "alone", cluster=False)
    return root / "alone"


def check_same(workspace: Path, alone: Path) -> None:
    assert made(workspace).keys() == made(alone).keys()
    assert made(workspace) == made(alone)
    assert losses(workspace) == losses(alone)
    for stage in ("archive", "embeddings", "patterns", "crops"):
        assert pq.read_table(workspace / stage / "failures.parquet").num_rows == 0, stage


def test_three_nodes_and_a_new_head_in_between_give_what_one_machine_gives(root: Path, alone: Path) -> None:
    workspace = root / "restarted"
    in_a_process(run_stages, root, workspace, "ingest", "autoencoder", "embed")
    in_a_process(run_stages, root, workspace, "embed", "discover", "crop", "pretrain")
    check_same(workspace, alone)


def test_a_node_lost_in_any_stage_costs_nothing_and_one_that_comes_is_used(root: Path, alone: Path) -> None:
    workspace = root / "losing"
    variables = {"NODES_HELD": str(root / "held")}
    said = in_a_process(run_losing_nodes, root, workspace, *STAGES, variables=variables)
    fates = {line.split()[1]: line for line in said.splitlines() if line.startswith("nodes: ")}
    assert fates.keys() == STAGES.keys()
    for stage, line in fates.items():
        assert "lost" in line, stage
    assert [stage for stage in STAGES if "used" in fates[stage]] == list(GROWING)
    check_same(workspace, alone)
    assert figures(workspace) == figures(alone)


def test_three_nodes_that_share_an_object_store_give_what_one_machine_gives(
    root: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    with s3_server(tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        workspace = remote(f"s3://{BUCKET}/nodes")
        (workspace / "private" / "key").write_text("5e" * 32)
        stages = [stage for stage in STAGES if stage not in ("sweep", "finetune")]
        in_a_process(run_stages, root, workspace, *stages, variables=variables)
        for path in workspace.rglob("*"):
            if path.is_file():
                local = shared / str(path).removeprefix(f"{workspace}/")
                local.parent.mkdir(parents=True, exist_ok=True)
                path.download(local)
    check_same(shared, alone)
