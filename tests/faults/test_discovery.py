"""Workers killed and a full disk while embedding and cropping: nothing lost, nothing doubled, the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import ndimage

from raygenesis.archive.catalogue import CATALOGUE
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.errors import WorkspaceError
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.weights.scan_encoders import save_scan_encoder
from raygenesis.patterns.reader import read_patterns
from raygenesis.settings import Settings, load_settings
from raygenesis.workspace.files import write_json
from raygenesis.workspace.workspace import Workspace
from tests.support.stores import finish_archive
from tests.support.synthetic import archived

NUM_VOLUMES = 48
ARCHITECTURE = {"input_shape": [32, 32, 32], "base_width": 16, "latent_size": 16}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """An ingested archive of blobs, and an auto-encoder that was not trained on it."""
    workspace = Workspace.open(tmp_path_factory.mktemp("archive"))
    rows = []
    for number in range(NUM_VOLUMES):
        blobs = ndimage.gaussian_filter(np.random.default_rng(number).standard_normal((40, 44, 42)), 2)
        voxels = ((blobs - blobs.min()) / np.ptp(blobs)).astype(np.float32)
        rows.append(archived(workspace.volumes, f"{number:02d}", voxels, (1.0, 1.0, 1.0), coarse_size=24))
    pq.write_table(pa.Table.from_pylist(rows, CATALOGUE), workspace.catalog)
    finish_archive(workspace, "given", NUM_VOLUMES)
    model = Autoencoder(**ARCHITECTURE)
    save_scan_encoder(workspace.root / "encoder.safetensors", "autoencoder", model.state_dict(), ARCHITECTURE)
    return workspace


@pytest.fixture(scope="module")
def settings(archive: Workspace) -> Settings:
    return load_settings(
        "cpu-small",
        [
            f"embedding.encoder={archive.root / 'encoder.safetensors'}", "embedding.volumes_per_part=3",
            "discovery.num_neighbours=30", "discovery.num_coordinates=12", "discovery.min_distance_mm=2",
            "discovery.scales=[{extent_mm: [20, 20, 20]}, {extent_mm: [20, 20, 20], shift_mm: 3}]",
            "discovery.cube_shape=[32, 64, 64]", "discovery.patterns_per_part=48",
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(archive: Workspace, settings: Settings, ray_cluster: None, tmp_path_factory) -> Workspace:
    made = copy_of(archive, tmp_path_factory.mktemp("undisturbed"))
    embed(made, settings)
    discover(made, settings)
    return made


def copy_of(archive: Workspace, root: Path) -> Workspace:
    shutil.copytree(archive.root, root, dirs_exist_ok=True)
    return Workspace.existing(root)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


@contextmanager
def killed_once(worker: str, reached: Callable[[], bool]) -> Iterator[list[int]]:
    """SIGKILL one of Ray's worker processes whose title has `worker` in it, as soon as `reached`."""
    killed: list[int] = []
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.is_set() and not killed:
            if reached():
                for process in psutil.Process().children(recursive=True):
                    try:
                        if worker in " ".join(process.cmdline()):
                            process.kill()
                            killed.append(process.pid)
                            break
                    except psutil.Error:
                        continue
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        stopped.set()
        thread.join()


def test_a_killed_embedding_actor_costs_nothing(archive, settings, undisturbed, tmp_path):
    workspace = copy_of(archive, tmp_path)
    with killed_once("Embedder", lambda: any(workspace.embeddings.glob("part-*.parquet"))) as killed:
        embed(workspace, settings)
    assert killed
    assert content(workspace.embeddings) == content(undisturbed.embeddings)
    assert len(content(workspace.embeddings)) == NUM_VOLUMES // 3


def test_a_killed_cropping_task_costs_nothing(archive, settings, undisturbed, tmp_path):
    workspace = copy_of(archive, tmp_path)
    shutil.copytree(undisturbed.embeddings, workspace.embeddings)
    with killed_once("crop_part", lambda: any(workspace.patterns.glob("part-*.parquet"))) as killed:
        discover(workspace, settings)
    assert killed
    assert content(workspace.patterns) == content(undisturbed.patterns)
    ids = read_patterns(workspace.patterns, ["pattern_id"])["pattern_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 12 * 2 * (30 + 8)


@pytest.mark.slow
def test_a_killed_driver_leaves_a_folder_that_the_next_one_finishes(archive, settings, undisturbed, tmp_path):
    workspace = copy_of(archive, tmp_path)
    shutil.copytree(undisturbed.embeddings, workspace.embeddings)
    code = (
        "import sys; from raygenesis.settings import settings_from;"
        "from raygenesis.workspace.workspace import Workspace; from raygenesis.workspace.files import read_json;"
        "from pathlib import Path; from raygenesis.discovery.discover import discover;"
        "discover(Workspace.existing(sys.argv[1]), settings_from(read_json(Path(sys.argv[2]))))"
    )
    write_json(tmp_path / "settings.json", settings.model_dump(mode="json"))
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "settings.json")]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(workspace.patterns.glob("part-*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(WorkspaceError, match=rf"patterns is being written by another job \(process {process.pid} on"):
        discover(workspace, settings)  # two jobs on one store: the second is refused
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (workspace.patterns / "manifest.json").exists()
    discover(workspace, settings)
    assert content(workspace.patterns) == content(undisturbed.patterns)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted, which needs root")
@pytest.mark.parametrize("stage", [pytest.param("embeddings", marks=pytest.mark.slow), "patterns"])
def test_a_full_disk_is_one_sentence_and_room_mends_it(stage, archive, settings, undisturbed, tmp_path):
    workspace = copy_of(archive, tmp_path)
    folder = workspace.root / stage
    folder.mkdir()
    size = sum(map(len, content(undisturbed.root / stage).values())) // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    make = embed if stage == "embeddings" else discover
    try:
        if stage == "patterns":
            shutil.copytree(undisturbed.embeddings, workspace.embeddings)
        with pytest.raises(WorkspaceError, match="cannot be written: No space left on device"):
            make(workspace, settings)
        assert all(pq.read_table(path).num_rows for path in folder.glob("part-*.parquet"))  # whole ones alone
        assert not list(folder.glob(".part-*"))
        subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
        make(workspace, settings)
        assert content(folder) == content(undisturbed.root / stage)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
