"""What a GPU, or a core of a CPU, gives in pretraining: each part by itself, printed as it is measured.

`python -m tests.benchmarks.device` (`make bench-gpu`) takes about ten minutes on a GPU, with the paper's network and
batch: the feed, corruptions, the joint and the classification step by precision, memory format and compilation (which
share of a matrix product's rate it reaches; the memory that it was said to take, and takes), embedding, a step of
fine-tuning, and training under Ray Train with 1, 2, … workers. `--device cpu --width 8 --batch 8` does the same on a
CPU's core, without compilation and without real memory, which only a GPU counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from raygenesis.cluster import joining
from raygenesis.cluster.fan_out import TRAINING_ENVIRONMENT
from raygenesis.networks.network import UNet
from raygenesis.patterns.cells import STEPS
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.pretraining.corruption_sets import CORRUPTIONS
from raygenesis.pretraining.corruptions import corrupt
from raygenesis.pretraining.draws import Draws
from raygenesis.pretraining.step_memory import step_memory
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import FinetuneSettings, IntensitySettings, PretrainingSettings
from raygenesis.training.feeding import Batch, prefetch
from raygenesis.training.file_samples import StoredPatterns, StoredSamples
from raygenesis.training.fit import Resources, fit_with_ray
from raygenesis.training.metrics import read_metrics
from raygenesis.training.order import Batching, epoch_order, shares_of
from raygenesis.training.precision import autocast
from raygenesis.transfer.cases import Case, Form
from raygenesis.transfer.examples import SEGMENTATION
from raygenesis.transfer.segmentation import train_segmenter
from raygenesis.transfer.setup import TrialSetup
from tests.benchmarks.training import NUM_COORDINATES, write_store

SHAPE, ROUNDS, WARM_UPS = (32, 64, 64), 7, 2
WAYS: dict[str, dict[str, object]] = {
    "fp32, contiguous": {"precision": "fp32", "channels_last": False},
    "fp32, channels last": {"precision": "fp32"},
    "bf16, channels last": {"precision": "bf16"},
    "bf16, channels last, compiled": {"precision": "bf16", "compile": True},
    "bf16, gradient checkpointing": {"precision": "bf16", "gradient_checkpointing": True},
}


@dataclass(frozen=True)
class Bench:
    """On what is measured: the device, the network's width, cubes a batch, and the side of the matrices."""

    device: str
    width: int
    batch_size: int
    matrix_side: int

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def task(self, num_classification: int = 0, **changed: object) -> PretextTask:
        """The method's task of one epoch: of classification, or joint."""
        epochs = {"num_classification_epochs": num_classification, "num_joint_epochs": 1 - num_classification}
        given = {"base_width": self.width, "batch_size": self.batch_size, **epochs, **changed}
        return PretextTask(PretrainingSettings.model_validate(given), 0, SHAPE, 1, NUM_COORDINATES)

    def seconds(self, work: Callable[[], object]) -> float:
        """Median over rounds, after those that warm up."""
        times = []
        for _ in range(WARM_UPS + ROUNDS):
            begin = time.perf_counter()
            work()
            if self.on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[WARM_UPS:])


def main(words: list[str]) -> None:
    bench = _bench(words)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    num_gpus = torch.cuda.device_count() if bench.on_gpu else 0
    name = (
        f"{num_gpus} × {torch.cuda.get_device_name()}"
        if bench.on_gpu
        else f"{platform.machine()}, one of {os.cpu_count()} cores"
    )
    sides = "×".join(map(str, SHAPE))
    print(f"{name}, torch {torch.__version__}, commit {commit or 'none'}")
    print(f"base width {bench.width}, cubes of {sides}, batch {bench.batch_size}, medians of {ROUNDS}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch, "patterns")
        write_store(store, SHAPE, num_training=8 * bench.batch_size, num_validation=bench.batch_size)
        for line in (
            *_feed(bench, store), *_corruptions(bench), *_steps(bench), *_embedding(bench), *_finetuning(bench),
            *_workers(bench, store, Path(scratch), num_gpus or 1),
        ):  # fmt: skip
            print(line, flush=True)


def _bench(words: list[str]) -> Bench:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.device", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, help="Channels of the first convolution (cuda: 32; cpu: 4).")
    parser.add_argument("--batch", type=int, help="Cubes a batch (cuda: 64; cpu: 8).")
    given = parser.parse_args(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; give --device cpu")
    if given.device == "cpu":
        torch.set_num_threads(1)
    width, batch, side = (32, 64, 8192) if given.device == "cuda" else (4, 8, 1024)
    return Bench(given.device, given.width or width, given.batch or batch, side)


def _feed(bench: Bench, store: Path) -> Iterator[str]:
    """Cubes a second as they come from the store's files to the device, with nothing else to do."""
    for num_decoders in (1, 4):
        samples = StoredPatterns(store, TRAINING, num_decoders=num_decoders).open("pattern_id", SHAPE)

        def epoch(samples: StoredSamples = samples) -> None:
            ordered = epoch_order(len(samples), 0, 0, samples.layout)
            batches = [rows for (rows,) in shares_of(ordered, Batching(bench.batch_size))]
            for batch in prefetch(samples.stream([batches]), bench.device):
                batch.on(bench.device)

        rate = len(samples) / bench.seconds(epoch)
        yield f"feed from files, {num_decoders} decoder(s): {rate:.0f} cubes/s"


def _corruptions(bench: Bench) -> Iterator[str]:
    cubes = _batch(bench).cubes
    ids = torch.arange(len(cubes))
    for name in ("models-genesis", "patch-shuffling"):
        seconds = bench.seconds(lambda name=name: corrupt(cubes, Draws.of(0, ids, 0), CORRUPTIONS[name]))
        yield f"corruptions {name}: {len(cubes) / seconds:.0f} cubes/s"


def _steps(bench: Bench) -> Iterator[str]:
    """Training steps: cubes a second, the share of a matrix product's rate, and memory."""
    batch = _batch(bench)
    rates = {name: _matmul_flops_per_second(bench, dtype) for name, dtype in _DTYPES.items()}
    yield f"matrix product: {', '.join(f'{name} {rate / 1e12:.2f} TFLOP/s' for name, rate in rates.items())}"
    for phase, num_classification in (("joint", 0), ("classification", 1)):
        for name, changed in WAYS.items():
            if changed.get("compile") and not bench.on_gpu:
                continue
            task = bench.task(num_classification, **changed)
            if bench.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = bench.seconds(_step(task, batch, bench.device))
            flops = _flops(bench, num_classification, batch) / seconds
            # Memory is foreseen for the feed too, which is not measured here.
            foreseen = step_memory(task)
            memory = f"{(foreseen.total - foreseen.feed) / 2**30:.2f} GiB foreseen"
            if bench.on_gpu:
                memory += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB taken"
            yield (
                f"{phase} step, {name:30} {bench.batch_size / seconds:8.1f} cubes/s, {flops / 1e12:.2f} TFLOP/s, "
                f"{flops / rates[str(task.settings.precision)]:.2f} of a matrix product's; {memory}"
            )


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _batch(bench: Bench) -> Batch:
    steps = np.random.default_rng(0).integers(0, STEPS + 1, (bench.batch_size, 1, *SHAPE), dtype=np.uint16)
    columns = {
        "pattern_id": np.arange(len(steps)), "reference": np.zeros(len(steps), np.int32),
        "coordinate": np.arange(len(steps)) % NUM_COORDINATES,
    }  # fmt: skip
    return Batch(torch.from_numpy(steps * np.float32(1 / STEPS)).to(bench.device), columns)


def _step(task: PretextTask, batch: Batch, device: str) -> Callable[[], object]:
    model = task.build().to(device).train()
    optimizer = task.optimizer(model)
    task.begin_epoch(model, 0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        task.losses(model, batch, epoch=0)["loss"].backward()
        optimizer.step()

    return step


def _flops(bench: Bench, num_classification: int, batch: Batch) -> int:
    """Floating-point operations of a step's forward and backward pass, counted on a plain network."""
    plain = bench.task(num_classification, precision="fp32")
    model = plain.build().to(bench.device).train()
    plain.begin_epoch(model, 0)
    with FlopCounterMode(display=False) as counter:
        plain.losses(model, batch, epoch=0)["loss"].backward()
    return counter.get_total_flops()


def _matmul_flops_per_second(bench: Bench, dtype: torch.dtype) -> float:
    one = torch.rand(bench.matrix_side, bench.matrix_side, dtype=dtype, device=bench.device)
    return 2 * bench.matrix_side**3 / bench.seconds(lambda: one @ one)


def _embedding(bench: Bench) -> Iterator[str]:
    encoder = bench.task().build().to(bench.device).eval().encoder
    cubes = _batch(bench).cubes
    for precision in _DTYPES:

        def embed(precision: str = precision) -> None:
            with torch.inference_mode(), autocast(bench.device, precision):
                encoder(cubes)

        yield f"embedding, {precision}: {len(cubes) / bench.seconds(embed):.0f} cubes/s"


def _finetuning(bench: Bench) -> Iterator[str]:
    """A step of segmentation, with its patches and their augmentation, from one made-up scan of three classes."""
    generator = np.random.default_rng(0)
    side = 2 * max(SHAPE)
    label = generator.integers(0, 3, (side,) * 3, dtype=np.uint8)
    case = Case("one", "one", generator.random((side,) * 3, np.float32).astype(np.float16), label)
    form = Form(True, SHAPE, (1.0,) * 3, IntensitySettings(), 3)
    for precision in _DTYPES:
        settings = FinetuneSettings.model_validate(
            {"precision": precision, "num_steps": ROUNDS + WARM_UPS, "batch_size": bench.batch_size}
        )
        setup = TrialSetup(SEGMENTATION, 3, form, settings, float(bench.on_gpu))
        unet = UNet(3, bench.task().architecture)
        seconds = train_segmenter(unet, [case], setup, 0).seconds_per_step
        yield f"fine-tuning step, {precision}: {bench.batch_size / seconds:.1f} patches/s"


def _workers(bench: Bench, store: Path, scratch: Path, most: int) -> Iterator[str]:
    """Whole epochs under Ray Train, the batch shared by 1, 2, … workers."""
    joining.connect()
    feeds = {key: StoredPatterns(store, split) for key, split in (("train", TRAINING), ("validation", VALIDATION))}
    alone = None
    for num_workers in range(1, most + 1):
        task = bench.task(precision="bf16" if bench.on_gpu else "fp32", num_joint_epochs=3)
        resources = Resources(num_workers=num_workers, use_gpu=bench.on_gpu, checkpoint_seconds=3600)
        folder = scratch / f"run-{num_workers}"
        fit_with_ray(task, feeds, folder, resources)
        rate = statistics.median(row["cubes_per_s"] for row in read_metrics(folder)[1:])
        alone = alone or rate
        yield (
            f"joint training, {num_workers} worker(s): {rate:.1f} cubes/s, {rate / alone / num_workers:.2f} of linear"
        )


if __name__ == "__main__":
    allocation = TRAINING_ENVIRONMENT["env_vars"]
    if allocation.items() <= os.environ.items():
        main(sys.argv[1:])
    else:  # as in our workers; it is read when a process starts
        command = [sys.executable, "-m", "tests.benchmarks.device", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **allocation})
