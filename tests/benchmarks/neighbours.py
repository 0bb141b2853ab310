"""The whole graph of nearest neighbours of made-up embeddings: time, recall and memory, against exact search and FAISS.

    python -m tests.benchmarks.neighbours [VOLUMES]...

Each search runs in a process of its own, on as many cores as the process may use: ours in parts, as the stage of
neighbours runs it, but without Ray; exact search of all for a sample of the scans, whose time is multiplied; FAISS's
HNSW with the same links and widths, where `faiss-cpu` is installed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raygenesis.cluster.progress import Stopwatch
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.exact import Neighbours, exact_search, recall
from raygenesis.discovery.index import planned_shards
from raygenesis.discovery.neighbour_table import SCANS_PER_PART, neighbours_of, without_self
from raygenesis.discovery.row_search import RowSearch
from raygenesis.settings import IndexSettings
from raygenesis.workspace.hardware import peak_memory_gib
from tests.support.graphs import build_shard

SIZE, CLUSTERS, NUM_SAMPLE = 128, 1000, 200
SETTINGS = IndexSettings(method="hnsw")
Vectors = NDArray[np.float32]


def make(folder: Path, number: int) -> None:
    """Clustered embeddings of SIZE numbers, of which the clusters vary in width."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CLUSTERS, SIZE)).astype(np.float32)
    widths = generator.uniform(0.3, 1, CLUSTERS).astype(np.float32)
    kinds = generator.integers(CLUSTERS, size=number)
    np.save(
        folder / "vectors.npy",
        centres[kinds] + widths[kinds, None] * generator.standard_normal((number, SIZE), np.float32),
    )


def ours(folder: Path) -> tuple[float, float]:
    """Seconds to build the graphs, and to search them for every scan; the rows are written to the folder."""
    vectors = np.load(folder / "vectors.npy")
    (folder / "index").mkdir()
    watch = Stopwatch()
    spans = planned_shards(len(vectors), [], SETTINGS.volumes_per_shard)
    with _pool() as pool:
        jobs = [pool.submit(build_shard, folder / "index", vectors[a:b], a, SETTINGS, 0) for a, b in spans]
        shards = tuple(job.result() for job in jobs)
    build_s, watch = watch.seconds, Stopwatch()
    ids = pa.array([f"{number:016x}" for number in range(len(vectors))])
    nowhere = Embeddings(folder / "embeddings")  # graphs are searched, and no embeddings read
    search = RowSearch(folder, folder / "index", nowhere, ids, np.ones(len(ids), bool), shards, SETTINGS.ef, SETTINGS)
    with _pool() as pool:
        starts = range(0, len(vectors), SCANS_PER_PART)
        jobs = [pool.submit(search.rows, start, vectors[start : start + SCANS_PER_PART], 0) for start in starts]
        rows = pa.concat_tables([job.result() for job in jobs])
    seconds = watch.seconds
    np.save(folder / "ours.npy", neighbours_of(rows, ids, SETTINGS.num_neighbours).numbers)
    return build_s, seconds


def exact(folder: Path) -> tuple[float, float]:
    """No seconds to build, and those of an exact search for every scan, from those for a sample."""
    vectors, sample = np.load(folder / "vectors.npy"), _sample(folder)
    watch = Stopwatch()
    k = SETTINGS.num_neighbours
    truth = without_self(exact_search([(np.arange(len(vectors)), vectors)], vectors[sample], k + 1), sample, k)
    seconds = watch.seconds * len(vectors) / len(sample)
    np.save(folder / "truth.npy", truth.numbers)
    return 0.0, seconds


def faiss_hnsw(folder: Path) -> tuple[float, float]:
    """Seconds of FAISS's HNSW to build one graph, and to search it for every scan."""
    import faiss

    vectors = np.load(folder / "vectors.npy")
    watch = Stopwatch()
    index = faiss.IndexHNSWFlat(SIZE, SETTINGS.m)
    index.hnsw.efConstruction, index.hnsw.efSearch = SETTINGS.ef_construction, SETTINGS.ef
    index.add(vectors)
    build_s, watch = watch.seconds, Stopwatch()
    _, numbers = index.search(vectors, SETTINGS.num_neighbours + 1)
    seconds = watch.seconds
    found = Neighbours(numbers.astype(np.int64), np.zeros(numbers.shape, np.float32))
    np.save(folder / "faiss_hnsw.npy", without_self(found, np.arange(len(vectors)), SETTINGS.num_neighbours).numbers)
    return build_s, seconds


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("forkserver"))


def _sample(folder: Path) -> NDArray[np.int64]:
    number = len(np.load(folder / "vectors.npy", mmap_mode="r"))
    return np.random.default_rng(1).permutation(number)[:NUM_SAMPLE]


def _measured(search: Callable[[Path], tuple[float, float]], folder: Path) -> tuple[float, float, float]:
    return *search(folder), peak_memory_gib()


def main(numbers: list[int]) -> None:
    for number in numbers:
        print(f"{number:,} × {SIZE} numbers, {SETTINGS.num_neighbours} neighbours of each, "
              f"{len(os.sched_getaffinity(0))} cores", flush=True)  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make(folder, number)
            for search in (exact, ours, faiss_hnsw):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    try:
                        build_s, search_s, memory = pool.submit(_measured, search, folder).result()
                    except ImportError:
                        print(f"  {search.__name__:12s} faiss-cpu is not installed", flush=True)
                        continue
                found = f", recall {_recall(folder, search.__name__):.4f}" if search is not exact else ""
                print(f"  {search.__name__:12s} build {build_s:8.1f} s, search {search_s:8.1f} s, peak of the driver "
                      f"{memory:.2f} GiB{found}", flush=True)  # fmt: skip


def _recall(folder: Path, name: str) -> float:
    """The share of the sample's true neighbours that were found."""
    truth, numbers = np.load(folder / "truth.npy"), np.load(folder / f"{name}.npy")[_sample(folder)]
    distances = np.zeros(truth.shape, np.float32)
    return recall(Neighbours(numbers, distances), Neighbours(truth, distances))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [20_000, 100_000, 1_000_000])
