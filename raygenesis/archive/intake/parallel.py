"""Scans into the archive in parallel, through Ray Data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from raygenesis.archive.intake.survey import Scan
from raygenesis.archive.intake.take_in import IntakeOutcome, take_in
from raygenesis.cluster import fan_out, joining
from raygenesis.cluster.progress import progress
from raygenesis.errors import WorkspaceError
from raygenesis.settings import ArchiveSettings
from raygenesis.workspace.files import Place, remove_tree
from raygenesis.workspace.workspace import Workspace

# Scans are handed to Ray in blocks of at most so many, and of about so many bytes.
SCANS_PER_BLOCK, BYTES_PER_BLOCK = 16, 16 * 2**20

# Files of more bytes are large; a byte of them may need so many of memory, unpacked and turned into canonical axes.
LARGE_BYTES, MEMORY_PER_BYTE = 64 * 2**20, 8


def take_in_all(
    root: Path, scans: Sequence[Scan], workspace: Workspace, settings: ArchiveSettings
) -> dict[str, IntakeOutcome]:
    """Take in scans below `root`; returns their outcomes by source. Raises WorkspaceError if they cannot be stored."""
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
            outcome = IntakeOutcome.from_json(row["outcome"])
            if outcome.fault:
                raise WorkspaceError(outcome.fault)
            outcomes[row["source"]] = outcome
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


def _blocks(scans: Sequence[Scan]) -> list[dict[str, list[list[str]]]]:
    """Paths of scans in blocks of about equal bytes, small enough that every worker gets several."""
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
    block: Mapping[str, Sequence[Sequence[str]]], root: Path, volumes: Place, settings: ArchiveSettings
) -> Iterator[dict[str, str]]:
    """Outcomes, as JSON, of the scans of one block, each with its source."""
    node = ray.get_runtime_context().get_node_id()
    for files in block["scans"]:
        outcome = take_in([root / path for path in files], volumes, settings, node, fan_out.is_lost)
        yield {"source": str(files[0]), "outcome": outcome.to_json()}
