"""Scans into the archive as a Ray Data pipeline: scans found → volumes stored → parts of outcomes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import ray

from raygenesis.archive.intake.known_files import stamp_of
from raygenesis.archive.intake.outcomes import (
    IntakeOutcome,
    outcome_table,
    outcomes_in,
    publish_outcomes,
    read_parts_of_outcomes,
    settled,
)
from raygenesis.archive.intake.survey import Scan
from raygenesis.archive.intake.take_in import take_in
from raygenesis.cluster import fan_out, joining
from raygenesis.cluster.streams import RETRIED, PartSource, SourcePart, StreamProgress, read_parts, write_parts
from raygenesis.errors import PassingError, WorkspaceError
from raygenesis.settings import ArchiveSettings
from raygenesis.workspace.files import Place, make_folder, remove_tree
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.workspace import Workspace, make_private

# Scans are handed to Ray in blocks of at most so many, and of about so many bytes.
SCANS_PER_BLOCK, BYTES_PER_BLOCK = 16, 16 * 2**20

# Scans of more bytes of files, or of voxels as their headers claim, are large: a task reserves memory for them.
LARGE_FILES, LARGE_VOXELS = 64 * 2**20, 512 * 2**20

# Bytes of memory to decode and store one of voxels; and bytes of voxels that one of large files may hold unless its
# header says otherwise.
MEMORY_PER_VOXEL_BYTE, UNPACKED = 4, 2

# A scan to take in: its files, below the folder of scans, and their stamp.
SCANS = pa.schema([("files", pa.list_(pa.string())), ("stamp", pa.string())])


def take_in_all(
    root: Path, scans: Sequence[Scan], workspace: Workspace, settings: ArchiveSettings
) -> dict[str, IntakeOutcome]:
    """Take in scans below `root`; returns their outcomes by source.

    Raises WorkspaceError if they cannot be stored, PassingError where files below `root` cannot be reached for long.

    What an ingest with the same settings that was interrupted has taken in is not read again, until `forget_outcomes`.
    """
    if not scans:
        return {}
    joining.connect()
    try:
        make_folder(workspace.volumes)
    except OSError as error:
        raise WorkspaceError(f"{workspace.volumes} cannot be made: {error.strerror}") from None
    remove_tree(workspace.archive / "attempts")
    for half_written in workspace.volumes.glob(".*.ome.zarr.*"):
        remove_tree(half_written)
    make_private(workspace.private)
    folder = _outcomes_folder(workspace) / digest(settings.model_dump(mode="json"))
    make_folder(folder)
    there = settled(outcomes_in(read_parts_of_outcomes(folder), scans), workspace.volumes)
    left = [scan for scan in scans if scan.source not in there]
    publish = functools.partial(publish_outcomes, folder=folder)

    def run(some: Sequence[Scan], claimed: int | None) -> list[pa.Table]:
        if not some:
            return []
        source, memory = _source(some), None if claimed is None else _memory_for(claimed)
        take_in_some = functools.partial(
            take_in_block, root=root, volumes=workspace.volumes, settings=settings, room=claimed or LARGE_VOXELS
        )
        rows = read_parts(source).map_batches(
            take_in_some, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, memory=memory, **RETRIED
        )
        try:
            return write_parts(rows, publish, StreamProgress("ingest", "scans", source.num_rows, source.num_parts))
        except PassingError as error:
            raise PassingError(f"{root}: {error}") from error

    large = [scan for scan in left if scan.num_bytes > LARGE_FILES]
    written = run([scan for scan in left if scan.num_bytes <= LARGE_FILES], None)
    written += run(large, max([LARGE_VOXELS, *(UNPACKED * scan.num_bytes for scan in large)]))
    while claims := _claims(outcomes_in(written, left)):
        # Once; again for a series of packed slices, whose claim is known when there is room for its files.
        written += run([scan for scan in left if scan.source in claims], max(claims.values()))
    remove_tree(workspace.archive / "attempts")
    return there | outcomes_in(written, left)


def forget_outcomes(workspace: Workspace) -> None:
    """Remove what `take_in_all` keeps for an ingest that goes on: the archive's tables have it all now."""
    remove_tree(_outcomes_folder(workspace))


def _outcomes_folder(workspace: Workspace) -> Place:
    return workspace.private / "taken-in"  # reasons may name files


def _claims(outcomes: Mapping[str, IntakeOutcome]) -> dict[str, int]:
    """Bytes of voxels that the headers of scans claim which were put off, by source."""
    return {source: outcome.claimed_bytes for source, outcome in outcomes.items() if outcome.claimed_bytes}


def _memory_for(claimed: int) -> float:
    """Bytes of memory that a task reserves for scans that claim so many bytes of voxels, or most of the largest node.

    With most of a node reserved a task runs alone there: if it is killed for want of memory, none is beside it.
    """
    most = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    return min(MEMORY_PER_VOXEL_BYTE * claimed, 0.9 * most)


def _source(scans: Sequence[Scan]) -> PartSource:
    """Scans (schema SCANS) in parts of about equal bytes, small enough that every worker gets several."""
    most = min(BYTES_PER_BLOCK, sum(scan.num_bytes for scan in scans) // 16)
    blocks: list[list[Scan]] = []
    size = 0
    for scan in scans:
        if not blocks or size + scan.num_bytes > most or len(blocks[-1]) == SCANS_PER_BLOCK:
            blocks.append([])
            size = 0
        blocks[-1].append(scan)
        size += scan.num_bytes
    parts = []
    for block in blocks:
        files = [[file.path for file in scan.files] for scan in block]
        read = functools.partial(_scan_table, files, [stamp_of(scan) for scan in block])
        parts.append(SourcePart(read, len(block), sum(len(path) for paths in files for path in paths)))
    return PartSource(parts, SCANS)


def _scan_table(files: Sequence[Sequence[str]], stamps: Sequence[str]) -> pa.Table:
    return pa.table({"files": files, "stamp": stamps}, SCANS)


def take_in_block(block: pa.Table, root: Path, volumes: Place, settings: ArchiveSettings, room: int) -> pa.Table:
    """Store the scans of one part (schema SCANS) below `volumes`; returns their outcomes (schema OUTCOMES).

    room: bytes of voxels that may be decoded at once.
    """
    node = ray.get_runtime_context().get_node_id()
    outcomes = [
        take_in([root / path for path in files], volumes, settings, node, fan_out.is_lost, room)
        for files in block["files"].to_pylist()
    ]
    return outcome_table(block["stamp"].to_pylist(), outcomes)
