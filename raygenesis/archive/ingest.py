"""Ingest: scan files → OME-Zarr volumes, the catalogue and the failures table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from raygenesis.archive.catalogue import CatalogueRow, first_volumes, voxel_bytes, write_catalogue
from raygenesis.archive.intake.find import find
from raygenesis.archive.intake.growth import (
    EarlierIngests,
    archive_tables,
    check_same_folder,
    files_to_know,
    known_outcomes,
    remove_others,
)
from raygenesis.archive.intake.identity import Identity, name_for_log, open_identity
from raygenesis.archive.intake.known_files import write_private
from raygenesis.archive.intake.outcomes import IntakeOutcome
from raygenesis.archive.intake.parallel import forget_outcomes, take_in_all
from raygenesis.archive.intake.survey import Scan, Survey
from raygenesis.archive.volume_identity import volume_fingerprint
from raygenesis.archive.work import COMPRESSED, ingest_work
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, ArchiveSize, Work, unannounced
from raygenesis.errors import ScanError, SettingsError
from raygenesis.settings import Settings
from raygenesis.text.amounts import MIB, size
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.failures import FAILURES, FAILURES_TABLE
from raygenesis.workspace.files import write_table
from raygenesis.workspace.manifest import ArchiveCounts, ArchiveManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace


def ingest(
    scans: Path, workspace: Workspace, settings: Settings, prune: bool = False, found: Survey | None = None,
    announce: Announce = unannounced,
) -> ArchiveManifest:  # fmt: skip
    """Bring every scan below the folder `scans` into the archive; returns its manifest.

    Files that an earlier ingest knows by path, size and modification time are passed by; new and changed ones are
    taken in. Volumes whose files are gone stay, unless `prune`. A scan that cannot be read becomes a row of
    `failures.parquet`. Raises ScanError if nothing at all can be read, WorkspaceError if nothing can be stored.

    found: the survey of the folder, where it has been made already. announce: is given the work before it begins.
    """
    found = found or find(scans, workspace)
    _check_subject_pattern(found.scans, settings.archive.subject_pattern)
    stage = Stage(ARCHIVE, workspace.archive, {"archive": settings.archive.model_dump(mode="json")}, {})
    earlier = EarlierIngests.read(workspace)
    manifest = stage.finished()
    if manifest and _is_up_to_date(manifest, found, earlier) and not (prune and manifest.counts.removed):
        content = f"{manifest.counts.volumes} volumes, {manifest.counts.failures} failures"
        say("ingest", f"nothing to do: all {found.num_found} scans are in {workspace.archive} ({content})")
        return manifest
    check_same_folder(scans, found, earlier, workspace)
    check_any(scans, found)
    watch = Stopwatch()
    if workspace.catalog.is_file():
        open_identity(workspace, settings.archive.keep_ids)  # raises, before anything is changed, if its key is lost
    known = known_outcomes(found.scans, earlier)
    if new := [scan for scan in found.scans if scan.source not in known]:
        announce([_work(new)])  # before the claim, which removes the manifest that rates are learnt from
    with stage.claimed():
        earlier = EarlierIngests.read(workspace)  # no other job changes it any more
        identity = open_identity(workspace, settings.archive.keep_ids)
        outcomes = known_outcomes(found.scans, earlier)
        num_known = len(outcomes)
        unknown = [scan for scan in found.scans if scan.source not in outcomes]
        outcomes |= take_in_all(scans.resolve(), unknown, workspace, settings.archive)
        tables = archive_tables(found, outcomes, earlier, identity, settings.archive.subject_pattern)
        kept = [] if prune else tables.gone
        write_table(workspace.archive / FAILURES_TABLE, pa.Table.from_pylist(tables.failures, FAILURES))
        if not tables.rows:
            raise _nothing_readable(scans, found, _failed(found, outcomes, identity))
        rows = sorted([*tables.rows, *kept], key=lambda row: row["volume_id"])
        files = files_to_know(found, outcomes, identity, rows, earlier)
        write_private(workspace.private, scans, files, found.headers)
        catalogue = write_catalogue(workspace.catalog, rows)
        remove_others(workspace.volumes, rows)
        if prune and tables.gone:
            say("ingest", f"{len(tables.gone)} volumes removed whose files are gone or no longer readable")
        counts = ArchiveCounts(
            scans=found.num_found, volumes=len(rows), subjects=len({row["subject_id"] for row in rows}),
            failures=len(tables.failures), known=num_known, removed=len(kept), other_files=found.num_others,
        )  # fmt: skip
        manifest = _finish(stage, counts, found, rows, voxel_bytes(catalogue), watch.seconds)
        forget_outcomes(workspace)
        _report(manifest, workspace, _failed(found, outcomes, identity))
        return manifest


def _work(scans: Sequence[Scan]) -> Work:
    """The work to take in scans, of which there are some."""
    files_mib = sum(scan.num_bytes for scan in scans) / MIB / len(scans)
    return ingest_work(ArchiveSize(len(scans), files_mib / COMPRESSED, files_mib))


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
        first = name_for_log(passed_by[0])
        say("ingest", f"archive.subject_pattern matches all paths but {len(passed_by)}, the first {first}")


def _is_up_to_date(manifest: ArchiveManifest, found: Survey, earlier: EarlierIngests) -> bool:
    """Whether the folder is as it was, every volume is there, and no failure may have passed by itself."""
    may_have_passed = any(file["reason"] and not file["is_lasting"] for file in earlier.files.values())
    is_whole = len(earlier.rows) == manifest.counts.volumes
    return manifest.listing == found.listing and is_whole and not may_have_passed


def check_any(scans: Path, found: Survey) -> None:
    """Raise ScanError, with the first reason, if a folder holds nothing but files that are set aside."""
    if not found.scans:
        raise _nothing_readable(scans, found, _failed(found, {}))


def _nothing_readable(scans: Path, found: Survey, failed: Sequence[tuple[str, str]]) -> ScanError:
    source, reason = failed[0]
    return ScanError(f"none of the {found.num_found} scans in {scans} can be read; the first: {source}: {reason}")


def _failed(
    found: Survey, outcomes: Mapping[str, IntakeOutcome], identity: Identity | None = None
) -> list[tuple[str, str]]:
    """What became no volume, as messages call it and in order of path, and why."""
    failed = [(file.source, file.source, file.reason) for file in found.aside]
    taken_in = (scan for scan in found.scans if scan.source in outcomes)
    failed += [(scan.source, scan.name, outcomes[scan.source].reason) for scan in taken_in]
    return [(name_for_log(path, name, identity), reason) for path, name, reason in sorted(failed) if reason]


def _finish(
    stage: Stage[ArchiveManifest], counts: ArchiveCounts, found: Survey, rows: Sequence[CatalogueRow],
    num_voxel_bytes: int, seconds: float,
) -> ArchiveManifest:  # fmt: skip
    first, stored = first_volumes(rows), sum(row["stored_bytes"] for row in rows)
    manifest = ArchiveManifest(
        counts=counts, seconds=seconds, listing=found.listing,
        source_bytes=sum(scan.num_bytes for scan in found.scans),
        voxel_bytes=num_voxel_bytes, stored_bytes=stored,
        bytes=stored,  # the tables beside the volumes are small, and looking takes long
    )  # fmt: skip
    return stage.finish(
        manifest, [[row["volume_id"], volume_fingerprint(row), first[row["subject_id"]]] for row in rows]
    )


def _report(manifest: ArchiveManifest, workspace: Workspace, failed: Sequence[tuple[str, str]]) -> None:
    counts = manifest.counts
    set_gauge("raygenesis_failures", counts.failures, stage=ARCHIVE.name)
    if counts.known:
        say("ingest", f"{counts.known} scans were known already and not read again")
    if counts.removed:
        files = "whose files are gone or no longer readable"
        say("ingest", f"{counts.removed} volumes stay {files}: --prune removes them")
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
