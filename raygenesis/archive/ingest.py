"""Ingest: scan files → OME-Zarr volumes, the catalogue and the failures table, through Ray Data."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from raygenesis.archive.catalogue import first_volumes, voxel_bytes, write_catalogue
from raygenesis.archive.intake.found import Found, find
from raygenesis.archive.intake.growth import (
    check_same_folder,
    earlier_rows,
    known_outcomes,
    remember,
    remove_others,
    tables,
)
from raygenesis.archive.intake.identity import Identity, name_for_log, open_identity
from raygenesis.archive.intake.known_files import read_sources
from raygenesis.archive.intake.survey import Scan, Survey
from raygenesis.archive.intake.take_in import IntakeOutcome, take_in
from raygenesis.archive.work import COMPRESSED, ingest_work
from raygenesis.cluster import fan_out, joining
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.progress import Stopwatch, progress, say
from raygenesis.cluster.work import Announce, ArchiveSize, Work, unannounced
from raygenesis.errors import ScanError, SettingsError, WorkspaceError
from raygenesis.settings import ArchiveSettings, Settings
from raygenesis.text.amounts import MIB, size
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import remove_tree, write_table
from raygenesis.workspace.manifest import ArchiveCounts, ArchiveManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

# Scans are handed to Ray in blocks of at most so many, and of about so many bytes.
SCANS_PER_BLOCK, BYTES_PER_BLOCK = 16, 16 * 2**20

# Files of more bytes are large; a byte of them may need so many of memory, unpacked and turned into canonical axes.
LARGE_BYTES, MEMORY_PER_BYTE = 64 * 2**20, 8


def ingest(
    scans: Path, workspace: Workspace, settings: Settings, prune: bool = False, found: Found | None = None,
    announce: Announce = unannounced,
) -> ArchiveManifest:  # fmt: skip
    """Bring every scan below `scans` into the archive; returns the manifest.

    Files that an earlier ingest knows by path, size and modification time are passed by; new and changed ones are
    taken in. Volumes whose files are gone stay, unless `prune`. A scan that cannot be read becomes a row of
    `failures.parquet`. Raises ScanError if nothing at all can be read, WorkspaceError if nothing can be stored.
    """
    found = found or find(scans, workspace)
    _check_subject_pattern(found.survey.scans, settings.archive.subject_pattern)
    stage = Stage(ARCHIVE, workspace.archive, {"archive": settings.archive.model_dump(mode="json")}, {})
    earlier = earlier_rows(workspace)
    known = read_sources(workspace.private)
    made = stage.finished()
    if made and _is_up_to_date(made, found, earlier, known) and not (prune and made.counts.removed):
        what = f"{made.counts.volumes} volumes, {made.counts.failures} failures"
        say("ingest", f"nothing to do: all {found.survey.num_found} scans are in {workspace.archive} ({what})")
        return made
    check_same_folder(scans, found.survey, known, workspace)
    check_any(scans, found.survey)
    watch = Stopwatch()
    if workspace.catalog.is_file():
        open_identity(workspace, settings.archive.keep_ids)  # that its key is lost is said before anything is changed
    with stage.claimed():
        earlier, known = earlier_rows(workspace), read_sources(workspace.private)  # no other job changes them any more
        identity = open_identity(workspace, settings.archive.keep_ids)
        outcomes = known_outcomes(found.survey.scans, known, earlier)
        num_known = len(outcomes)
        fresh = [scan for scan in found.survey.scans if scan.source not in outcomes]
        announce(_work(fresh))
        outcomes |= _take_in_all(scans.resolve(), fresh, workspace, settings.archive)
        rows, gone, failures = tables(found.survey, outcomes, earlier, known, identity, settings.archive)
        kept = [] if prune else gone
        write_table(workspace.archive / "failures.parquet", pa.Table.from_pylist(failures, FAILURES))
        if not rows:
            raise _nothing_readable(scans, found.survey, _failed(found.survey, outcomes, identity))
        rows = sorted(rows + kept, key=lambda row: row["volume_id"])
        remember(workspace, scans, found.survey, found.headers, outcomes, identity, rows, known)
        catalogue = write_catalogue(workspace.catalog, rows)
        remove_others(workspace.volumes, rows)
        if prune and gone:
            say("ingest", f"{len(gone)} volumes removed whose files are gone or no longer readable")
        counts = ArchiveCounts(
            scans=found.survey.num_found, volumes=len(rows), subjects=len({row["subject_id"] for row in rows}),
            failures=len(failures), known=num_known, removed=len(kept), other_files=found.survey.num_others,
        )  # fmt: skip
        first, stored = first_volumes(rows), sum(row["stored_bytes"] for row in rows)
        manifest = ArchiveManifest(
            counts=counts, seconds=watch.seconds, listing=found.listing,
            source_bytes=sum(scan.num_bytes for scan in found.survey.scans),
            voxel_bytes=voxel_bytes(catalogue), stored_bytes=stored,
            bytes=stored,  # the tables beside the volumes are small, and looking takes long
        )  # fmt: skip
        content = [[row["volume_id"], row["voxel_fingerprint"], first[row["subject_id"]]] for row in rows]
        manifest = stage.finish(manifest, content)
        _summarise(manifest, found.survey, outcomes, workspace, identity)
        return manifest


def _work(fresh: Sequence[Scan]) -> list[Work]:
    """To take scans in."""
    if not fresh:
        return []
    files_mib = sum(scan.num_bytes for scan in fresh) / MIB / len(fresh)
    return [ingest_work(ArchiveSize(len(fresh), files_mib / COMPRESSED, files_mib))]


def _check_subject_pattern(scans: Sequence[Scan], pattern: str | None) -> None:
    """Raise SettingsError if the pattern finds a subject in no path; say how many paths it passes by."""
    if pattern is None or not scans:
        return
    passed_by = [scan.source for scan in scans if not re.search(pattern, scan.source)]
    if len(passed_by) == len(scans):
        raise SettingsError(
            f"archive.subject_pattern={pattern!r} matches none of the {len(scans)} paths, the first "
            f"{name_for_log(passed_by[0])}: correct it, or leave it out for one subject a file"
        )
    if passed_by:
        say(
            "ingest",
            f"archive.subject_pattern matches all paths but {len(passed_by)}, the first {name_for_log(passed_by[0])}",
        )


def _is_up_to_date(
    manifest: ArchiveManifest, found: Found, earlier: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Whether the folder is as it was, every volume is there, and no failure may have passed by itself."""
    may_have_passed = any(row["reason"] and not row["is_lasting"] for row in known.values())
    is_whole = len(earlier) == manifest.counts.volumes
    return manifest.listing == found.listing and is_whole and not may_have_passed


def _take_in_all(
    root: Path, scans: Sequence[Scan], workspace: Workspace, settings: ArchiveSettings
) -> dict[str, IntakeOutcome]:
    """Outcomes of scans by their source. Raises WorkspaceError if they cannot be stored."""
    if not scans:
        return {}
    joining.connect()
    try:
        workspace.volumes.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(f"{workspace.volumes} cannot be made: {error.strerror}") from None
    remove_tree(workspace.archive / "attempts")
    for half_written in workspace.volumes.glob(".*.ome.zarr.*"):
        remove_tree(half_written)
    arguments = {"root": root, "volumes": workspace.volumes, "settings": settings}
    rows = itertools.chain.from_iterable(dataset.iter_rows() for dataset in _datasets(scans, arguments))
    outcomes: dict[str, IntakeOutcome] = {}
    num_failed = 0
    with progress("ingest", len(scans), "scans") as ticker:
        for row in rows:
            outcome = IntakeOutcome(**json.loads(row["outcome"]))
            if outcome.fault:
                raise WorkspaceError(outcome.fault)
            outcomes[row["source"]] = replace(outcome, records=tuple(outcome.records))
            num_failed += bool(outcome.reason)
            ticker.advance(note=f"{num_failed} failed")
    remove_tree(workspace.archive / "attempts")
    return outcomes


def _datasets(scans: Sequence[Scan], arguments: dict[str, Any]) -> Iterator[ray.data.Dataset]:
    """Outcomes of ordinary scans, then of large ones, of which as many are decoded at once as fit in memory."""
    large = [scan for scan in scans if scan.num_bytes > LARGE_BYTES]
    ordinary = [scan for scan in scans if scan.num_bytes <= LARGE_BYTES]
    for group in filter(None, (ordinary, large)):
        blocks = _blocks(group)
        memory = None
        if group is large:
            most = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
            memory = min(MEMORY_PER_BYTE * max(scan.num_bytes for scan in large), 0.9 * most)
        yield ray.data.from_items(blocks, override_num_blocks=len(blocks)).flat_map(
            take_in_block,  # type: ignore[arg-type] # Ray says functions of a row alone, and takes generators with arguments
            fn_kwargs=arguments,
            memory=memory,
        )


def _blocks(scans: Sequence[Scan]) -> list[dict[str, Any]]:
    """Scans in blocks of about equal bytes, small enough that every worker gets several."""
    most = min(BYTES_PER_BLOCK, sum(scan.num_bytes for scan in scans) // 16)
    blocks: list[list[Scan]] = []
    size = 0
    for scan in scans:
        if not blocks or size + scan.num_bytes > most or len(blocks[-1]) == SCANS_PER_BLOCK:
            blocks.append([])
            size = 0
        blocks[-1].append(scan)
        size += scan.num_bytes
    return [{"scans": [[file.path for file in scan.files] for scan in block]} for block in blocks]


def take_in_block(
    block: Mapping[str, Any], root: Path, volumes: Any, settings: ArchiveSettings
) -> Iterator[dict[str, str]]:
    """Outcomes, as JSON, of the scans of one block, each with its source."""
    node = ray.get_runtime_context().get_node_id()
    for files in block["scans"]:
        outcome = take_in([root / path for path in files], volumes, settings, node, fan_out.is_lost)
        yield {"source": str(files[0]), "outcome": json.dumps(asdict(outcome))}


def _failed(
    found: Survey, outcomes: Mapping[str, IntakeOutcome], identity: Identity | None = None
) -> list[tuple[str, str]]:
    """What became no volume, as messages call it and by path, and why."""
    failed = [(file.source, file.source, file.reason) for file in found.aside]
    taken_in = (scan for scan in found.scans if scan.source in outcomes)
    failed += [(scan.source, scan.name, outcomes[scan.source].reason) for scan in taken_in]
    return [(name_for_log(path, name, identity), reason) for path, name, reason in sorted(failed) if reason]


def check_any(scans: Path, found: Survey) -> None:
    """Raise ScanError, with the first reason, if a folder holds nothing but files that are set aside."""
    if not found.scans:
        raise _nothing_readable(scans, found, _failed(found, {}))


def _nothing_readable(scans: Path, found: Survey, failed: Sequence[tuple[str, str]]) -> ScanError:
    source, reason = failed[0]
    return ScanError(f"none of the {found.num_found} scans in {scans} can be read; the first: {source}: {reason}")


def _summarise(
    manifest: ArchiveManifest,
    found: Survey,
    outcomes: Mapping[str, IntakeOutcome],
    workspace: Workspace,
    identity: Identity,
) -> None:
    counts = manifest.counts
    set_gauge("raygenesis_failures", counts.failures, stage=ARCHIVE.name)
    if counts.known:
        say("ingest", f"{counts.known} scans were known already and not read again")
    if counts.removed:
        say(
            "ingest",
            f"{counts.removed} volumes stay whose files are gone or no longer readable: --prune removes them",
        )
    failed = _failed(found, outcomes, identity)
    for source, reason in failed[:5]:
        say("ingest", f"skipped {source}: {reason}")
    if len(failed) > 5:
        listed = f"`raygenesis archive info --failures --workspace {workspace.root}` lists them"
        say("ingest", f"and {len(failed) - 5} more: {listed}")
    say(
        "ingest",
        f"{counts.volumes} volumes of {counts.subjects} subjects, {counts.failures} failures, "
        f"{size(manifest.source_bytes)} read, {size(manifest.stored_bytes)} stored, {manifest.seconds:.1f} s "
        f"→ {workspace.archive}",
    )
