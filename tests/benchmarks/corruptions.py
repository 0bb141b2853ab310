"""The corruptions of a batch against the published per-cube way and other libraries' nearest, in turn, in one run.

Prints cubes per second on one core, of each corruption alone too, and how near that is to copying memory.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import monai.transforms
import numpy as np
import torch
from numpy.typing import NDArray

from raygenesis.cluster.fan_out import TRAINING_ENVIRONMENT
from raygenesis.patterns.cells import STEPS
from raygenesis.pretraining.corruption_sets import CORRUPTIONS, CorruptionSet
from raygenesis.pretraining.corruption_steps import shuffle_bank
from raygenesis.pretraining.corruptions import corrupt
from raygenesis.pretraining.draws import Draws

SHAPE, BATCH, GPU_BATCHES = (64, 64, 32), 64, (64, 512)
ROUNDS, BATCHES_A_ROUND, SLOW_CUBES_A_ROUND = 7, 3, 24
GENESIS, NOTHING = CORRUPTIONS["models-genesis"], CORRUPTIONS["none"]
ALONE = {
    "flips": replace(NOTHING, flip_probability=1.0),
    "local shuffling": replace(NOTHING, shuffle_probability=1.0),
    "non-linear": replace(NOTHING, nonlinear_probability=1.0),
    "in-painting": replace(NOTHING, paint_probability=1.0, inpaint_share=1.0),
    "out-painting": replace(NOTHING, paint_probability=1.0, inpaint_share=0.0),
    "patch-shuffling": CORRUPTIONS["patch-shuffling"],
    "none (two copies)": NOTHING,
}


def main() -> None:
    torch.set_num_threads(1)
    cubes = _cubes(BATCH)
    rng = np.random.default_rng(0)
    few = cubes.numpy()[:SLOW_CUBES_A_ROUND]
    ways: dict[str, tuple[int, Callable[[], object]]] = {"raygenesis, the whole pair": _ours(cubes, GENESIS)}
    ways |= {f"  {name}": _ours(cubes, corruption) for name, corruption in ALONE.items()}
    ways["published way, NumPy, cube by cube"] = (len(few), lambda: [_published(cube, rng) for cube in few])
    monai_way = _monai()
    ways["MONAI's nearest, cube by cube"] = (len(few), lambda: [monai_way(cube) for cube in few])
    try:
        ways["batchgenerators' nearest, no shuffling, blank squares"] = (len(cubes), _batchgenerators(cubes.numpy()))
    except ImportError as error:
        print(f"batchgenerators is left out: {error}")
    _print_machine()
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    copies = []
    for round_number in range(ROUNDS + 1):
        for name, (count, way) in ways.items():
            begin = time.perf_counter()
            way()
            if round_number:  # the first warms up
                speeds[name].append(count / (time.perf_counter() - begin))
        copies.append(_copied_bytes_per_second(3 * cubes.nbytes))
    _print(speeds, copies[1:])
    if torch.cuda.is_available():
        _print_gpu()


def _cubes(number: int) -> torch.Tensor:
    """As they are decoded: float32 multiples of 1/STEPS."""
    steps = np.random.default_rng(0).integers(0, STEPS + 1, (number, 1, *SHAPE), dtype=np.uint16)
    return torch.from_numpy(steps * np.float32(1 / STEPS))


def _ours(cubes: torch.Tensor, corruption: CorruptionSet) -> tuple[int, Callable[[], object]]:
    epochs, ids = itertools.count(), torch.arange(len(cubes))

    def batches() -> None:
        for _ in range(BATCHES_A_ROUND):
            corrupt(cubes, Draws.of(0, ids, next(epochs)), corruption)

    return BATCHES_A_ROUND * len(cubes), batches


# --- the published way, written from METHOD.md ---------------------------------------------------


def _published(cube: NDArray[np.float32], rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Corrupted and original of one cube [1, *spatial]; its corruptions one after the other."""
    original = cube[0].copy()
    for _ in range(3):
        if rng.random() >= 0.4:
            break
        original = np.flip(original, rng.integers(3))
    corrupted = original.copy()
    if rng.random() < 0.5:
        _shuffle_blocks(corrupted, rng)
    if rng.random() < 0.9:
        corrupted = _bezier(corrupted, rng)
    if rng.random() < 0.9:
        paint = _inpaint if rng.random() < 0.2 else _outpaint
        corrupted = paint(corrupted, rng)
    return corrupted, original


def _shuffle_blocks(cube: NDArray[np.float32], rng: np.random.Generator) -> None:
    original = cube.copy()
    for _ in range(10_000):
        sides = [int(rng.integers(1, dim // 10 + 1)) for dim in cube.shape]
        block = _box(cube.shape, sides, 0, rng)
        values = original[block].ravel()
        rng.shuffle(values)
        cube[block] = values.reshape(sides)


def _bezier(cube: NDArray[np.float32], rng: np.random.Generator) -> NDArray:
    t = np.linspace(0.0, 1.0, 100_000)
    a, b, c, d = rng.random(4)
    x, y = (3 * p * t * (1 - t) ** 2 + 3 * q * t**2 * (1 - t) + t**3 for p, q in ((a, c), (b, d)))
    return np.interp(cube, np.sort(x), np.sort(y)[::-1] if rng.random() < 0.5 else np.sort(y))


def _inpaint(cube: NDArray, rng: np.random.Generator) -> NDArray:
    for _ in range(5):
        if rng.random() >= 0.95:
            break
        sides = [int(rng.integers(dim // 6, dim // 3 + 1)) for dim in cube.shape]
        cube[_box(cube.shape, sides, 3, rng)] = rng.random(sides)
    return cube


def _outpaint(cube: NDArray, rng: np.random.Generator) -> NDArray:
    painted = rng.random(cube.shape)
    for window in range(5):
        if window and rng.random() >= 0.95:
            break
        sides = [dim - int(rng.integers(3 * dim // 7, 4 * dim // 7 + 1)) for dim in cube.shape]
        box = _box(cube.shape, sides, 3, rng)
        painted[box] = cube[box]
    return painted


def _box(shape: tuple[int, ...], sides: list[int], margin: int, rng: np.random.Generator) -> tuple[slice, ...]:
    starts = (rng.integers(margin, dim - side - margin + 1) for dim, side in zip(shape, sides, strict=True))
    return tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))


# --- other libraries -----------------------------------------------------------------------------


def _monai() -> Callable[[NDArray], object]:
    """One flip (the axis drawn), a random monotone curve of 4 points, 10,000 shuffled blocks, holes or windows."""
    small, large = ([dim // part for dim in SHAPE] for part in (6, 3))
    least, most = ([dim - part * dim // 7 for dim in SHAPE] for part in (4, 3))
    dropout = partial(monai.transforms.RandCoarseDropout, fill_value=(0.0, 1.0), prob=1.0)
    inside = dropout(holes=1, max_holes=5, spatial_size=small, max_spatial_size=large, dropout_holes=True)
    outside = dropout(holes=1, max_holes=5, spatial_size=least, max_spatial_size=most, dropout_holes=False)
    return monai.transforms.Compose(
        [
            monai.transforms.RandAxisFlip(prob=0.4),
            monai.transforms.RandCoarseShuffle(
                holes=10_000, spatial_size=1, max_spatial_size=[dim // 10 for dim in SHAPE], prob=0.5
            ),
            monai.transforms.RandHistogramShift(num_control_points=4, prob=0.9),
            monai.transforms.OneOf([inside, outside, monai.transforms.Identity()], weights=(0.18, 0.72, 0.1)),
        ]
    )


def _batchgenerators(cubes: NDArray[np.float32]) -> Callable[[], object]:
    """Flips, gamma curves and blank squares: it has neither local shuffling nor out-painting.

    Raises ImportError where the package or something it needs is missing.
    """
    from batchgenerators.transforms.abstract_transforms import Compose
    from batchgenerators.transforms.color_transforms import GammaTransform
    from batchgenerators.transforms.noise_transforms import BlankSquareNoiseTransform
    from batchgenerators.transforms.spatial_transforms import MirrorTransform

    steps = Compose(
        [
            MirrorTransform(p_per_sample=0.4),
            GammaTransform((0.3, 3.0), per_channel=False, p_per_sample=0.9),
            BlankSquareNoiseTransform(squre_size=(5, 10), n_squres=5, noise_val=(0.0, 1.0), p_per_sample=0.18),
        ]
    )
    return lambda: steps(data=cubes.copy())


# --- what is printed -----------------------------------------------------------------------------


def _copied_bytes_per_second(working_set: int) -> float:
    """Bytes read and written by one copy of half the working set into the other half."""
    source = torch.ones(working_set // 2, dtype=torch.uint8)
    target = torch.ones_like(source)
    begin = time.perf_counter()
    for _ in range(5):
        target.copy_(source)
    return 5 * 2 * source.nbytes / (time.perf_counter() - begin)


def _print_machine() -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, commit {commit or 'none'}")
    begin = time.perf_counter()
    bank = shuffle_bank(SHAPE, GENESIS.shuffle_blocks, GENESIS.shuffle_max_fraction, torch.device("cpu"))
    seconds, mib = time.perf_counter() - begin, bank.nbytes / 2**20
    print(f"bank of {len(bank)} shuffles, built once a process: {seconds:.2f} s, {mib:.0f} MiB")
    sides = "×".join(map(str, SHAPE))
    print(f"one thread, {sides} float32, batch {BATCH}, {ROUNDS} rounds, medians (least to most)")


def _print(speeds: dict[str, list[float]], copies: list[float]) -> None:
    for name, values in speeds.items():
        print(f"{name:54s} {statistics.median(values):8.1f} cubes/s  ({min(values):.1f} to {max(values):.1f})")
    ours, *_ = (statistics.median(values) for values in speeds.values())
    for name, values in speeds.items():
        if "'s nearest" in name or "' nearest" in name or "published" in name:
            print(f"the whole pair is {ours / statistics.median(values):.3g} times as fast as: {name}")
    moved = ours * 3 * 4 * np.prod(SHAPE)
    copied = statistics.median(copies)
    print(
        f"share of memory bandwidth: {moved / copied:.3f} (must move: a cube read, target and corrupted written, "
        f"{moved / 1e9:.2f} GB/s; torch copies as large a working set at {copied / 1e9:.1f} GB/s read + write)"
    )


def _print_gpu() -> None:
    print(f"{torch.cuda.get_device_name()}, {ROUNDS} rounds, medians (least to most)")
    for batch in GPU_BATCHES:
        cubes = _cubes(batch).cuda()
        for name in ("models-genesis", "patch-shuffling"):
            count, way = _ours(cubes, CORRUPTIONS[name])
            speeds = []
            for _ in range(ROUNDS + 1):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                way()
                torch.cuda.synchronize()
                speeds.append(count / (time.perf_counter() - begin))
            middle, least, most = statistics.median(speeds[1:]), min(speeds[1:]), max(speeds[1:])
            print(f"{name}, batch {batch}: {middle:.0f} cubes/s  ({least:.0f} to {most:.0f})")


if __name__ == "__main__":
    allocation = TRAINING_ENVIRONMENT["env_vars"]
    if allocation.items() <= os.environ.items():
        main()
    else:  # as in our workers; it is read when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "tests.benchmarks.corruptions"], {**os.environ, **allocation})
