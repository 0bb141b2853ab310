"""From a plan to a store: planned scans are cropped and published part by part, for whichever verb plans them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue, read_columns
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.progress import say
from raygenesis.cluster.streams import RETRIED, PartSource, SourcePart, StreamProgress, read_parts, write_parts
from raygenesis.discovery.coordinates import largest_extent
from raygenesis.discovery.cubes import crop_cubes, size_mm
from raygenesis.discovery.patients import Patients
from raygenesis.discovery.visits import VISIT, Visit
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.patterns.cells import DTYPE, STEPS, encode
from raygenesis.patterns.reader import verb_of
from raygenesis.patterns.schema import PATTERN, PatternRow, PlannedPattern
from raygenesis.patterns.writer import PartRecord, part_path, read_part_record, read_whole_part, write_part
from raygenesis.settings import IntensitySettings, Scale
from raygenesis.text.amounts import sides, size
from raygenesis.workspace.failures import FAILURES, FailureRow
from raygenesis.workspace.files import Place, read_table, remove_tree, write_table
from raygenesis.workspace.manifest import StoreCounts, StoreManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

# Cubes of one scan made at a time, so that many references do not fill the memory.
MOST_BOXES = 256

# Bytes of cubes, before they are packed, of a part that is made at once.
MOST_PART_BYTES = 2**31

# Small enough that who asks for one part reads little else of the plan.
VISITS_PER_GROUP = 4096

S = TypeVar("S", bound=StoreManifest)

# Why a volume's visits left nothing: by volume and reference, or of all its visits under (volume, None).
Reasons = dict[tuple[str, int | None], str]
# The visits of a scan and its catalogue row → its patterns; a visit that fails goes to the reasons. Raises ScanError if
# the scan has none.
Planner = Callable[[Sequence[Visit], CatalogueRow, Reasons], list[PlannedPattern]]


@dataclass(frozen=True)
class StoreTask:
    """What the tasks that write the parts of one store have in common.

    folder: the store's; cube_shape: voxels of a pattern; patterns_per_visit: as many as `plan_patterns` gives of each.
    """

    folder: Place
    workspace: Workspace
    cube_shape: tuple[int, ...]
    intensity: IntensitySettings
    patterns_per_visit: int
    plan_patterns: Planner


@dataclass(frozen=True)
class StoreSizes:
    """How many references, coordinates (or crops of each scan) and neighbours (or training scans) a store has."""

    references: int
    coordinates: int
    neighbours: int


# What cropping makes of a part: its patterns in the store's order, then what left none, with the reason.
CROPPED = pa.schema([*PATTERN, ("part", pa.int32()), ("source", pa.string()), ("failure", pa.string())])


def most_in_memory(cube_shape: Sequence[int]) -> int:
    """How many cubes the task that makes a part may hold."""
    return max(1, MOST_PART_BYTES // (int(np.prod(cube_shape)) * DTYPE.itemsize))


def write_store(store: StoreTask, plan: pa.Table, failures: pa.Table) -> tuple[list[PartRecord], pa.Table]:
    """Crop and publish every part of a plan (schema VISIT) in a Ray Data pipeline.

    Parts that an interrupted call left stay if its plan was the same. Writes the table of failures (schema FAILURES),
    those given and those of the parts. Returns the records of the parts, in order, and all failures.
    """
    folder = store.folder
    path = folder / "plan.parquet"
    if path.is_file() and not read_table(path).equals(plan):  # a scan that failed then is another's neighbour now
        say(verb_of(folder), f"the {folder.name} of another plan, which was interrupted, are made again")
        for part in folder.glob("part-*"):
            remove_tree(part)
    write_table(path, plan, row_group_size=VISITS_PER_GROUP)
    source = visit_source(store, plan)
    crop_some = functools.partial(crop_part, store=store)
    cropped = read_parts(source).map_batches(
        crop_some, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **RETRIED
    )
    shown = StreamProgress(
        verb_of(folder), folder.name, plan.num_rows * store.patterns_per_visit, num_parts=source.num_parts
    )
    written = {record.part: record for record in write_parts(cropped, functools.partial(publish_part, folder), shown)}
    records = [written.get(part) or _record_of(folder, part) for part in range(source.num_parts)]
    failed = [{"source": source, "reason": reason} for record in records for source, reason in record.failures]
    failures = pa.concat_tables([failures, pa.Table.from_pylist(failed, FAILURES)])
    write_table(folder / "failures.parquet", failures)
    path.unlink()
    return records, failures


def visit_source(store: StoreTask, plan: pa.Table) -> PartSource:
    """The visits (schema VISIT) of each part of a plan, read from the store's folder; none of a part that is there."""
    num_visits = np.bincount(plan["part"].to_numpy())
    num_bytes = store.patterns_per_visit * int(np.prod(store.cube_shape)) * DTYPE.itemsize
    return PartSource(
        [
            SourcePart(functools.partial(_read_visits, store.folder, part), int(number), int(number) * num_bytes)
            for part, number in enumerate(num_visits)
        ],
        VISIT,
    )


def _read_visits(folder: Place, part: int) -> pa.Table:
    if read_whole_part(part_path(folder, part)) is not None:
        return VISIT.empty_table()
    return read_table(folder / "plan.parquet", filters=[("part", "=", part)]).cast(VISIT)


def crop_part(part: pa.Table, store: StoreTask) -> pa.Table:
    """Crop the patterns of one part, volume by volume: visits (schema VISIT) → rows (schema CROPPED).

    A damaged volume loses its patterns.
    """
    visits: list[Visit] = sorted(part.to_pylist(), key=lambda visit: visit["volume_id"])
    if not visits:
        return CROPPED.empty_table()
    number = visits[0]["part"]
    rows = {row["volume_id"]: row for row in read_catalogue(store.workspace.catalog, {v["volume_id"] for v in visits})}
    reasons: Reasons = {}
    patterns = _cropped(visits, rows, store, reasons)
    patterns.sort(key=lambda row: (row["rank"], row["reference"], row["coordinate"], row["scale"]))
    there = {(row["volume_id"], row["reference"]) for row in patterns}
    failed = _failures(visits, there, rows, reasons)
    return pa.Table.from_pylist(
        [{**row, "part": number} for row in patterns]
        + [{"part": number, "source": failure["source"], "failure": failure["reason"]} for failure in failed],
        CROPPED,
    )


def publish_part(folder: Place, cropped: pa.Table) -> PartRecord:
    """Write one part's patterns and its record, from rows of schema CROPPED."""
    has_failed = pc.is_valid(cropped["failure"])
    failed = cropped.filter(has_failed)
    patterns = cropped.filter(pc.invert(has_failed)) if len(failed) else cropped
    failures = list(zip(failed["source"].to_pylist(), failed["failure"].to_pylist(), strict=True))
    return write_part(folder, cropped["part"][0].as_py(), patterns.select(PATTERN.names), failures)


def _record_of(folder: Place, part: int) -> PartRecord:
    """The record of a part that a task has just found to be whole."""
    record = read_part_record(part_path(folder, part))
    if record is None:
        raise WorkspaceError(f"{part_path(folder, part)} was changed meanwhile: run the same command again")
    return record


def _cropped(
    visits: Sequence[Visit], rows: Mapping[str, CatalogueRow], store: StoreTask, reasons: Reasons
) -> list[PatternRow]:
    """The patterns of visits in order of their scans; each scan is read once."""
    cropped: list[PatternRow] = []
    for volume_id, of_scan in itertools.groupby(visits, key=lambda visit: visit["volume_id"]):
        row = rows[volume_id]
        patterns: list[PatternRow] = []
        try:
            planned = store.plan_patterns(list(of_scan), row, reasons)
            for start in range(0, len(planned), MOST_BOXES):
                some = planned[start : start + MOST_BOXES]
                boxes = [(pattern["origin_mm"], pattern["extent_mm"]) for pattern in some]
                cubes = crop_cubes(store.workspace.volumes, row, boxes, store.cube_shape, store.intensity)
                patterns += [PatternRow(**one, cube=encode(cube)) for one, cube in zip(some, cubes, strict=True)]
        except ScanError as error:
            reasons[volume_id, None] = str(error)
        else:
            cropped += patterns
    return cropped


def _failures(
    visits: Sequence[Visit], there: set[tuple[str, int]], rows: Mapping[str, CatalogueRow], reasons: Reasons
) -> list[FailureRow]:
    """Failure rows of the visits that left nothing: one for a scan that is damaged, one each for those not aligned."""
    stored = {volume for volume, _ in there}
    failures: dict[tuple[str, int | None], FailureRow] = {}
    for visit in visits:
        volume, reference = visit["volume_id"], visit["reference"]
        if (volume, reference) in there:
            continue
        is_whole_scan = volume not in stored and (volume, reference) not in reasons
        reason = reasons.get((volume, None), "damaged when it was cropped")
        if not is_whole_scan:
            of_visit = reasons.get((volume, reference), "it could not be aligned when it was cropped")
            reason = f"{of_visit} (reference {reference})"
        failures[volume, None if is_whole_scan else reference] = {"source": rows[volume]["source"], "reason": reason}
    return list(failures.values())


def too_small(catalog: Place, patients: Patients, scales: Sequence[Scale]) -> pa.Table:
    """Failures (schema FAILURES) of the scans that cannot hold the largest crop."""
    reach = sides(np.array(largest_extent(scales)))
    names = patients.names(np.flatnonzero(~patients.is_roomy & patients.is_there))
    if not names:
        return FAILURES.empty_table()
    return pa.Table.from_pylist(
        [
            {
                "source": row["source"],
                "reason": f"{sides(size_mm(row))} mm is smaller than the largest crop, {reach} mm (discovery.scales)",
            }
            for row in read_columns(catalog, ["source", "shape", "spacing_mm"], names).to_pylist()
        ],
        FAILURES,
    )


def manifest_of_parts(
    records: Sequence[PartRecord], num_failures: int, sizes: StoreSizes, cube_shape: tuple[int, ...], seconds: float
) -> StoreManifest:
    """The manifest of a store of these parts, which `finish_store` completes."""
    num_patterns = sum(record.patterns for record in records)
    counts = StoreCounts(
        patterns=num_patterns, validation=sum(record.validation for record in records),
        volumes=sum(record.volumes for record in records), parts=len(records), failures=num_failures,
        references=sizes.references, coordinates=sizes.coordinates, neighbours=sizes.neighbours,
    )  # fmt: skip
    raw_bytes = num_patterns * int(np.prod(cube_shape)) * DTYPE.itemsize
    return StoreManifest(
        counts=counts, seconds=seconds, cube_shape=cube_shape, cube_dtype=DTYPE.str, cube_steps=STEPS,
        raw_bytes=raw_bytes, parts=tuple(record.checksum for record in records),
    )  # fmt: skip


def finish_store(stage: Stage[S], manifest: S, failures: pa.Table) -> S:
    """Publish a store, say what it holds, and return its manifest."""
    manifest = stage.finish(manifest)
    set_gauge("raygenesis_failures", len(failures), stage=stage.folder.name)
    _summarise(stage.folder, manifest, failures)
    return manifest


def _summarise(folder: Place, manifest: StoreManifest, failures: pa.Table) -> None:
    counts = manifest.counts
    for failure in failures[:5].to_pylist():
        say(verb_of(folder), f"skipped {failure['source']}: {failure['reason']}")
    classes = f" of {counts.references * counts.coordinates} classes" if counts.references else ""
    rate = counts.patterns / max(manifest.seconds, 1e-9)
    say(
        verb_of(folder),
        f"{counts.patterns - counts.validation} {folder.name} and {counts.validation} held-out ones{classes} "
        f"from {counts.volumes} scans, {len(failures)} failures, {size(manifest.raw_bytes)} raw, "
        f"{size(manifest.bytes)} stored, {manifest.seconds:.1f} s ({rate:.0f} {folder.name}/s) → {folder}",
    )
