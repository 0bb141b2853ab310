"""The joint training step by precision, memory format and compilation, in turn, in one run.

On a GPU the paper's network and batch; on a CPU a narrow network on one core. Prints cubes per second, how much of a
step is corruption, and which share the step reaches of the rate of a large matrix product.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from raygenesis.cluster.fan_out import TRAINING_ENVIRONMENT
from raygenesis.patterns.cells import STEPS
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import PretrainingSettings
from raygenesis.training.feeding import Batch

SHAPE, NUM_COORDINATES, ROUNDS = (32, 64, 64), 44, 7
WAYS = {
    "fp32, contiguous": {"channels_last": False},
    "fp32, channels last": {},
    "bf16, channels last": {"precision": "bf16"},
    "bf16, channels last, compiled": {"precision": "bf16", "compile": True},
    "bf16, gradient checkpointing": {"precision": "bf16", "gradient_checkpointing": True},
}


def main() -> None:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    base_width, batch_size, side = (32, 64, 8192) if on_gpu else (4, 8, 1024)
    ways = dict(WAYS)
    if not on_gpu:
        torch.set_num_threads(1)
        del ways["bf16, channels last, compiled"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    name = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, one of {os.cpu_count()} cores"
    print(f"{name}, torch {torch.__version__}, commit {commit or 'none'}")
    print(f"joint step, base width {base_width}, cubes of {'×'.join(map(str, SHAPE))}, batch {batch_size}, medians")
    batch = _batch(batch_size, device)
    rates = {dtype: _matmul_flops_per_second(side, dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    for name, changed in ways.items():
        settings = PretrainingSettings(base_width=base_width, num_classification_epochs=0, **changed)
        task = PretextTask(settings, 0, SHAPE, 1, NUM_COORDINATES)
        step, pose = _step(task, batch, device)
        seconds, posing = _seconds(step, device), _seconds(pose, device)
        flops = _flops(task, batch)
        rate = rates[torch.bfloat16 if settings.precision == "bf16" else torch.float32]
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if on_gpu else ""
        print(
            f"{name:32s} {batch_size / seconds:8.1f} cubes/s; corrupting is {posing / seconds:.1%} of the step; "
            f"{flops / seconds / 1e12:.2f} TFLOP/s, {flops / seconds / rate:.2f} of a matrix product's{memory}"
        )
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()


def _batch(number: int, device: torch.device) -> Batch:
    steps = np.random.default_rng(0).integers(0, STEPS + 1, (number, 1, *SHAPE), dtype=np.uint16)
    columns = {
        "pattern_id": np.arange(number), "reference": np.zeros(number, np.int32),
        "coordinate": np.arange(number) % NUM_COORDINATES,
    }  # fmt: skip
    return Batch(torch.from_numpy(steps * np.float32(1 / STEPS)).to(device), columns)


def _step(task: PretextTask, batch: Batch, device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
    """A whole training step, and its corruption alone."""
    model = task.build().to(device).train()
    optimizer = task.optimizer(model)
    task.begin_epoch(model, 0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        task.losses(model, batch, epoch=0)["loss"].backward()
        optimizer.step()

    return step, lambda: task.make_batch(batch, 0)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median over rounds, after two that warm up."""
    times = []
    for _ in range(ROUNDS + 2):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def _flops(task: PretextTask, batch: Batch) -> int:
    """Floating-point operations of forward and backward, counted on a plain copy of the network."""
    plain = PretextTask(
        task.settings.model_copy(update={"compile": False, "gradient_checkpointing": False}), 0, SHAPE, 1,
        NUM_COORDINATES,
    )  # fmt: skip
    model = plain.build().to(batch.cubes.device).train()
    with FlopCounterMode(display=False) as counter:
        plain.losses(model, batch, epoch=0)["loss"].backward()
    return counter.get_total_flops()


def _matmul_flops_per_second(side: int, dtype: torch.dtype, device: torch.device) -> float:
    one = torch.rand(side, side, dtype=dtype, device=device)
    return 2 * side**3 / _seconds(lambda: one @ one, device)


if __name__ == "__main__":
    allocation = TRAINING_ENVIRONMENT["env_vars"]
    if allocation.items() <= os.environ.items():
        main()
    else:  # as in our workers; it is read when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "tests.benchmarks.step"], {**os.environ, **allocation})
