"""A whole workspace in an object store: every verb, the same bytes as on a disk, a kill, and how little is fetched."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygenesis import PatternDataset, load_network
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING
from raygenesis.patterns.verification import verify
from raygenesis.training.checkpoints import newest_checkpoint, save_checkpoint, steps_in
from raygenesis.training.file_samples import StoredPatterns
from raygenesis.training.metrics import read_metrics
from raygenesis.training.trackers import TensorBoard
from raygenesis.workspace import object_store as remote
from raygenesis.workspace.artifacts import RUNS, SWEEPS, TRANSFER
from raygenesis.workspace.files import Place, publish, read_json, read_table, write_table
from raygenesis.workspace.object_store import RemotePath
from raygenesis.workspace.workspace import Workspace
from tests.support.data import HEADS, HIPPOCAMPI, needs_heads, needs_hippocampi
from tests.support.experiments import read_steps, without_timings
from tests.support.main_job import TINY, raygenesis
from tests.support.s3 import BUCKET, s3_server
from tests.support.stores import StorePlan

KEY = "5c" * 32
FEW_STEPS = [
    *TINY, "sweep.num_classification_epochs=1", "sweep.num_joint_epochs=1", "finetune.num_steps=2",
    "finetune.num_test=2", "finetune.num_trials=2", "finetune.num_labelled=[3]",
]  # fmt: skip
# Long enough to be killed in the midst of it, with a checkpoint after nearly every step.
LONG = [*TINY, "pretraining.num_joint_epochs=12", "pretraining.checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patched, s3_server(tmp_path_factory.mktemp("s3")) as variables:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patched.delenv(name, raising=False)
        for name, value in variables.items():
            patched.setenv(name, value)
        yield variables


@contextmanager
def counted(endpoint: str) -> Iterator[tuple[str, list[int]]]:
    """A way to the server, cut in the end, and the numbers of bytes that came back by it."""
    sizes: list[int] = []
    callers: list[socket.socket] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            callers.append(self.request)
            with socket.create_connection((urlsplit(endpoint).hostname, urlsplit(endpoint).port)) as there:
                back = threading.Thread(target=self._pass, args=(there, self.request, sizes))
                back.start()
                self._pass(self.request, there, [])
                back.join()

        def _pass(self, source: socket.socket, target: socket.socket, passed: list[int]) -> None:
            with suppress(OSError):  # the other direction has ended this one
                while data := source.recv(2**16):
                    target.sendall(data)
                    passed.append(len(data))
                target.shutdown(socket.SHUT_WR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}", sizes
        proxy.shutdown()
    for caller in callers:
        with suppress(OSError):  # it has gone already
            caller.shutdown(socket.SHUT_RDWR)


def copied(local: Path, url: str) -> RemotePath:
    """A folder's files in the store."""
    folder = remote.remote(url)
    for path in local.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(local).as_posix()).upload(path)
    return folder


NOISE = [np.random.default_rng(seed).random((24, 24, 24), np.float32) for seed in range(8)]
STORE = StorePlan(
    references=1, coordinates=16, neighbours=16, held_out=4, scales=1, shape=(24, 24, 24), ranks_per_part=4,
    cube=lambda row, shape: NOISE[row["pattern_id"] % 8],
)  # fmt: skip


def test_a_selection_of_patterns_fetches_what_it_needs(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STORE.write(tmp_path / "patterns")
    folder = copied(tmp_path / "patterns", f"s3://{BUCKET}/selection/patterns")
    whole, columns = folder.folder_bytes(), ("pattern_id", "label", "cube")
    with counted(environment["AWS_ENDPOINT_URL"]) as (endpoint, fetched):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert read_patterns(folder, columns).equals(read_patterns(tmp_path / "patterns", columns))
        assert whole < sum(fetched) < 1.3 * whole
        fetched.clear()
        quarter = predicate(TRAINING, num_neighbours=4)
        assert read_patterns(folder, columns, quarter).equals(read_patterns(tmp_path / "patterns", columns, quarter))
        assert sum(fetched) < 0.45 * whole
        fetched.clear()
        stored, local = (
            StoredPatterns(place, TRAINING, 4).open("pattern_id", STORE.shape)
            for place in (folder, tmp_path / "patterns")
        )
        assert sum(fetched) < 0.2 * whole, "no cube is fetched before it is asked for"
        some = np.array([40, 3, 17])
        assert torch.equal(stored.batch(some).cubes, local.batch(some).cubes)
        assert sum(fetched) < 0.4 * whole


def test_columns_and_rows_of_a_table_are_fetched_alone(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rng = remote.remote(f"s3://{BUCKET}/table/plan.parquet"), np.random.default_rng(0)
    table = pa.table({"part": np.arange(100_000) // 1000, "noise": rng.random(100_000), "more": rng.random(100_000)})
    write_table(path, table, row_group_size=1000)
    whole = path.stat().st_size
    with counted(environment["AWS_ENDPOINT_URL"]) as (endpoint, fetched):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert read_table(path, filters=[("part", "=", 7)]).equals(table.slice(7000, 1000))
        assert read_table(path, columns=["part"]).equals(table.select(["part"]))
        assert sum(fetched) < 0.3 * whole
        fetched.clear()
        assert read_table(path).equals(table)
        assert sum(fetched) > whole
        with pytest.raises(FileNotFoundError):
            read_table(path.with_name("none"), columns=["part"])


def test_a_store_that_is_gone_is_not_called_damage(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STORE.write(tmp_path / "patterns")
    folder = copied(tmp_path / "patterns", f"s3://{BUCKET}/gone/patterns")
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    with counted(environment["AWS_ENDPOINT_URL"]) as (endpoint, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        stored = StoredPatterns(folder, TRAINING, 4).open("pattern_id", STORE.shape)
        stored.batch(np.array([0]))
    with pytest.raises(WorkspaceError, match="did not answer properly in 2 attempts"):
        stored.batch(np.array([20]))  # of a part that is open
    with pytest.raises(WorkspaceError, match="did not answer properly in 2 attempts"):
        Embeddings(folder).ids()


def test_the_store_is_verified_and_read_by_torch(environment: dict[str, str], tmp_path: Path) -> None:
    STORE.write(tmp_path / "patterns")
    url = f"s3://{BUCKET}/torch"
    folder = copied(tmp_path / "patterns", f"{url}/patterns")
    assert verify(Workspace.existing(url)) == STORE.references * 16 * 16 + 4 * 16
    remote_one, local = PatternDataset(url), PatternDataset(tmp_path)
    assert np.array_equal(remote_one.labels, local.labels)
    cubes = torch.stack([local[number]["cube"] for number in range(len(local))])
    for number in range(0, len(cubes), 40):
        assert torch.equal(remote_one[number]["cube"], cubes[number])
    # By now files are open here; processes that are forked open them anew.
    loader = torch.utils.data.DataLoader(remote_one, batch_size=8, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([batch["cube"] for batch in loader]), cubes)
    part = folder / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(WorkspaceError, match=r"part-000000.parquet: it has \d+ bytes, and \d+ were written"):
        verify(Workspace.existing(url))


def test_checkpoints_come_back_and_half_of_one_is_passed_by(environment: dict[str, str]) -> None:
    folder = remote.remote(f"s3://{BUCKET}/checkpoints")
    for step in (10, 20, 30):
        save_checkpoint(folder, step, {"weight": torch.full((1000,), float(step)), "step": step})
    assert steps_in(folder) == [20, 30]
    step, state = newest_checkpoint(folder)
    assert step == state["step"] == 30 and state["weight"].eq(30).all()
    newest = folder / "step-000000030.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    told: list[str] = []
    assert newest_checkpoint(folder, told.append)[0] == 20
    assert told == [
        f"checkpoint {newest} is damaged (its bytes are not those that were written): going on from the one before"
    ]


def test_a_file_that_fails_on_the_way_is_not_there(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = remote.remote(f"s3://{BUCKET}/half/file")

    def half(aside: Path) -> None:
        aside.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(path, half)
    assert not path.exists()
    publish(path, lambda aside: aside.write_bytes(b"whole"))
    with pytest.raises(KeyboardInterrupt):
        publish(path, half)
    assert path.read_bytes() == b"whole"


def test_a_file_is_read_whole_though_another_takes_its_place(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = remote.remote(f"s3://{BUCKET}/replaced/file"), RemotePath.open
    path.write_bytes(b"short")

    @contextmanager
    def replaced(self: RemotePath, mode: str = "rb") -> Iterator[object]:
        with opened(self, mode) as file:  # pyarrow has asked for the size
            monkeypatch.setattr(RemotePath, "open", opened)
            path.write_bytes(b"longer than before")
            yield file

    monkeypatch.setattr(RemotePath, "open", replaced)
    assert path.read_bytes() == b"longer than before"


def test_tensorboard_files_are_uploaded_while_training_goes_on(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = remote.remote(f"s3://{BUCKET}/board")
    board = TensorBoard(run, "default", {}, 0)
    board.log({"step/loss": 0.5}, 0)
    assert not run.exists()
    monkeypatch.setattr("raygenesis.training.trackers.UPLOAD_SECONDS", 0.0)
    board.log({"step/loss": 0.25}, 1)
    (file,) = (run / "tensorboard").glob("events.*")
    there = file.stat().st_size
    board.log({"step/loss": 0.125}, 2)
    board.close()
    assert file.stat().st_size > there > 0


# The whole job


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for head in sorted(HEADS.glob("*.nii.gz"))[:12]:
        shutil.copy(head, folder)
    return folder


@pytest.fixture(scope="module")
def workspaces(environment: dict[str, str], scans: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Workspace]:
    """The main job in the store and on the disk, with the same key."""
    made = [Workspace.open(f"s3://{BUCKET}/hospital/ws"), Workspace.open(tmp_path_factory.mktemp("local") / "ws")]
    for workspace in made:
        workspace.private.mkdir(parents=True, exist_ok=True)
        (workspace.private / "key").write_text(KEY)
        done = raygenesis("run", "--scans", scans, "--workspace", workspace.root, *TINY)
        assert done.returncode == 0, done.stdout + done.stderr
    return made


def contents(folder: Place, pattern: str = "*") -> dict[str, bytes]:
    files = (path for path in folder.rglob(pattern) if path.is_file())
    return {str(path).removeprefix(str(folder)): path.read_bytes() for path in files}


def assert_same_training(run: Place, other: Place) -> None:
    assert without_timings(read_metrics(run)) == without_timings(read_metrics(other))
    assert without_timings(read_steps(run)) == without_timings(read_steps(other))
    assert (run / "encoder.safetensors").read_bytes() == (other / "encoder.safetensors").read_bytes()


@needs_heads
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_main_job_makes_the_same_in_a_store_and_on_a_disk(workspaces: list[Workspace]) -> None:
    in_store, on_disk = workspaces
    for stage, pattern in (("autoencoder", "*.safetensors"), ("embeddings", "part-*"), ("patterns", "part-*")):
        files = contents(in_store.root / stage, pattern)
        assert files and files == contents(on_disk.root / stage, pattern)
    vectors = Embeddings(in_store.embeddings).span(0, 12)
    assert np.isfinite(vectors).all() and np.array_equal(vectors, Embeddings(on_disk.embeddings).span(0, 12))
    for stage in ("archive", "autoencoder", "embeddings", "index", "neighbours", "patterns", "runs/default"):
        stored, local = (read_json(workspace.root / stage / "manifest.json") for workspace in workspaces)
        assert stored["fingerprint"] == local["fingerprint"] and stored["counts"] == local["counts"]
    assert_same_training(in_store.run("default"), on_disk.run("default"))
    assert any((in_store.run("default") / "tensorboard").glob("events.*"))
    page = (in_store.report / "index.html").read_text()
    assert page.count("data:image/png") == (on_disk.report / "index.html").read_text().count("data:image/png") > 20
    assert str(in_store.root) in page
    done = raygenesis("report", "--workspace", in_store.root, "--preset", f"{in_store.run('default')}/config.yaml")
    assert done.returncode == 0, done.stderr
    assert load_network(f"{in_store.run('default')}").architecture == load_network(on_disk.run("default")).architecture


@needs_heads
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_secret_is_in_what_is_kept(workspaces: list[Workspace], environment: dict[str, str]) -> None:
    kept = contents(workspaces[0].root, "*.json") | contents(workspaces[0].root, "*.yaml")
    kept |= contents(workspaces[0].report)
    secrets = [environment[name].encode() for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")]
    assert len(kept) > 10 and not [name for name, content in kept.items() if any(s in content for s in secrets)]


@needs_heads
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_pretraining_that_is_killed_goes_on_from_the_store(workspaces: list[Workspace]) -> None:
    in_store, on_disk = workspaces
    checkpoints = in_store.run("long") / "checkpoints"
    command = [sys.executable, "-m", "raygenesis", "pretrain", "--workspace", str(in_store.root), "--name", "long"]
    process = subprocess.Popen(
        [*command, *LONG], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    begin = time.monotonic()
    while max(steps_in(checkpoints), default=0) < 4:
        assert process.poll() is None and time.monotonic() - begin < 200
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert read_json(in_store.run("long") / "manifest.json") is None
    assert newest_checkpoint(checkpoints) is not None
    done = [raygenesis("pretrain", "--workspace", each.root, "--name", "long", *LONG) for each in workspaces]
    assert [each.returncode for each in done] == [0, 0], done[0].stdout + done[0].stderr
    assert not [name for name in contents(in_store.run("long")) if "/." in name]
    assert_same_training(in_store.run("long"), on_disk.run("long"))
    assert len(read_metrics(on_disk.run("long"))) == 13


@needs_heads
@needs_hippocampi
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_other_verb_works_on_it(workspaces: list[Workspace], tmp_path: Path) -> None:
    workspace = workspaces[0]
    (tmp_path / "space.yaml").write_text("pretraining.lambda_cls: [0.01, 1.0]\n")
    target = ["--images", HIPPOCAMPI / "images", "--labels", HIPPOCAMPI / "labels"]

    def follow(verb: str, *options: str | Path) -> None:
        done = raygenesis(*verb.split(), "--workspace", workspace.root, *options)
        assert done.returncode == 0, f"{verb}: {done.stdout}{done.stderr}"

    follow("crop", *TINY)
    follow("pretrain", "--name", "restored", *TINY, "pretraining.pretext=models-genesis")
    follow("sweep", "--space", tmp_path / "space.yaml", *FEW_STEPS)
    follow("finetune", *target, "--from", "random", "--from", "restored", *FEW_STEPS)
    follow("report", *TINY)
    follow("patterns verify")
    follow("patterns info", "--store", "crops")
    follow("patterns show", "--output", tmp_path / "patterns.png")
    follow("status")
    workspace.index.remove_tree()
    workspace.neighbours.remove_tree()
    workspace.patterns.remove_tree()
    follow("discover", *TINY, "index.method=hnsw")
    assert RUNS.require(workspace.run("restored")).store == "crops"
    assert SWEEPS.require(workspace.sweep("default")).counts.trials == 2
    assert [row["initialisation"] for row in TRANSFER.require(workspace.transfer("default")).table] == [
        "random", "restored",
    ]  # fmt: skip
    assert any(workspace.transfer("default").rglob("*.nii.gz"))
    page = (workspace.report / "index.html").read_text()
    assert "Sweep default" in page and "Target default" in page
    assert len(list(workspace.index.glob("shard-*.hnsw"))) == 1
