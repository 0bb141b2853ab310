"""An archive that grows: what earlier ingests know of a folder, and what becomes of their volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue
from raygenesis.archive.formats.dicom import Header
from raygenesis.archive.intake.identity import Identity, subject_of
from raygenesis.archive.intake.known_files import stamp_of, write_headers, write_sources
from raygenesis.archive.intake.survey import File, Scan, Survey
from raygenesis.archive.intake.take_in import IntakeOutcome
from raygenesis.archive.store import volume_folder
from raygenesis.errors import WorkspaceError
from raygenesis.settings import ArchiveSettings
from raygenesis.workspace.failures import FailureRow
from raygenesis.workspace.files import Place, publish, remove_tree
from raygenesis.workspace.workspace import Workspace, make_private

# Where `private/` says which folder the archive was made from.
FOLDER_NOTE = "scans-folder"


def earlier_rows(workspace: Workspace) -> dict[str, CatalogueRow]:
    """The catalogue's rows of an earlier ingest by volume id, those whose volumes are still there."""
    if not workspace.catalog.is_file() or not workspace.volumes.is_dir():
        return {}
    stored = {folder.name for folder in workspace.volumes.iterdir()}
    rows = read_catalogue(workspace.catalog)
    there = (row for row in rows if volume_folder(workspace.volumes, row["volume_id"]).name in stored)
    return {row["volume_id"]: row for row in there}


def check_same_folder(scans: Path, found: Survey, known: Mapping[str, Mapping[str, Any]], workspace: Workspace) -> None:
    """Refuse another folder than the archive's, whose paths would be taken for the same files; it may have moved."""
    path = workspace.private / FOLDER_NOTE
    if not known or not path.is_file() or path.read_text() == str(scans.resolve()):
        return
    stamps = {row["stamp"] for row in known.values()}
    if not any(stamp_of(scan) in stamps for scan in found.scans):
        raise WorkspaceError(
            f"{workspace.archive} was made from {path.read_text()}, and no scan in {scans} is one of that folder: give "
            "that folder, or choose another workspace"
        )


def known_outcomes(
    scans: Sequence[Scan], known: Mapping[str, Mapping[str, Any]], earlier: Mapping[str, CatalogueRow]
) -> dict[str, IntakeOutcome]:
    """Outcomes of the scans whose files have not changed since an earlier ingest took them in, or refused them."""
    outcomes = {}
    for scan in scans:
        row = known.get(scan.source)
        if row is None or row["stamp"] != stamp_of(scan):
            continue
        if row["reason"] and row["is_lasting"]:
            outcomes[scan.source] = IntakeOutcome(reason=row["reason"])
        elif row["volume_ids"] and all(volume_id in earlier for volume_id in row["volume_ids"]):
            outcomes[scan.source] = IntakeOutcome(tuple(earlier[volume_id] for volume_id in row["volume_ids"]))
    return outcomes


def tables(
    found: Survey,
    outcomes: Mapping[str, IntakeOutcome],
    earlier: Mapping[str, CatalogueRow],
    known: Mapping[str, Mapping[str, Any]],
    identity: Identity,
    settings: ArchiveSettings,
) -> tuple[list[CatalogueRow], list[CatalogueRow], list[FailureRow]]:
    """Catalogue rows, those of earlier files that are gone, and failure rows, each by source."""
    rows: list[CatalogueRow] = []
    failures: list[FailureRow] = [
        {"source": identity.source(file.source), "reason": file.reason} for file in found.aside
    ]
    first: dict[str, CatalogueRow] = {}
    readable = set()
    for scan in found.scans:
        outcome = outcomes[scan.source]
        source = identity.source(scan.name, scan.source)
        if outcome.reason:
            failures.append({"source": source, "reason": outcome.reason})
        else:
            readable |= {source, scan.name}
        subject = identity.subject(subject_of(scan, settings.subject_pattern))
        for record in outcome.records:
            row: CatalogueRow = {**record, "subject_id": subject, "source": source, "source_bytes": scan.num_bytes}
            original = first.setdefault(row["voxel_fingerprint"], row)
            if original is row:
                rows.append(row)
            else:
                failures.append({"source": source, "reason": f"same voxels as {original['source']}"})
    # Also of a file that is there and cannot be read any more: half a copy must not cost the whole one.
    names = {row["source"]: row["name"] for row in known.values()}
    gone = [row for row in earlier.values() if not readable & {row["source"], names.get(row["source"])}]
    removed = [row for row in gone if row["voxel_fingerprint"] not in first]
    return rows, removed, sorted(failures, key=lambda failure: (failure["source"], failure["reason"]))


def remove_others(volumes: Place, rows: Sequence[CatalogueRow]) -> None:
    """Remove what the catalogue does not have: duplicates, superseded, pruned and half-written volumes.

    None is another job's, as the stage is claimed; some may be those of an ingest that was killed.
    """
    kept = {volume_folder(volumes, row["volume_id"]).name for row in rows}
    for folder in volumes.glob("*.ome.zarr*"):
        if folder.name not in kept:
            remove_tree(folder)


def remember(
    workspace: Workspace,
    scans: Path,
    found: Survey,
    headers: Mapping[File, Header],
    outcomes: Mapping[str, IntakeOutcome],
    identity: Identity,
    catalogue: Sequence[CatalogueRow],
    known: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the private tables: every file of the folder, and those that are gone and whose volumes stay."""
    kept = {row["voxel_fingerprint"]: row["volume_id"] for row in catalogue}
    rows: list[Mapping[str, Any]] = [
        {
            "source": identity.source(scan.name, scan.source), "path": scan.source, "name": scan.name,
            "stamp": stamp_of(scan),
            # Of a duplicate the volume that stays.
            "volume_ids": [kept[record["voxel_fingerprint"]] for record in outcomes[scan.source].records],
            "reason": outcomes[scan.source].reason, "is_lasting": outcomes[scan.source].is_lasting,
        }
        for scan in found.scans
    ]  # fmt: skip
    rows += [
        {
            "source": identity.source(file.source), "path": file.source, "name": file.source, "stamp": "",
            "volume_ids": [], "reason": file.reason, "is_lasting": True,
        }
        for file in found.aside
    ]  # fmt: skip
    present, ids = {row["path"] for row in rows}, {row["volume_id"] for row in catalogue}
    rows += [row for path, row in known.items() if path not in present and ids & set(row["volume_ids"])]
    make_private(workspace.private)
    write_sources(workspace.private, rows)
    write_headers(workspace.private, headers)
    publish(workspace.private / FOLDER_NOTE, lambda aside: aside.write_text(str(scans.resolve())))
