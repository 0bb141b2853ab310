"""How much of a second and a third node embedding and cropping can use.

    python -m tests.benchmarks.nodes [SECONDS_AN_ITEM]

Nodes are simulated on this machine, with 2 logical CPUs each; each scan costs a fixed time asleep (200 ms), so that the
cores do not limit it, and beyond that what it always does, on a small volume. What is measured is the stage's own code:
work list, tasks or actors, parts. The rate counts from when each CPU may have published a part to the last, and
`efficiency` is the rate on n nodes over n times the rate on one. On a machine with other work, let a scan take longer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

import raygenesis as raygenesis  # first of all: it gives Ray its settings
from raygenesis.archive.catalogue import write_catalogue
from raygenesis.discovery import crop as cropping
from raygenesis.discovery import embed as embedding
from raygenesis.discovery import store_writer
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.weights.scan_encoders import save_scan_encoder
from raygenesis.settings import Settings, load_settings
from raygenesis.workspace.manifest import ArchiveCounts, ArchiveManifest
from raygenesis.workspace.manifest_files import write_manifest
from raygenesis.workspace.workspace import Workspace
from tests.support.synthetic import archived

CPUS_PER_NODE = 2
NUM_NODES = (1, 2, 3)
NUM_VOLUMES = 480
VOLUMES_PER_PART = 8
SHAPE = (16, 16, 16)
ARCHITECTURE = {"input_shape": list(SHAPE), "base_width": 2, "latent_size": 8}
STAGES = ("embed", "crop")


def seconds_an_item() -> float:
    return float(os.environ["SECONDS_AN_ITEM"])


class SleepingEmbedder(embedding.Embedder):
    """Takes a fixed time for each scan."""

    def encode(self, cells: Sequence[bytes | None]) -> Any:
        time.sleep(seconds_an_item() * len(cells))
        return super().encode(cells)


real_crop_part, real_crop_cubes = store_writer.crop_part, store_writer.crop_cubes


def sleeping_crop_part(part: pa.Table, store: store_writer.StoreTask) -> pa.Table:
    """A task that takes a fixed time for each scan."""
    with mock.patch.object(store_writer, "crop_cubes", _sleeping_crop_cubes):
        return real_crop_part(part, store)


def _sleeping_crop_cubes(*arguments: Any) -> Any:
    time.sleep(seconds_an_item())
    return real_crop_cubes(*arguments)


def make_workspace(root: Path) -> Workspace:
    """An archive of one small volume under many names."""
    workspace = Workspace.open(root)
    voxels = np.random.default_rng(0).random(SHAPE, np.float32)
    row = archived(workspace.volumes, "0" * 16, voxels, (1.0, 1.0, 1.0), coarse_size=16)
    rows = []
    for number in range(NUM_VOLUMES):
        name = f"{number:016x}"
        if number:
            (workspace.volumes / f"{name}.ome.zarr").symlink_to(workspace.volumes / f"{'0' * 16}.ome.zarr")
        rows.append({**row, "volume_id": name, "subject_id": name, "source": name})
    write_catalogue(workspace.catalog, rows)
    counts = ArchiveCounts(scans=NUM_VOLUMES, volumes=NUM_VOLUMES, subjects=NUM_VOLUMES, failures=0)
    write_manifest(workspace.archive, ArchiveManifest(fingerprint="made up", counts=counts, source_bytes=0))
    state = Autoencoder(**ARCHITECTURE).state_dict()
    save_scan_encoder(root / "encoder.safetensors", "autoencoder", state, ARCHITECTURE)
    return workspace


def settings_of(workspace: Workspace) -> Settings:
    return load_settings(
        "cpu-small",
        [
            f"embedding.encoder={workspace.root / 'encoder.safetensors'}",
            f"embedding.volumes_per_part={VOLUMES_PER_PART}", "discovery.num_crops=1", "discovery.cube_shape=[8, 8, 8]",
            "discovery.scales=[{extent_mm: [8, 8, 8]}]", "discovery.min_content=0",
            f"discovery.patterns_per_part={VOLUMES_PER_PART}",
        ],
    )  # fmt: skip


def measure(root: str, num_nodes: str) -> None:
    """Run both stages on so many nodes, this process at the first one, and print their rates."""
    import ray
    from ray.cluster_utils import Cluster

    workspace = Workspace.existing(root)
    settings, num_cpus = settings_of(workspace), CPUS_PER_NODE * int(num_nodes)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS_PER_NODE, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    for _ in range(int(num_nodes) - 1):
        cluster.add_node(num_cpus=CPUS_PER_NODE)
    try:
        with mock.patch.object(embedding, "Embedder", SleepingEmbedder):
            _timed("embed", workspace.embeddings, num_cpus, lambda: embedding.embed(workspace, settings))
        with mock.patch.object(store_writer, "crop_part", sleeping_crop_part):
            _timed("crop", workspace.crops, num_cpus, lambda: cropping.crop(workspace, settings))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _timed(stage: str, folder: Path, num_cpus: int, make: Any) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.monotonic()
    make()
    seconds = time.monotonic() - begin
    times = np.sort([path.stat().st_mtime for path in folder.glob("part-*.parquet")])[num_cpus - 1 :]
    print(f"rate {stage} {(len(times) - 1) * VOLUMES_PER_PART / (times[-1] - times[0])} {seconds}", flush=True)


def main(seconds: str) -> None:
    environment = {
        **os.environ, "RAY_AUTH_MODE": "disabled", "SECONDS_AN_ITEM": seconds, "RAY_health_check_timeout_ms": "60000",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    print(f"{NUM_VOLUMES} scans, {float(seconds) * 1000:.0f} ms each, {CPUS_PER_NODE} logical CPUs a node")
    alone: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root:
        make_workspace(Path(root))
        for number in NUM_NODES:
            command = [sys.executable, "-m", "tests.benchmarks.nodes", "--measure", root, str(number)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            lines = [line.split() for line in done.stdout.splitlines() if line.startswith("rate ")]
            if len(lines) != len(STAGES):
                raise SystemExit(done.stdout + done.stderr)
            for _, stage, rate, whole in lines:
                share = float(rate) / number / alone.setdefault(stage, float(rate))
                print(
                    f"{stage:6s} {number} nodes {float(rate):7.1f} scans/s, efficiency {share:.2f}, "
                    f"{float(whole):6.1f} s with start-up", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "0.2")
