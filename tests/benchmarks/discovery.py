"""Discovery, neighbours, embedding and the pattern store against what a user would write instead, in one run.

`python -m tests.benchmarks.discovery [cropping|neighbours|streaming|embedding …]`; all when none is named.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import faiss
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy import ndimage

from raygenesis.archive.catalogue import read_catalogue
from raygenesis.archive.geometry import best_level
from raygenesis.archive.ingest import ingest
from raygenesis.archive.source import parts_of
from raygenesis.archive.store import folder_bytes, volume_folder
from raygenesis.cluster.streams import StreamProgress, write_parts
from raygenesis.demo.population import write_population
from raygenesis.discovery.coarse_scans import coarse_cubes
from raygenesis.discovery.cubes import _region, crop_cubes
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import Embedder, embed, embed_stream, publish_part
from raygenesis.discovery.exact import Neighbours, exact_search, is_exact_cheaper, recall
from raygenesis.discovery.index import merge, search_shard
from raygenesis.networks.weights.scan_encoders import load_scan_encoder
from raygenesis.patterns.cells import DTYPE, STEPS, decode_steps
from raygenesis.patterns.reader import read_patterns
from raygenesis.patterns.writer import part_path
from raygenesis.settings import IndexSettings, Settings, load_settings
from raygenesis.workspace.artifacts import PATTERNS
from raygenesis.workspace.workspace import Workspace
from tests.support.data import HEADS
from tests.support.graphs import build_shard

NUM_HEADS, NUM_NAIVE, BATCH = 125, 60, 16
SETTINGS = [
    "archive.keep_ids=true", "autoencoder.num_epochs=3", "discovery.cube_shape=[32, 64, 64]",
    "discovery.num_neighbours=100", "discovery.num_validation_neighbours=20", "discovery.num_coordinates=44",
    "discovery.scales=[{extent_mm: [40, 45, 45]}]", "discovery.min_distance_mm=10",
]  # fmt: skip


def main(sections: list[str]) -> None:
    print(f"{os.cpu_count()} cores; medians; everything was read once before")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if {"cropping", "streaming", "embedding"} & set(sections):
            workspace, scans, settings = _prepared(folder)
        if "cropping" in sections:
            cropping(workspace, scans, settings)
        if "streaming" in sections:
            streaming(workspace, settings, folder)
        if "embedding" in sections:
            embedding(workspace, folder)
        if "neighbours" in sections:
            neighbours(folder)


def _prepared(folder: Path) -> tuple[Workspace, Path, Settings]:
    """Real heads, or simulated ones where there are none, archived, embedded and discovered once."""
    settings, scans = load_settings("cpu-small", SETTINGS), folder / "scans"
    if HEADS.is_dir():
        shutil.copytree(HEADS, scans)
    else:
        write_population(folder, NUM_HEADS, seed=0)
    workspace = Workspace.open(folder / "workspace")
    ingest(scans, workspace, settings)
    embed(workspace, settings)
    discover(workspace, settings)
    return workspace, scans, settings


def cropping(workspace: Workspace, scans: Path, settings: Settings) -> None:
    """Discovery per pattern against loading each volume for each crop, and the bytes that are read."""
    seconds = []
    for _ in range(3):
        shutil.rmtree(workspace.patterns, ignore_errors=True)
        begin = time.perf_counter()
        manifest = discover(workspace, settings)
        seconds.append(time.perf_counter() - begin)
    num_patterns = manifest.counts.patterns
    ours = statistics.median(seconds) / num_patterns
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog)}
    columns = ("volume_id", "origin_voxels", "extent_voxels", "origin_mm", "extent_mm")
    planned = read_patterns(workspace.patterns, columns).to_pylist()
    drawn = np.random.default_rng(0).permutation(len(planned))[:NUM_NAIVE]
    cubes = []
    begin = time.perf_counter()
    for number in drawn:
        cubes.append(_naive_crop(scans / rows[planned[number]["volume_id"]]["source"], planned[number]))
    np.save(scans.parent / "naive.npy", np.stack(cubes))
    naive = (time.perf_counter() - begin) / NUM_NAIVE
    print(f"\ndiscovery of {num_patterns} patterns (K=100, C=44, 32×64×64) from {len(rows)} heads, planning included")
    print(f"  load the volume for each crop, scipy  {1e3 * naive:8.2f} ms a pattern, one process")
    print(f"  ours, Ray on {os.cpu_count()} cores  {1e3 * ours:8.2f} ms a pattern: {naive / ours:.0f} times faster")
    read, needed = _bytes_read(workspace, settings, planned, rows)
    print(f"  bytes read {read / 2**20:.1f} MiB, of them needed {needed / 2**20:.1f} MiB: {read / needed:.2f} times")
    stored = manifest.raw_bytes / 2**20
    print(f"  store: {stored:.0f} MiB raw, {manifest.bytes / 2**20:.0f} MiB on disk")


def _naive_crop(path: Path, pattern: dict) -> np.ndarray:
    """The published way, in our own words: the whole volume for one crop."""
    voxels = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata().transpose(2, 1, 0)
    low, high = np.percentile(voxels, [0.5, 99.5])
    voxels = np.clip((voxels - low) / (high - low), 0, 1)
    origin = np.floor(pattern["origin_voxels"]).astype(int)
    extent = np.ceil(pattern["extent_voxels"]).astype(int)
    crop = voxels[tuple(slice(first, first + side) for first, side in zip(origin, extent, strict=True))]
    shape = (32, 64, 64)
    return ndimage.zoom(crop, [n / side for n, side in zip(shape, crop.shape, strict=True)], order=1)


def _bytes_read(
    workspace: Workspace, settings: Settings, planned: list[dict], rows: dict[str, dict]
) -> tuple[float, float]:
    """Bytes that this process read for all crops, and the bytes that their voxels have in the archive's own coding."""
    needed, begin = 0.0, _read_so_far()
    shape = settings.discovery.cube_shape
    for volume_id, row in rows.items():
        boxes = [(one["origin_mm"], one["extent_mm"]) for one in planned if one["volume_id"] == volume_id]
        if not boxes:
            continue
        crop_cubes(workspace.volumes, row, boxes, shape, settings.intensity)
        level = best_level(row["levels"], row["spacing_mm"], np.array(boxes[0][1]) / shape)
        wanted = np.zeros([-(-n // f) for n, f in zip(row["shape"], row["levels"][level], strict=True)], bool)
        for box in boxes:
            wanted[_region(row, level, box, shape)[0]] = True
        needed += wanted.mean() * folder_bytes(volume_folder(workspace.volumes, volume_id) / str(level))
    return _read_so_far() - begin, needed


def _read_so_far() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def streaming(workspace: Workspace, settings: Settings, folder: Path) -> None:
    """All cubes of the store in order, by one thread, warm: as they are stored, and as training wants them."""
    shape = settings.discovery.cube_shape
    count = PATTERNS.require(workspace.patterns).counts.patterns
    raw = np.lib.format.open_memmap(folder / "cubes.npy", "w+", DTYPE, (count, *shape))
    for number, cell in enumerate(read_patterns(workspace.patterns, ["cube"])["cube"]):
        decode_steps(cell.as_buffer(), raw[number])
    flat = pa.FixedSizeListArray.from_arrays(raw.reshape(-1), int(np.prod(shape)))
    pq.write_table(pa.table({"cube": flat}), folder / "tensors.parquet", compression="zstd", row_group_size=BATCH)
    batch, as_float = np.empty((BATCH, *shape), DTYPE), np.empty((BATCH, *shape), np.float32)
    step = np.float32(1 / STEPS)

    def ours(in_float: bool = False) -> None:
        num_parts = len(list(workspace.patterns.glob("part-*.parquet")))
        for part in range(num_parts):
            file = pq.ParquetFile(part_path(workspace.patterns, part), memory_map=True)
            for group in file.iter_batches(BATCH, columns=["cube"]):
                for out, cube, cell in zip(batch, as_float, group["cube"], strict=False):
                    decode_steps(cell.as_buffer(), batch[0] if in_float else out)
                    if in_float:
                        np.multiply(batch[0], step, out=cube)

    def memmap(in_float: bool = False) -> None:
        there = np.load(folder / "cubes.npy", mmap_mode="r")
        for start in range(0, count, BATCH):
            some = there[start : start + BATCH]
            if in_float:
                np.multiply(some, step, out=as_float[: len(some)])
            else:
                batch[: len(some)] = some

    def tensors() -> None:
        for group in pq.ParquetFile(folder / "tensors.parquet").iter_batches(BATCH, columns=["cube"]):
            values = group["cube"].flatten().to_numpy().reshape(-1, *shape)
            batch[: len(values)] = values

    pa.set_cpu_count(1)
    found = _race(
        {
            "memmap of an .npy": memmap, "Parquet tensor column, zstd": tensors, "ours": ours,
            "memmap, float32 in [0, 1]": lambda: memmap(True), "ours, float32 in [0, 1]": lambda: ours(True),
        }
    )  # fmt: skip
    pa.set_cpu_count(os.cpu_count() or 1)
    print(f"\nstreaming {count} cubes of {'×'.join(map(str, shape))}, 16 at a time, one thread")
    for name, seconds in found.items():
        against = found["ours, float32 in [0, 1]" if "float" in name else "ours"]
        print(f"  {name:28} {raw.nbytes / 2**20 / seconds:8.0f} MiB/s  ours {seconds / against:.2f} times")


def embedding(workspace: Workspace, folder: Path) -> None:
    """Embedding a whole archive against the model alone, in as many processes, on volumes that are in memory."""
    settings = load_settings("paper-3d", ["autoencoder.num_epochs=1"])
    weights = folder / "encoder.safetensors"
    from raygenesis.discovery.autoencoder_training import IdentityMapping
    from raygenesis.networks.weights.scan_encoders import save_scan_encoder

    chosen = settings.autoencoder.model_dump(mode="json", include={"input_shape", "base_width", "latent_size"})
    model = IdentityMapping(settings.autoencoder, 0).build()
    save_scan_encoder(weights, "autoencoder", model.state_dict(), chosen)
    rows = read_catalogue(workspace.catalog)
    many = [rows[number % len(rows)] for number in range(1024)]
    parts = parts_of(many, 64)
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_model_alone, [weights] * cores))
        alone = sum(pool.map(_model_alone, [weights] * cores))
    out = folder / "embedded"
    out.mkdir()
    source = coarse_cubes(workspace.volumes, parts, settings.autoencoder.input_shape, settings.intensity)
    embedder = Embedder(weights, "untrained", tuple(settings.autoencoder.input_shape), "cpu")
    shown = StreamProgress("embed", "volumes", source.num_rows, source.num_parts)
    write_parts(embed_stream(source, embedder, settings.embedding), functools.partial(publish_part, folder=out), shown)
    times = sorted(path.stat().st_mtime for path in out.glob("part-*.parquet"))
    steady = 64 * (len(times) - 4) / (times[-1] - times[3])  # without the processes' start
    print(f"\nembedding scans of 64×64×64 by the paper preset's auto-encoder, {cores} processes of one thread")
    print(f"  the model alone   {alone:7.1f} volumes/s")
    print(f"  the whole stage   {steady:7.1f} volumes/s: {steady / alone:.2f} of it")


def _model_alone(weights: Path) -> float:
    torch.set_num_threads(1)
    model = load_scan_encoder(weights)
    batch = torch.rand(16, 1, *model.input_shape)
    with torch.inference_mode():
        begin = time.perf_counter()
        for _ in range(4):
            model.encode(batch)
    return 64 / (time.perf_counter() - begin)


def neighbours(folder: Path) -> None:
    """Exact search, FAISS and HNSW for archives of growing size; what one more search costs each, and the crossover."""
    size, k, few, many = 128, 200, 44, 1000
    settings = IndexSettings()
    print(f"\nneighbours: K={k}, {size} numbers a vector in clusters; seconds for {few} searches, and ms for one more")
    print(
        "    vectors  FAISS flat    exact  one more    HNSW build   search  one more   recall   "
        "HNSW pays from so many searches: measured, rule"
    )
    for num in (1_000, 10_000, 100_000, 1_000_000):
        vectors = _clustered(num, size)
        queries = vectors[np.random.default_rng(2).permutation(num)[:many]]
        bounds = [(start, min(start + 8192, num)) for start in range(0, num, 8192)]
        blocks = [(np.arange(*bound), vectors[slice(*bound)]) for bound in bounds]
        flat = faiss.IndexFlatL2(size)
        flat.add(vectors)
        by_faiss = _seconds(lambda: flat.search(queries[:few], k))  # noqa: B023
        exact, exact_more = _growth(lambda asked: exact_search(blocks, asked, k), queries, few)  # noqa: B023
        np.save(folder / "vectors.npy", vectors)
        starts = range(0, num, settings.volumes_per_shard)
        ends = [min(start + settings.volumes_per_shard, num) for start in starts]
        begin = time.perf_counter()
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            shards = list(pool.map(_build, [folder] * len(ends), starts, ends, [settings] * len(ends)))
        build = time.perf_counter() - begin

        def search(asked: np.ndarray, there: list = shards) -> Neighbours:
            return merge([search_shard(folder, shard, asked, k, settings.ef) for shard in there], k)

        by_graph, graph_more = _growth(search, queries, few)
        found = recall(search(queries[:few]), exact_search(blocks, queries[:few], k))
        pays = (build + by_graph - exact) / (exact_more - graph_more) if exact_more > graph_more else np.inf
        tried = np.unique(np.logspace(1, 9, 400).round().astype(int)).tolist()
        rule = next((n for n in tried if not is_exact_cheaper(num, n, 0, size, k, settings)), np.inf)
        print(
            f"  {num:9,} {by_faiss:11.3f} {exact:8.3f} {1e3 * exact_more:9.2f} {build:13.1f} {by_graph:8.3f} "
            f"{1e3 * graph_more:9.2f} {found:8.4f}   {pays:12,.0f} {rule:14,.0f}", flush=True,
        )  # fmt: skip


def _growth(search: Callable[[np.ndarray], object], queries: np.ndarray, few: int) -> tuple[float, float]:
    """Seconds for a few queries, and for each one more."""
    first, all_of_them = (_seconds(lambda: search(asked)) for asked in (queries[:few], queries))  # noqa: B023
    return first, (all_of_them - first) / (len(queries) - few)


def _build(folder: Path, start: int, end: int, settings: IndexSettings):
    return build_shard(folder, np.load(folder / "vectors.npy", mmap_mode="r")[start:end], start, settings, 0)


def _clustered(num: int, size: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((max(8, num // 500), size)).astype(np.float32)
    chosen = centres[generator.integers(len(centres), size=num)]
    return chosen + 0.5 * generator.standard_normal((num, size), dtype=np.float32)


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _race(entries: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each, all of them once a round."""
    times: dict[str, list[float]] = {name: [] for name in entries}
    for number in range(rounds + 1):
        for name, run in entries.items():
            begin = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


if __name__ == "__main__":
    main(sys.argv[1:] or ["cropping", "streaming", "embedding", "neighbours"])
