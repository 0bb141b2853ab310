"""Whether a pattern store is whole: every part is read again and compared with the manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raygenesis.cluster.progress import progress, say
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.cells import DTYPE, decode_steps
from raygenesis.patterns.reader import StoreArtifact, store_manifest, verb_of
from raygenesis.patterns.schema import PATTERN, TRAINING, UNLABELLED, VALIDATION
from raygenesis.patterns.writer import checksum, part_path
from raygenesis.text.amounts import size
from raygenesis.workspace.artifacts import PATTERNS
from raygenesis.workspace.files import Place, on_disk
from raygenesis.workspace.manifest import Checksum, StoreCounts, StoreManifest
from raygenesis.workspace.workspace import Workspace

CHECKED_COLUMNS = ["pattern_id", "label", "reference", "coordinate", "split", "cube"]


@dataclass(frozen=True)
class PartCheck:
    """What reading a part again showed: what is wrong with it, if anything, and what it holds."""

    fault: str = ""
    pattern_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    num_validation: int = 0


def verify(workspace: Workspace, store: StoreArtifact = PATTERNS) -> int:
    """Read every part again and compare it with the manifest; returns the number of patterns.

    store: PATTERNS or CROPS of the table of artifacts. Checks each part's checksum, columns, labels and cells, that ids
    are unique, and the counts. Raises WorkspaceError naming what is damaged and how to mend it.
    """
    folder = workspace.folder(store)
    manifest = store_manifest(folder)
    counts, written = manifest.counts, manifest.parts
    if len(written) != counts.parts:
        raise WorkspaceError(
            f"{folder / 'manifest.json'} does not hold a checksum of each of its {counts.parts} parts (an earlier "
            f"version wrote it, or it was changed): remove it and run `raygenesis {verb_of(folder)}`"
        )
    paths = [part_path(folder, part) for part in range(len(written))]
    checks = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("verify", len(paths), "parts") as ticker:
        for check in pool.map(check_part, paths, written, [manifest] * len(paths)):
            checks.append(check)
            ticker.advance(note=f"{sum(bool(check.fault) for check in checks)} damaged")
    faults = {path.name: check.fault for path, check in zip(paths, checks, strict=True) if check.fault}
    for part in _parts_that_repeat([check.pattern_ids for check in checks]):
        faults.setdefault(paths[part].name, "ids of its patterns are there twice")
    for name, fault in faults.items():
        say("verify", f"{name}: {fault}")
    for stranger in sorted({path.name for path in folder.glob("part-*.parquet")} - {path.name for path in paths}):
        say("verify", f"{stranger} is no part of the store: remove it if nobody needs it")
    if faults:
        first = min(faults)
        raise WorkspaceError(
            f"{len(faults)} of {len(paths)} parts in {folder} are damaged, {first}: {faults[first]}: remove the parts "
            f"named above and manifest.json there, then run `raygenesis {verb_of(folder)}`"
        )
    _check_counts(folder, counts, checks)
    cubes = size(manifest.raw_bytes)
    say("verify", f"{counts.patterns} patterns in {len(paths)} parts are whole, {cubes} of cubes read")
    return counts.patterns


def check_part(path: Place, written: Checksum, manifest: StoreManifest) -> PartCheck:
    """Read one part again; `written` is what the manifest says of the file."""
    try:
        with on_disk(path) as local:
            return _read_again(local, written, manifest)
    except FileNotFoundError:
        return PartCheck("it is missing")
    except (ValueError, RuntimeError, OSError) as error:
        return PartCheck(str(error).splitlines()[0])


def _read_again(path: Path, written: Checksum, manifest: StoreManifest) -> PartCheck:
    """Raises ValueError, or what Arrow and blosc raise, saying what is wrong."""
    found = checksum(path)
    if found.bytes != written.bytes:
        raise ValueError(f"it has {found.bytes} bytes, and {written.bytes} were written")
    if found.xxh3 != written.xxh3:
        raise ValueError(f"its checksum is {found.xxh3}, and {written.xxh3} was written")
    file = pq.ParquetFile(path)
    if not file.schema_arrow.equals(PATTERN):
        raise ValueError("its columns are not those of a pattern store")
    steps = np.empty(manifest.cube_shape, DTYPE)
    ids, num_validation = [np.empty(0, np.int64)], 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=CHECKED_COLUMNS, use_threads=False)
        _check_labels(table, manifest.counts)
        for pattern_id, cell in zip(table["pattern_id"], table["cube"], strict=True):
            try:
                decode_steps(memoryview(cell.as_buffer()), steps)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"pattern {pattern_id}: {error}") from None
        ids.append(table["pattern_id"].to_numpy())
        num_validation += table["split"].to_pylist().count(VALIDATION)
    return PartCheck("", np.concatenate(ids), num_validation)


def _check_labels(table: pa.Table, counts: StoreCounts) -> None:
    """Raise ValueError if a label is not that of its reference and coordinate, or a split is unknown.

    Random crops have neither label nor reference.
    """
    ids, labels, references, coordinates = (table[name].to_numpy() for name in CHECKED_COLUMNS[:4])
    if counts.references:
        right = labels == references.astype(np.int64) * counts.coordinates + coordinates
        right &= (references >= 0) & (references < counts.references)
    else:
        right = (labels == UNLABELLED) & (references == UNLABELLED)
    right &= (coordinates >= 0) & (coordinates < counts.coordinates)
    if not right.all():
        wrong = int(np.argmin(right))
        raise ValueError(
            f"pattern {ids[wrong]} of reference {references[wrong]} and coordinate {coordinates[wrong]} has the label "
            f"{labels[wrong]}"
        )
    unknown = set(table["split"].to_pylist()) - {TRAINING, VALIDATION}
    if unknown:
        raise ValueError(f"split {min(unknown, key=str)!r} is unknown")


def _parts_that_repeat(pattern_ids: Sequence[NDArray[np.int64]]) -> list[int]:
    """Numbers of the parts that hold an id which they, or an earlier part, hold already."""
    ids = np.concatenate(pattern_ids)
    owners = np.repeat(np.arange(len(pattern_ids)), [len(part) for part in pattern_ids])
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    return np.unique(owners[order][repeated]).tolist()


def _check_counts(folder: Place, counts: StoreCounts, checks: Sequence[PartCheck]) -> None:
    """Raise WorkspaceError if the manifest counts other patterns than the parts hold."""
    held = (
        ("patterns", counts.patterns, sum(len(check.pattern_ids) for check in checks)),
        ("validation", counts.validation, sum(check.num_validation for check in checks)),
    )
    for name, counted, number in held:
        if counted != number:
            raise WorkspaceError(
                f"{folder / 'manifest.json'} counts {counted} {name}, and its parts hold {number}: remove it and "
                f"run `raygenesis {verb_of(folder)}`"
            )
