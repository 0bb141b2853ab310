"""What a pattern store holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raygenesis.archive.inspection import failure_lines
from raygenesis.patterns.reader import StoreArtifact, store_manifest
from raygenesis.text.amounts import size
from raygenesis.workspace.artifacts import PATTERNS
from raygenesis.workspace.failures import read_failures
from raygenesis.workspace.manifest import StoreCounts
from raygenesis.workspace.workspace import Workspace


@dataclass(frozen=True)
class StoreFacts:
    """What `patterns info` counts.

    counts: of the manifest. extents_mm: of each scale. raw_bytes, stored_bytes: of the cubes, and of the files.
    seconds: that writing took. failures: by reason, the most frequent first.
    """

    counts: StoreCounts
    cube_shape: tuple[int, ...]
    extents_mm: tuple[tuple[float, ...], ...]
    raw_bytes: int
    stored_bytes: int
    seconds: float
    failures: Mapping[str, int]


def store_facts(workspace: Workspace, store: StoreArtifact = PATTERNS) -> StoreFacts:
    """Count what a store holds; arguments and errors are those of `info`."""
    folder = workspace.folder(store)
    manifest = store_manifest(folder)
    reasons = Counter(row["reason"] for row in read_failures(folder))
    extents = tuple(tuple(scale["extent_mm"]) for scale in manifest.settings["discovery"]["scales"])
    return StoreFacts(
        manifest.counts, tuple(manifest.cube_shape), extents, manifest.raw_bytes, manifest.bytes, manifest.seconds,
        dict(reasons.most_common()),
    )  # fmt: skip


def info(workspace: Workspace, store: StoreArtifact = PATTERNS) -> list[str]:
    """Lines that say what a store holds: counts, classes, scales, bytes, speed of writing, failures by reason.

    store: PATTERNS or CROPS of the table of artifacts. Raises WorkspaceError where it is not there.
    """
    folder = workspace.folder(store)
    manifest = store_manifest(folder)
    counts, raw, stored = manifest.counts, manifest.raw_bytes, manifest.bytes
    seconds = max(manifest.seconds, 1e-3)
    scales = manifest.settings["discovery"]["scales"]
    classes = (
        f"{counts.references * counts.coordinates} classes: {counts.references} references × "
        f"{counts.coordinates} coordinates; {counts.neighbours} neighbours"
    )
    if not counts.references:
        classes = f"no classes: {counts.coordinates} random crops a scan, {counts.neighbours} training scans"
    lines = [
        f"{counts.patterns} patterns: {counts.patterns - counts.validation} training, {counts.validation} validation",
        classes,
        f"{len(scales)} scales: " + ", ".join(f"{_sides(scale['extent_mm'])} mm" for scale in scales),
        f"cubes of {_sides(manifest.cube_shape)}, {manifest.cube_dtype} in {manifest.cube_steps} steps",
        f"{counts.volumes} volumes, {counts.parts} parts",
        f"{size(raw)} raw, {size(stored)} on disk, {raw / max(stored, 1):.2f} to 1",
        f"{manifest.seconds:.1f} s: {counts.patterns / seconds:.1f} patterns/s, {size(raw / seconds)}/s raw",
        f"{counts.failures} failures",
    ]
    return lines + failure_lines(workspace, read_failures(folder))


def _sides(sides: Sequence[float]) -> str:
    return "×".join(f"{side:g}" for side in sides)
