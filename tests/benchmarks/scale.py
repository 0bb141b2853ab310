"""What a stage needs on the driver for a thousand and for a million scans: seconds, peak memory and Ray objects.

    python -m tests.benchmarks.scale [VOLUMES]...

The catalogue and the embeddings are made up; a stage runs in a process of its own, up to the point where scans are read
(those are not there), and its tasks are counted and measured instead of run: what is left grows with the archive.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray import cloudpickle

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue
from raygenesis.archive.inspection import info
from raygenesis.archive.intake.known_files import SOURCES
from raygenesis.cluster.progress import Stopwatch
from raygenesis.discovery import crop as cropping
from raygenesis.discovery import discover as discovering
from raygenesis.discovery import embed as embedding
from raygenesis.discovery import encoders as encoding
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.exact import exact_search
from raygenesis.discovery.neighbours import NeighbourFinder, build_index, searcher, typical_distance
from raygenesis.discovery.patients import load_patients
from raygenesis.discovery.references import choose_references
from raygenesis.discovery.store_writer import too_small
from raygenesis.discovery.visits import plan_visits
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.settings import Settings, load_settings
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.hardware import peak_memory_gib
from raygenesis.workspace.manifest import ArchiveCounts, ArchiveManifest, EmbeddingsCounts, EmbeddingsManifest
from raygenesis.workspace.manifest_files import write_manifest
from raygenesis.workspace.workspace import Workspace

SIZE, VOLUMES_PER_PART, CLUSTERS = 512, 128, 1000
ROWS_AT_ONCE = 8192
SETTINGS = ["discovery.num_references=44", "validation_fraction=0.05", "embedding.num_actors=2"]
# A stage may take no more than this of a machine that others use.
MOST_BYTES = 8 * 2**30

TAGS = json.dumps({name: "made up, as long as what scanners say" for name in ("Manufacturer", "Model", "Protocol")})
ROW = {
    "source_bytes": 70_000_000, "modality": "CT", "shape": [133, 512, 512], "num_channels": 1,
    "spacing_mm": [2.5, 0.7, 0.7], "affine": [float(n) for n in range(16)], "dtype": "int16", "slope": 1.0,
    "intercept": -1024.0, "low": [-1000.0], "high": [1500.0], "levels": [[1, 1, 1], [1, 2, 2], [2, 4, 4], [4, 8, 8]],
    "tags": TAGS, "corrections": ["gantry tilt removed"], "notes": [], "stored_bytes": 40_000_000,
}  # fmt: skip


def make_workspace(root: Path, num_volumes: int) -> Workspace:
    """A catalogue and clustered embeddings of so many volumes; every sixth subject has two."""
    workspace = Workspace.open(root)
    for folder in (workspace.archive, workspace.embeddings, workspace.private):
        folder.mkdir(exist_ok=True)
    with (
        pq.ParquetWriter(workspace.catalog, CATALOGUE) as catalogue,
        pq.ParquetWriter(workspace.private / "sources.parquet", SOURCES) as sources,
    ):
        for start in range(0, num_volumes, ROWS_AT_ONCE):
            rows = [_row(number) for number in range(start, min(start + ROWS_AT_ONCE, num_volumes))]
            catalogue.write_table(pa.Table.from_pylist(rows, CATALOGUE))
            known = [
                {"source": row["source"], "path": f"site/{row['source']}.nii", "stamp": row["volume_id"],
                 "volume_ids": [row["volume_id"]], "reason": "", "is_lasting": True}
                for row in rows
            ]  # fmt: skip
            sources.write_table(pa.Table.from_pylist(known, SOURCES))
    pq.write_table(FAILURES.empty_table(), workspace.archive / "failures.parquet")
    counts = ArchiveCounts(scans=num_volumes, volumes=num_volumes, subjects=num_volumes * 5 // 6, failures=0)
    write_manifest(workspace.archive, ArchiveManifest(fingerprint="made up", counts=counts, source_bytes=0))
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, SIZE)).astype(np.float32)
    for start in range(0, num_volumes, VOLUMES_PER_PART):
        names = [f"{number:016x}" for number in range(start, min(start + VOLUMES_PER_PART, num_volumes))]
        generator = np.random.default_rng([1, start])
        vectors = centres[generator.integers(CLUSTERS, size=len(names))]
        vectors = vectors + generator.standard_normal(vectors.shape, np.float32)
        cells = pa.FixedSizeListArray.from_arrays(vectors.ravel(), SIZE)
        table = pa.table({"volume_id": names, "embedding": cells, "failure": [""] * len(names)})
        pq.write_table(table, workspace.embeddings / f"part-{start:09d}.parquet")
    embedded = EmbeddingsManifest(fingerprint="made up", counts=EmbeddingsCounts(volumes=num_volumes))
    write_manifest(workspace.embeddings, embedded)
    return workspace


def _row(number: int) -> dict[str, Any]:
    subject = number - (number % 6 == 5)
    return ROW | {
        "volume_id": f"{number:016x}", "subject_id": f"{subject:016x}", "source": f"{number:016x}",
        "voxel_fingerprint": f"{number:032x}",
    }  # fmt: skip


class Counted:
    """Takes the place of what would send work to Ray, and counts it."""

    def __init__(self) -> None:
        self.num_objects, self.num_bytes = 0, 0

    def each(self, _: Callable[..., Any], items: Iterable[Any], *shared: Any) -> Iterator[Any]:
        """As `cluster.each`: the items, and what all of them share."""
        for value in (*shared, *items):
            self.add(value)
        return iter(())

    def add(self, value: Any) -> None:
        self.num_objects += 1
        self.num_bytes += len(cloudpickle.dumps(value))


class Enough(Exception):
    """Raised where scans would be read."""


def _info(workspace: Workspace, settings: Settings, counted: Counted) -> None:
    info(workspace)


def _autoencoder(workspace: Workspace, settings: Settings, counted: Counted) -> None:
    """The choice of whom the auto-encoder learns from."""

    def read(source: Any, **_: Any) -> None:
        for task in source.get_read_tasks(1):
            counted.add(task)
        raise Enough

    with (
        mock.patch.object(encoding.ray.data, "read_datasource", read),
        mock.patch.object(encoding.joining, "connect"),
    ):
        encoding.train_autoencoder(workspace, settings)


def _embed(workspace: Workspace, settings: Settings, counted: Counted) -> None:
    """All parts are to be made."""

    def read(source: Any, **_: Any) -> None:
        for task in source.get_read_tasks(1):
            counted.add(task)
        raise Enough

    weights = workspace.root / "weights"
    with (
        mock.patch.object(embedding, "ready_encoder", lambda *_: (weights, "made up")),
        mock.patch.object(embedding, "load_scan_encoder", lambda *_: mock.Mock(input_shape=(64, 64, 64))),
        mock.patch.object(embedding.ray.data, "read_datasource", read),
        mock.patch.object(embedding.joining, "connect"),
    ):
        embedding.embed(workspace, settings, workspace.root / "other-embeddings")


def _discover(workspace: Workspace, settings: Settings, counted: Counted) -> None:
    """Index, references, neighbours and plan, up to the first scan; the neighbours of one are checked."""
    discovery, seed = settings.discovery, settings.seed
    embeddings = Embeddings(workspace.embeddings)
    patients = load_patients(workspace, discovery, settings.validation_fraction, seed)
    least = discovery.duplicate_distance * typical_distance(embeddings, patients, seed)
    references = choose_references(patients, embeddings, least, discovery, seed)
    search = searcher(workspace, build_index(workspace, settings.index, discovery, seed), settings.index)
    found = discovering._members(NeighbourFinder(patients, embeddings, search, least), references, discovery)
    names = [{TRAINING: patients.names(near), VALIDATION: patients.names(held_out)} for near, held_out in found]
    plan = plan_visits(names, 44 * 3, discovery.patterns_per_part)
    too_small(workspace.catalog, patients, discovery.scales)
    for part in np.unique(plan["part"].to_numpy()).tolist():
        counted.add(part)
    eligible = patients.eligible(VALIDATION)
    truth = exact_search(embeddings.blocks(eligible), embeddings.take(np.array(references[:1])), 40)
    subjects: dict[int, int] = {}
    for number in truth.numbers[0]:
        subjects.setdefault(int(patients.subjects[number]), int(number))
    assert list(subjects.values())[:30] == found[0][1]


def _crop(workspace: Workspace, settings: Settings, counted: Counted) -> None:
    from raygenesis.discovery import store_writer

    with (
        mock.patch.object(store_writer.fan_out, "each", counted.each),
        mock.patch.object(cropping, "_check_any", mock.Mock(side_effect=Enough)),
    ):
        cropping.crop(workspace, settings)


def _lookup(workspace: Workspace, settings: Settings, counted: Counted) -> None:
    """What one task of a thousand visits reads of the catalogue; not the driver's."""
    there = pq.read_metadata(workspace.catalog).num_rows
    chosen = np.random.default_rng(0).choice(there, min(there, 1000), replace=False)
    assert len(read_catalogue(workspace.catalog, [f"{number:016x}" for number in chosen])) == len(chosen)


STAGES = {
    "nothing": lambda *_: None, "archive info": _info, "auto-encoder": _autoencoder, "embed": _embed,
    "discover": _discover, "crop": _crop, "(a task's look-up)": _lookup,
}  # fmt: skip


def run_stage(name: str, root: str) -> None:
    """Run one stage in this process and print what it took."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    settings, counted, watch = load_settings("paper-3d", SETTINGS), Counted(), Stopwatch()
    before = peak_memory_gib()
    try:
        STAGES[name](Workspace.existing(root), settings, counted)
    except Enough:
        pass
    except MemoryError:
        print(f"{name:20s}{'':10s} more than {MOST_BYTES / 2**30:.0f} GiB", flush=True)
        return
    grown = (peak_memory_gib() - before) * 1024
    print(
        f"{name:20s}{watch.seconds:9.1f} s{grown:9.0f} MiB{counted.num_objects:10,} objects"
        f"{counted.num_bytes / 2**20:9.2f} MiB", flush=True,
    )  # fmt: skip


def main(num_volumes: list[int]) -> None:
    for number in num_volumes:
        print(f"{number:,} made-up volumes × {SIZE} numbers: time, peak memory beyond the imports, what goes to Ray")
        with tempfile.TemporaryDirectory() as root:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                pool.submit(make_workspace, Path(root), number).result()
            for name in STAGES:
                subprocess.run([sys.executable, "-m", "tests.benchmarks.scale", "--stage", name, root], check=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        run_stage(*sys.argv[2:])
    else:
        main([int(number) for number in sys.argv[1:]] or [1_000, 1_000_000])
