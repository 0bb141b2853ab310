"""The section of the patterns: the classes, how alike their cubes are, and where they lie in the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.discovery.quality import correlations
from raygenesis.patterns.cells import decode
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.report import galleries
from raygenesis.report.artifact import ArtifactView
from raygenesis.report.parts import Absent, guarded
from raygenesis.report.pictures import Gallery, plane_note
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import PatternsManifest
from raygenesis.workspace.workspace import Workspace

MOST_SCANS_COMPARED = 12
UNIFORM = 0.05  # a cube with a smaller standard deviation shows next to nothing


@dataclass(frozen=True)
class Similarity:
    """Mean Pearson correlations of scans' cubes with the references' of the same class, and of other classes.

    split: of the scans. by_class: `within` of each class. uniform: share of the cubes that show next to nothing.
    """

    split: str
    num_scans: int
    num_classes: int
    within: float
    between: float
    by_class: Mapping[int, float]
    uniform: float


@dataclass(frozen=True)
class PatternsSection:
    """labels: of the classes in the gallery. planes: the reference with the boxes of its coordinates."""

    manifest: PatternsManifest
    labels: Sequence[int]
    gallery: Gallery | None
    similarity: Similarity | None
    planes: Gallery | Absent


def patterns_section(workspace: Workspace, view: ArtifactView[PatternsManifest]) -> PatternsSection:
    """The classes, how alike their cubes are, and where they lie in the reference."""
    manifest = view.finished
    rows = galleries.classes(workspace.patterns, manifest.cube_shape)
    columns = [picture.note for picture in max(rows.values(), key=len, default=())]
    note = f"{plane_note(len(manifest.cube_shape), 'Coronal mid-slices of the cubes')}; ranks are of training scans"
    names = [f"class {label}" for label in rows]
    return PatternsSection(
        manifest=manifest,
        labels=list(rows),
        gallery=Gallery("Patterns by class", list(rows.values()), columns, names, note) if rows else None,
        similarity=_similarity(workspace.patterns, manifest.cube_shape),
        planes=guarded(galleries.coordinate_boxes, workspace, manifest),
    )


def _similarity(folder: Place, cube_shape: tuple[int, ...]) -> Similarity | None:
    """How scans' cubes correlate with the references' (`discovery.quality`).

    Of held-out scans, where there are any, which were not searched for among all that are like the reference; else of
    the nearest neighbours.
    """
    classes = (pc.field("label") < galleries.MOST_CLASSES) & (pc.field("scale") == 0)

    def read(where: Any) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        table = read_patterns(folder, ("label", "volume_id", "cube"), where & classes)
        cubes = [decode(cell, cube_shape).ravel() for cell in table["cube"].to_pylist()]
        return table["label"].to_numpy(), np.array(cubes), pc.count_distinct(table["volume_id"]).as_py()

    of_anchors, anchors, _ = read(predicate(TRAINING, 1))
    for split in (VALIDATION, TRAINING):
        ranks = pc.field("rank") < MOST_SCANS_COMPARED
        labels, cubes, num_scans = read(
            predicate(split) & ranks & ((pc.field("rank") > 0) | (pc.field("split") == VALIDATION))
        )
        same = of_anchors[:, None] == labels
        if same.any() and not same.all():
            correlation = correlations(anchors, cubes)
            by_class = {int(label): correlation[same & (labels == label)] for label in of_anchors}
            return Similarity(
                split, num_scans, len(by_class), float(correlation[same].mean()), float(correlation[~same].mean()),
                {label: float(pairs.mean()) for label, pairs in by_class.items() if len(pairs)},
                float((cubes.std(1) < UNIFORM).mean()),
            )  # fmt: skip
    return None
