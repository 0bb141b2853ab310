"""Training under Ray Train against the same steps in a plain loop, alone and shared by two processes, in one run.

The plain loops run in processes of their own, with the memory allocation of our workers: one as a user would write it,
two that share each batch by torch's DistributedDataParallel. Prints cubes per second and ratios, the seconds that Ray
costs outside the epochs, what a checkpoint costs a step, and what reading from files costs.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed
from scipy import ndimage
from torch.nn.parallel import DistributedDataParallel

from raygenesis.cluster import capacity, fan_out, joining
from raygenesis.patterns.cells import DTYPE, STEPS, encode
from raygenesis.patterns.reader import TRAINING_COLUMNS, predicate, read_patterns
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import write_part
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import load_settings
from raygenesis.training.feeding import Samples
from raygenesis.training.file_samples import StoredPatterns
from raygenesis.training.fit import Resources, fit_with_ray
from raygenesis.training.metrics import read_metrics
from raygenesis.training.order import Batching, epoch_order, shares_of
from raygenesis.training.workers import Workers
from raygenesis.workspace.manifest import StoreCounts, StoreManifest
from raygenesis.workspace.manifest_files import write_manifest
from tests.support.experiments import read_steps

NUM_TRAINING, NUM_VALIDATION, NUM_COORDINATES = 96, 16, 8
EPOCHS, ROUNDS = 4, 3
PORT = 29511


def main() -> None:
    task = _task()
    joining.connect()
    rates: dict[str, list[float]] = {}
    once = []
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch, "patterns")
        write_store(store, task.sample_shape)
        splits = {"train": TRAINING, "validation": VALIDATION}
        in_memory, in_files = (
            {key: StoredPatterns(store, split, memory_gib=gib) for key, split in splits.items()} for gib in (1, 0)
        )
        rare = Resources(checkpoint_seconds=3600)
        ways = {
            "under Ray Train": (in_memory, rare),
            "under Ray Train, cubes from files": (in_files, rare),
            "under Ray Train, a checkpoint a step": (in_memory, replace(rare, checkpoint_seconds=0)),
            "under Ray Train, 2 workers": (in_memory, replace(rare, num_workers=2)),
        }
        for number in range(ROUNDS):
            for name, world_size in (("plain loop", 1), ("plain loops, 2 processes", 2)):
                rates.setdefault(name, []).extend(_plain(store, world_size))
            for place, (name, (feeds, resources)) in enumerate(ways.items()):
                begin = time.perf_counter()
                folder = Path(scratch, f"run-{number}-{place}")
                fit_with_ray(task, feeds, folder, resources)
                total = time.perf_counter() - begin
                rows = read_metrics(folder)
                rates.setdefault(name, []).extend(_cubes_per_s(row["seconds"], task) for row in rows[1:])
                if name == "under Ray Train":
                    once.append(total - sum(row["seconds"] for row in rows))
                    waited = sum(row["waited"] for row in read_steps(folder)) / sum(row["seconds"] for row in rows)
        _print(task, rates, once, waited)


def _cubes_per_s(seconds: float, task: PretextTask) -> float:
    return NUM_TRAINING // task.batch_size * task.batch_size / seconds


def _plain(store: Path, world_size: int) -> list[float]:
    """Cubes per second of each epoch but the first."""
    environment = {**os.environ, **fan_out.TRAINING_ENVIRONMENT["env_vars"]}
    command = [sys.executable, "-m", "tests.benchmarks.training", str(store), str(world_size)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]
    outputs = [process.communicate()[0] for process in processes]
    return [_cubes_per_s(seconds, _task()) for seconds in json.loads(outputs[0].splitlines()[-1])]


def plain_loop(store: Path, world_size: int, rank: int) -> None:
    """Print the seconds of each epoch but the first of a hand-written loop: decode, step, next."""
    task = _task()
    torch.set_num_threads(capacity.threads_per_worker(world_size))
    table = read_patterns(store, TRAINING_COLUMNS, predicate(TRAINING))
    train = Samples([table], task.sample_key, task.sample_shape)
    model = task.build()
    optimizer = task.optimizer(model)
    model.train()
    network, workers = model, Workers(rank=rank, world_size=world_size)
    if world_size > 1:
        address = f"tcp://127.0.0.1:{PORT}"
        torch.distributed.init_process_group("gloo", init_method=address, world_size=world_size, rank=rank)
        network = DistributedDataParallel(model)
    seconds = []
    for epoch in range(EPOCHS):
        task.begin_epoch(model, epoch)
        begin = time.perf_counter()
        for (indices,) in shares_of(epoch_order(len(train), task.seed, epoch), Batching(task.batch_size), workers):
            losses = task.losses(network, train.batch(indices), epoch)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            optimizer.step()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps(seconds[1:]), flush=True)
    if world_size > 1:
        torch.distributed.destroy_process_group()


def _task() -> PretextTask:
    settings = load_settings(
        "cpu-small", ["pretraining.num_classification_epochs=0", f"pretraining.num_joint_epochs={EPOCHS}"]
    )
    return PretextTask(settings.pretraining, settings.seed, settings.discovery.cube_shape, 1, NUM_COORDINATES)


def write_store(
    folder: Path, shape: tuple[int, ...], num_training: int = NUM_TRAINING, num_validation: int = NUM_VALIDATION
) -> None:
    """A pattern store of smooth noise, a part a split."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    images = [ndimage.gaussian_filter(generator.random(shape, np.float32), 2) for _ in range(NUM_TRAINING)]
    for part, (split, count) in enumerate(((TRAINING, num_training), (VALIDATION, num_validation))):
        rows = []
        for number in range(count):
            cube = images[number % len(images)]
            cube = (cube - cube.min()) / np.ptp(cube)
            row = dict.fromkeys(PATTERN.names, 0) | {
                "pattern_id": part << 32 | number,
                "coordinate": number % NUM_COORDINATES,
                "rank": number // NUM_COORDINATES,
                "split": split,
                "volume_id": str(number // NUM_COORDINATES),
                "cube": encode(cube),
            }
            rows.append(row | {name: [] for name in PATTERN.names if name.endswith(("_mm", "_voxels"))})
        write_part(folder, part, pa.Table.from_pylist(rows, PATTERN))
    counts = StoreCounts(
        patterns=num_training + num_validation, validation=num_validation, volumes=0, parts=2, failures=0, references=1,
        coordinates=NUM_COORDINATES, neighbours=-(-num_training // NUM_COORDINATES),
    )  # fmt: skip
    facts = {"cube_shape": tuple(shape), "cube_dtype": DTYPE.str, "cube_steps": STEPS, "raw_bytes": 0}
    settings = {"discovery": {"scales": [{}]}}
    write_manifest(folder, StoreManifest(fingerprint="made up", settings=settings, counts=counts, **facts))


def _print(task: PretextTask, rates: dict[str, list[float]], once: list[float], waited: float) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, commit {commit or 'none'}")
    print(
        f"joint step, 32³ cubes, batch {task.batch_size}, {ROUNDS * (EPOCHS - 1)} epochs each, medians (least to most)"
    )
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        print(f"{name:38s} {medians[name]:7.1f} cubes/s  ({min(found):.1f} to {max(found):.1f})")
    alone, shared, under_ray = (medians[name] for name in ("plain loop", "plain loops, 2 processes", "under Ray Train"))
    print(f"Ray Train's speed as a share of the plain loop's: {under_ray / alone:.3f}")
    print(f"share of a step waiting for data (gap): {waited:.2%}")
    files, checkpoints, two = (
        medians[f"under Ray Train, {what}"] for what in ("cubes from files", "a checkpoint a step", "2 workers")
    )
    print(f"cubes from files instead of memory: {files / under_ray:.3f} of the speed")
    extra = task.batch_size / checkpoints - task.batch_size / under_ray
    print(f"a checkpoint costs the step after which it is written {1000 * extra:.0f} ms")
    print(f"2 workers against 1: {two / under_ray:.2f}; 2 plain processes against 1: {shared / alone:.2f}")
    print(f"outside the epochs (start-up; {EPOCHS} validations): {statistics.median(once):.1f} s a run")


if __name__ == "__main__":
    plain_loop(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 1 else main()
