"""The pretraining step under Ray Train against the same step in a plain loop, in turn, in one run.

The plain loop runs in processes of its own, as it is and with the memory allocation of our workers. Prints cubes per
second, ratios, and the seconds that Ray costs outside the epochs.
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
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy import ndimage

from raygenesis import cluster
from raygenesis.archive.cells import DTYPE, STEPS, encode
from raygenesis.patterns.reader import TRAINING_COLUMNS, predicate, read_patterns
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.source import PatternSource
from raygenesis.patterns.writer import write_part
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import load_settings
from raygenesis.training import fit_with_ray, read_metrics
from raygenesis.training.feeding import Samples, training_batches
from raygenesis.workspace import write_json

NUM_TRAINING, NUM_VALIDATION, NUM_COORDINATES = 96, 16, 8
EPOCHS, ROUNDS = 3, 2


def main() -> None:
    import ray.data  # after raygenesis, which gives it its settings

    task = _task()
    cluster.connect()
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch, "patterns")
        _write_store(store, task.sample_shape)
        datasets = {
            key: ray.data.read_datasource(PatternSource(store, where=predicate(split))).materialize()
            for key, split in (("train", TRAINING), ("validation", VALIDATION))
        }
        tuned = cluster.TRAINING_ENVIRONMENT["env_vars"]
        plain, allocated, under_ray, once = [], [], [], []
        for number in range(ROUNDS):
            plain += _in_its_own_process(store, {})
            allocated += _in_its_own_process(store, tuned)
            begin = time.perf_counter()
            folder = Path(scratch, f"run-{number}")
            fit_with_ray(task, datasets, folder)
            total = time.perf_counter() - begin
            rows = read_metrics(folder)
            # The first epoch of either warms up.
            under_ray += [row["seconds"] for row in rows[1:]]
            once.append(total - sum(row["seconds"] for row in rows))
    _print(plain, allocated, under_ray, once)


def _in_its_own_process(store: Path, environment: dict[str, str]) -> list[float]:
    command = [sys.executable, "-m", "tests.benchmarks.training", str(store)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def plain_loop(store: Path) -> None:
    """Print the seconds of each epoch of the plain loop."""
    task = _task()
    torch.set_num_threads(cluster.threads_per_worker(1))
    table = read_patterns(store, TRAINING_COLUMNS, predicate(TRAINING))
    print(json.dumps(_plain_epochs(task, Samples([table], task.sample_key, task.sample_shape))))


def _task() -> PretextTask:
    settings = load_settings(
        "cpu-small", ["pretraining.num_classification_epochs=0", f"pretraining.num_joint_epochs={EPOCHS}"]
    )
    return PretextTask(settings.pretraining, settings.seed, settings.discovery.cube_shape, 1, NUM_COORDINATES)


def _plain_epochs(task: PretextTask, train: Samples) -> list[float]:
    """Seconds of each epoch but the first of a hand-written loop: decode, step, next."""
    model = task.build()
    optimizer = task.optimizer(model)
    seconds = []
    for epoch in range(EPOCHS):
        task.begin_epoch(model, epoch)
        model.train()
        begin = time.perf_counter()
        for (indices,) in training_batches(len(train), task.batch_size, task.seed, epoch):
            losses = task.losses(model, train.batch(indices), epoch)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def _write_store(folder: Path, shape: tuple[int, ...]) -> None:
    """A pattern store of smooth noise."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, (split, count) in enumerate(((TRAINING, NUM_TRAINING), (VALIDATION, NUM_VALIDATION))):
        rows = []
        for number in range(count):
            cube = ndimage.gaussian_filter(generator.random(shape, np.float32), 2)
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
    manifest = {"counts": {"parts": 2}, "cube_shape": list(shape), "cube_dtype": DTYPE.str, "cube_steps": STEPS}
    write_json(folder / "manifest.json", manifest)


def _print(plain: list[float], allocated: list[float], under_ray: list[float], once: list[float]) -> None:
    batch = load_settings("cpu-small").pretraining.batch_size
    cubes = NUM_TRAINING // batch * batch
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, commit {commit or 'none'}")
    print(f"joint step, 32³ cubes, batch {batch}, {len(plain)} epochs of {cubes} cubes each, medians (least to most)")
    ways = {"plain loop": plain, "plain loop, allocating as our workers": allocated, "under Ray Train": under_ray}
    for name, seconds in ways.items():
        middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{name:38s} {cubes / middle:7.1f} cubes/s  ({cubes / most:.1f} to {cubes / least:.1f})")
    ratios = [statistics.median(seconds) / statistics.median(under_ray) for seconds in (plain, allocated)]
    print(f"Ray Train's speed as a share of the plain loop's: {ratios[0]:.3f}, allocating alike: {ratios[1]:.3f}")
    print(f"outside the epochs (start-up; {EPOCHS} validations and checkpoints): {statistics.median(once):.1f} s a run")


if __name__ == "__main__":
    plain_loop(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
