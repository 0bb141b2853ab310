"""An archive that grows: what earlier ingests know of a folder, and what becomes of their volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue
from raygenesis.archive.intake.identity import Identity, subject_of
from raygenesis.archive.intake.known_files import KnownFile, read_known_files, read_scans_folder, stamp_of
from raygenesis.archive.intake.outcomes import IntakeOutcome
from raygenesis.archive.intake.survey import Scan, Survey
from raygenesis.archive.store import volume_folder
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.failures import FailureRow
from raygenesis.workspace.files import Place, remove_tree
from raygenesis.workspace.workspace import Workspace


@dataclass(frozen=True)
class EarlierIngests:
    """What earlier ingests of a workspace left.

    rows: those of the catalogue whose volumes are still there, by volume id. files: the private table of files, by
    path.
    """

    rows: Mapping[str, CatalogueRow]
    files: Mapping[str, KnownFile]

    @classmethod
    def read(cls, workspace: Workspace) -> EarlierIngests:
        # Whoever removes the archive may give other settings, by which what was refused is no longer.
        files = read_known_files(workspace.private) if workspace.catalog.is_file() else {}
        return cls(_stored_rows(workspace), files)


def _stored_rows(workspace: Workspace) -> dict[str, CatalogueRow]:
    if not workspace.catalog.is_file() or not workspace.volumes.is_dir():
        return {}
    stored = {folder.name for folder in workspace.volumes.iterdir()}
    rows = read_catalogue(workspace.catalog)
    there = (row for row in rows if volume_folder(workspace.volumes, row["volume_id"]).name in stored)
    return {row["volume_id"]: row for row in there}


def check_same_folder(scans: Path, found: Survey, earlier: EarlierIngests, workspace: Workspace) -> None:
    """Refuse another folder than the archive's, whose paths would be taken for the same files; it may have moved.

    Raises WorkspaceError.
    """
    folder = read_scans_folder(workspace.private)
    if not earlier.files or folder is None or folder == str(scans.resolve()):
        return
    stamps = {file["stamp"] for file in earlier.files.values()}
    if not any(stamp_of(scan) in stamps for scan in found.scans):
        raise WorkspaceError(
            f"{workspace.archive} was made from {folder}, and no scan in {scans} is one of that folder: give that "
            "folder, or choose another workspace"
        )


def known_outcomes(scans: Sequence[Scan], earlier: EarlierIngests) -> dict[str, IntakeOutcome]:
    """Outcomes, by source, of scans whose files have not changed since an earlier ingest stored or refused them."""
    outcomes = {}
    for scan in scans:
        file = earlier.files.get(scan.source)
        if file is None or file["stamp"] != stamp_of(scan):
            continue
        if file["reason"] and file["is_lasting"]:
            outcomes[scan.source] = IntakeOutcome(reason=file["reason"])
        elif file["volume_ids"] and all(volume_id in earlier.rows for volume_id in file["volume_ids"]):
            outcomes[scan.source] = IntakeOutcome(tuple(earlier.rows[volume_id] for volume_id in file["volume_ids"]))
    return outcomes


@dataclass(frozen=True)
class ArchiveTables:
    """What an ingest is to write: rows of the volumes of files that are there, rows of volumes whose files are gone or
    no longer readable, and failures in order of source."""

    rows: Sequence[CatalogueRow]
    gone: Sequence[CatalogueRow]
    failures: Sequence[FailureRow]


def archive_tables(
    found: Survey,
    outcomes: Mapping[str, IntakeOutcome],
    earlier: EarlierIngests,
    identity: Identity,
    subject_pattern: str | None,
) -> ArchiveTables:
    """The archive's tables from the outcome of every scan by source; of volumes of the same voxels the first stays."""
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
        subject = identity.subject(subject_of(scan, subject_pattern))
        for record in outcome.records:
            row: CatalogueRow = {**record, "subject_id": subject, "source": source, "source_bytes": scan.num_bytes}
            original = first.setdefault(row["voxel_fingerprint"], row)
            if original is row:
                rows.append(row)
            else:
                failures.append({"source": source, "reason": f"same voxels as {original['source']}"})
    # Also of a file that is there and cannot be read any more: half a copy must not cost the whole one.
    names = {file["source"]: file["name"] for file in earlier.files.values()}
    missing = (row for row in earlier.rows.values() if not readable & {row["source"], names.get(row["source"])})
    gone = [row for row in missing if row["voxel_fingerprint"] not in first]
    return ArchiveTables(rows, gone, sorted(failures, key=lambda failure: (failure["source"], failure["reason"])))


def remove_others(volumes: Place, rows: Sequence[CatalogueRow]) -> None:
    """Remove what the catalogue does not have: duplicates, superseded, pruned and half-written volumes.

    None is another job's, as the stage is claimed; some may be those of an ingest that was killed.
    """
    kept = {volume_folder(volumes, row["volume_id"]).name for row in rows}
    for folder in volumes.glob("*.ome.zarr*"):
        if folder.name not in kept:
            remove_tree(folder)


def files_to_know(
    found: Survey,
    outcomes: Mapping[str, IntakeOutcome],
    identity: Identity,
    catalogue: Sequence[CatalogueRow],
    earlier: EarlierIngests,
) -> list[KnownFile]:
    """What the next ingest is to know: every file of the folder, and those that are gone and whose volumes stay."""
    kept = {row["voxel_fingerprint"]: row["volume_id"] for row in catalogue}
    files: list[KnownFile] = [
        {
            "source": identity.source(scan.name, scan.source), "path": scan.source, "name": scan.name,
            "stamp": stamp_of(scan),
            # Of a duplicate the volume that stays.
            "volume_ids": [kept[record["voxel_fingerprint"]] for record in outcomes[scan.source].records],
            "reason": outcomes[scan.source].reason, "is_lasting": outcomes[scan.source].is_lasting,
        }
        for scan in found.scans
    ]  # fmt: skip
    files += [
        {
            "source": identity.source(file.source), "path": file.source, "name": file.source, "stamp": "",
            "volume_ids": [], "reason": file.reason, "is_lasting": True,
        }
        for file in found.aside
    ]  # fmt: skip
    present, ids = {file["path"] for file in files}, {row["volume_id"] for row in catalogue}
    files += [file for path, file in earlier.files.items() if path not in present and ids & set(file["volume_ids"])]
    return files
