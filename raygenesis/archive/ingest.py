"""Ingest: scan files → OME-Zarr volumes, the catalogue and the failures table, through Ray Data."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from raygenesis import cluster
from raygenesis.archive.catalogue import CATALOGUE, FAILURES, read_catalogue, subject_of
from raygenesis.archive.intensity import percentiles
from raygenesis.archive.readers import ScanFile, find_scans, read_volume
from raygenesis.archive.store import level_factors, read_record, write_volume
from raygenesis.config import ArchiveSettings, Settings
from raygenesis.errors import ScanError, SettingsError, WorkspaceError
from raygenesis.progress import mib, progress, say
from raygenesis.workspace import Stage, Stopwatch, Workspace, digest, read_json, write_table

SCANS_PER_BLOCK = 4


def ingest(scans: Path, workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Bring every scan below `scans` into the archive; returns the manifest.

    Scans already there are not decoded again; new ones are added. A scan that cannot be read becomes a row of
    `failures.parquet`. Raises ScanError if nothing at all can be read, WorkspaceError if nothing can be stored.
    """
    files = find_scans(scans)
    _check_subject_pattern(files, settings.archive.subject_pattern)
    stage = Stage(workspace.archive, {"ndim": settings.ndim, "archive": settings.archive.model_dump(mode="json")}, {})
    listing = listing_of(files)
    if stage.is_finished():
        manifest = read_json(workspace.archive / "manifest.json")
        if manifest is not None and manifest.get("listing") == listing:
            say("ingest", f"nothing to do: all {len(files)} scans are in {workspace.archive}")
            return manifest
    watch = Stopwatch()
    stage.start()
    rows, failures = _ingest_files(scans.resolve(), files, workspace, settings)
    rows, repeated = _without_duplicates(rows)
    failures += repeated
    removed = _rows_of_removed_files(workspace, files, rows)
    failures.sort(key=lambda failure: failure["source"])
    write_table(workspace.archive / "failures.parquet", pa.Table.from_pylist(failures, FAILURES))
    if not rows:
        raise ScanError(
            f"none of the {len(files)} scans in {scans} can be read; the first: "
            f"{failures[0]['source']}: {failures[0]['reason']}"
        )
    rows = sorted(rows + removed, key=lambda row: row["volume_id"])
    write_table(workspace.catalog, pa.Table.from_pylist(rows, CATALOGUE))
    subjects = len({row["subject_id"] for row in rows})
    counts = {"scans": len(files), "volumes": len(rows), "subjects": subjects, "failures": len(failures)}
    manifest = stage.finish(
        counts, watch.seconds, content=[[row["volume_id"], row["subject_id"]] for row in rows],
        listing=listing, source_bytes=sum(file.num_bytes for file in files),
    )
    _summarise(manifest, failures, removed, workspace)
    return manifest


def listing_of(files: list[ScanFile]) -> str:
    """Identity of a folder's scans: their paths, sizes and modification times."""
    return digest([asdict(file) for file in files])


def _check_subject_pattern(files: list[ScanFile], pattern: str | None) -> None:
    """Raise SettingsError if the pattern finds a subject in no path; say how many paths it passes by."""
    if pattern is None:
        return
    passed_by = [file.source for file in files if not re.search(pattern, file.source)]
    if len(passed_by) == len(files):
        raise SettingsError(
            f"archive.subject_pattern={pattern!r} matches none of the {len(files)} paths, the first {passed_by[0]}: "
            "correct it, or leave it out for one subject a file"
        )
    if passed_by:
        say("ingest", f"archive.subject_pattern matches all paths but {len(passed_by)}, the first {passed_by[0]}")


def _ingest_files(
    root: Path, files: list[ScanFile], workspace: Workspace, settings: Settings
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    cluster.connect()
    workspace.volumes.mkdir(parents=True, exist_ok=True)
    for half_written in workspace.volumes.glob(".*.ome.zarr.*"):
        shutil.rmtree(half_written)
    num_blocks = -(-len(files) // SCANS_PER_BLOCK)
    arguments = {"root": root, "volumes": workspace.volumes, "settings": settings.archive, "ndim": settings.ndim}
    dataset = ray.data.from_items([asdict(file) for file in files], override_num_blocks=num_blocks).map(
        ingest_scan, fn_kwargs=arguments
    )
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    with progress("ingest", len(files), "scans") as ticker:
        for outcome in dataset.iter_rows():
            if outcome["fault"]:
                raise WorkspaceError(outcome["fault"])
            if outcome["reason"]:
                failures.append({"source": outcome["source"], "reason": outcome["reason"]})
            else:
                rows.append(json.loads(outcome["row"]))
            ticker.advance(note=f"{len(failures)} failed")
    return rows, failures


def ingest_scan(
    file: dict[str, Any], root: Path, volumes: Path, settings: ArchiveSettings, ndim: int
) -> dict[str, str]:
    """Store one scan; returns its source and one of three.

    row: its catalogue row as JSON; reason: why this scan cannot be read; fault: why no scan can be stored.
    """
    outcome = {"source": file["source"], "row": "", "reason": "", "fault": ""}
    path = root / file["source"]
    try:
        volume_id = file_fingerprint(path)
        folder = volumes / f"{volume_id}.ome.zarr"
        record = read_record(folder)
        if record is None:
            record = _store(path, folder, volume_id, settings, ndim)
    except ScanError as error:
        return {**outcome, "reason": str(error)}
    except WorkspaceError as error:
        return {**outcome, "fault": str(error)}
    except MemoryError:
        return {**outcome, "reason": "its voxels do not fit in memory"}
    except OSError as error:
        return {**outcome, "reason": f"cannot be read ({error.strerror or error})"}
    row = {
        **record,
        "subject_id": subject_of(file["source"], settings.subject_pattern),
        "source": file["source"],
        "source_bytes": file["num_bytes"],
        "source_mtime_ns": file["mtime_ns"],
    }
    return {**outcome, "row": json.dumps(row)}


def _store(path: Path, folder: Path, volume_id: str, settings: ArchiveSettings, ndim: int) -> dict[str, Any]:
    volume = read_volume(path, ndim)
    low, high = percentiles(volume.voxels)
    voxels = volume.voxels
    fingerprint = hashlib.blake2b(f"{voxels.dtype.str}{voxels.shape}".encode(), digest_size=16)
    fingerprint.update(voxels.tobytes())
    record = {
        "volume_id": volume_id,
        "shape": list(voxels.shape),
        "spacing_mm": list(volume.spacing_mm),
        "affine": volume.affine.ravel().tolist(),
        "dtype": voxels.dtype.name,
        "slope": volume.slope,
        "intercept": volume.intercept,
        "low": low,
        "high": high,
        "levels": [list(factor) for factor in level_factors(voxels.shape, settings.coarse_size)],
        "voxel_fingerprint": fingerprint.hexdigest(),
    }
    return {**record, "stored_bytes": write_volume(folder, volume, record, settings)}


def file_fingerprint(path: Path) -> str:
    """Hash of a scan file's bytes: its volume id."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _without_duplicates(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Of scans with the same voxels the first by path stays; the others become failures that name it."""
    first: dict[str, dict[str, Any]] = {}
    repeated = []
    for row in sorted(rows, key=lambda row: row["source"]):
        original = first.setdefault(row["voxel_fingerprint"], row)
        if original is not row:
            repeated.append({"source": row["source"], "reason": f"same voxels as {original['source']}"})
    return list(first.values()), repeated


def _rows_of_removed_files(
    workspace: Workspace, files: list[ScanFile], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Catalogue rows of an earlier ingest whose files are gone, not just renamed; their volumes stay."""
    if not workspace.catalog.is_file():
        return []
    present = {file.source for file in files}
    known = {row["voxel_fingerprint"] for row in rows}
    return [
        row
        for row in read_catalogue(workspace.catalog)
        if row["source"] not in present and row["voxel_fingerprint"] not in known
    ]


def _summarise(
    manifest: dict[str, Any], failures: list[dict[str, str]], removed: list[dict[str, Any]], workspace: Workspace
) -> None:
    counts = manifest["counts"]
    if removed:
        say("ingest", f"{len(removed)} volumes stay whose files are no longer in the scans folder")
    for failure in failures[:5]:
        say("ingest", f"skipped {failure['source']}: {failure['reason']}")
    if len(failures) > 5:
        say("ingest", f"and {len(failures) - 5} more, all in {workspace.archive / 'failures.parquet'}")
    say(
        "ingest",
        f"{counts['volumes']} volumes of {counts['subjects']} subjects, {counts['failures']} failures, "
        f"{mib(manifest['source_bytes'])} read, {mib(manifest['bytes'])} stored, {manifest['seconds']:.1f} s "
        f"→ {workspace.archive}",
    )


def read_failures(workspace: Workspace) -> list[dict[str, str]]:
    """Rows of the archive's failures table."""
    return pq.read_table(workspace.archive / "failures.parquet", schema=FAILURES).to_pylist()
