"""Cubes a second that the feed of training gives, with nothing else to do, against what a user would read cubes by.

`python -m tests.benchmarks.feeding`. The same cubes, in random order, decoded to float32 in [0, 1]: our store kept in
memory, read from files whole and through a window, and from an S3 server on this machine, by one thread and by two; a
torch DataLoader over our store's dataset; a memmap of raw cubes; and, where it is installed, MosaicML's
StreamingDataset of the same cells. The files have been read before, so that they lie in the page cache.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from raygenesis import PatternDataset
from raygenesis.cluster import capacity
from raygenesis.patterns.cells import DTYPE, STEPS, decode, encode
from raygenesis.patterns.schema import TRAINING
from raygenesis.training.feeding import Samples, prefetch
from raygenesis.training.file_samples import StoredPatterns
from raygenesis.training.order import Batching, epoch_order, shares_of
from raygenesis.workspace.files import Place
from raygenesis.workspace.object_store import remote
from tests.benchmarks.training import write_store
from tests.support.s3 import BUCKET, s3_server

SHAPE, NUM_CUBES, BATCH, ROUNDS = (32, 32, 32), 8192, 64, 3
WINDOW = 128  # of the store's 512 row groups


def main() -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cores = capacity.threads_per_worker(1)
    print(f"{platform.machine()}, {cores} of {os.cpu_count()} cores, commit {commit or 'none'}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch, "patterns")
        write_store(folder, SHAPE, num_training=NUM_CUBES)
        ways: dict[str, Callable[[int], Iterator[torch.Tensor]]] = {}
        for num_decoders in (1, 2):
            threads = f", {num_decoders} threads"
            ways[f"ours, kept in memory{threads}"] = _ours(folder, num_decoders, memory_gib=4)
            ways[f"ours, from files{threads}"] = _ours(folder, num_decoders)
            ways[f"ours, from files through a window{threads}"] = _ours(folder, num_decoders, window=WINDOW)
        try:
            place = _uploaded(folder, Path(scratch, "s3"), stack)
            ways["ours, from S3 through a window, 1 thread"] = _ours(place, 1, window=WINDOW)
        except pytest.skip.Exception as reason:
            print(f"S3 is left out: {reason}")
        ways["torch DataLoader of our store"] = _loader(folder)
        ways["memmap of raw cubes"] = _memmap(folder, Path(scratch, "raw"))
        ways |= _streaming(folder, Path(scratch, "mosaic"))
        print(f"{NUM_CUBES} cubes of {SHAPE[0]}³ in batches of {BATCH}, medians of {ROUNDS} epochs after the first")
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for epoch in range(ROUNDS + 1):
            for name, way in ways.items():
                begin = time.perf_counter()
                num_cubes = sum(len(cubes) for cubes in way(epoch))
                if epoch:
                    rates[name].append(num_cubes / (time.perf_counter() - begin))
        raw = statistics.median(rates["memmap of raw cubes"])
        for name, found in rates.items():
            rate = statistics.median(found)
            print(
                f"{name:44} {rate:9.0f} cubes/s  ({min(found):.0f} to {max(found):.0f}; {rate / raw:.2f} of the memmap)"
            )


def _ours(
    folder: Place, num_decoders: int, memory_gib: float = 0, window: int | None = None
) -> Callable[[int], Iterator[torch.Tensor]]:
    patterns = StoredPatterns(folder, TRAINING, None, None, num_decoders, memory_gib, window)
    samples: Samples = patterns.open("pattern_id", SHAPE)

    def epoch_of(epoch: int) -> Iterator[torch.Tensor]:
        ordered = epoch_order(len(samples), 0, epoch, samples.layout)
        batches = [rows for (rows,) in shares_of(ordered, Batching(BATCH))]
        for batch in prefetch(samples.stream([batches])):
            yield batch.on("cpu").cubes

    return epoch_of


def _uploaded(folder: Path, scratch: Path, stack: ExitStack) -> Place:
    scratch.mkdir()
    environment = stack.enter_context(s3_server(scratch))
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name, value in environment.items():
        patch.setenv(name, value)
    place = remote(f"s3://{BUCKET}/feeding/patterns")
    for path in folder.iterdir():
        (place / path.name).upload(path)
    return place


def _loader(folder: Path) -> Callable[[int], Iterator[torch.Tensor]]:
    def epoch_of(epoch: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        for batch in torch.utils.data.DataLoader(PatternDataset(folder), BATCH, shuffle=True, generator=generator):
            yield batch["cube"]

    return epoch_of


def _memmap(folder: Path, path: Path) -> Callable[[int], Iterator[torch.Tensor]]:
    dataset = PatternDataset(folder)
    raw = np.memmap(path, DTYPE, "w+", shape=(len(dataset), *SHAPE))
    for number in range(len(dataset)):
        raw[number] = np.rint(dataset[number]["cube"][0].numpy() * STEPS)

    def epoch_of(epoch: int) -> Iterator[torch.Tensor]:
        order = np.random.default_rng(epoch).permutation(len(raw))
        for start in range(0, len(raw), BATCH):
            steps = torch.from_numpy(raw[order[start : start + BATCH]].view(np.int16))
            yield steps.float().mul_(1 / STEPS)[:, None]

    return epoch_of


def _streaming(folder: Path, out: Path) -> dict[str, Callable[[int], Iterator[torch.Tensor]]]:
    try:
        from streaming import MDSWriter, StreamingDataset
    except ImportError:
        print("MosaicML's StreamingDataset is left out: it is not installed (mosaicml-streaming)")
        return {}
    dataset = PatternDataset(folder)
    with MDSWriter(out=str(out), columns={"cube": "bytes"}) as writer:
        for number in range(len(dataset)):
            writer.write({"cube": encode(dataset[number]["cube"][0].numpy())})
    stored = StreamingDataset(local=str(out), shuffle=True, batch_size=BATCH)

    def epoch_of(epoch: int) -> Iterator[torch.Tensor]:
        cubes: list[np.ndarray] = []
        for row in stored:
            cubes.append(decode(memoryview(row["cube"]), SHAPE))
            if len(cubes) == BATCH:
                yield torch.from_numpy(np.stack(cubes))[:, None]
                cubes = []

    return {"MosaicML's StreamingDataset": epoch_of}


if __name__ == "__main__":
    main()
