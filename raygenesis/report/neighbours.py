"""The section of neighbours: who is like the references, how alike their patterns are, and a map of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue
from raygenesis.discovery.cubes import origin_of, size_mm
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING
from raygenesis.report.artifact import Contents
from raygenesis.report.galleries import MOST_COLUMNS, draw_each, reference_row, split_of
from raygenesis.report.parts import Absent, ScanPictures, guarded
from raygenesis.report.pictures import CORONAL, Gallery, PatternBox, Picture, SliceSpec, plane_note, scan_picture
from raygenesis.settings import IntensitySettings
from raygenesis.settings.streams import MAPPED_SCANS
from raygenesis.text import charts
from raygenesis.text.charts import Chart, Labels
from raygenesis.workspace.artifacts import INDEX, PATTERNS
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import IndexManifest, PatternsManifest, Quality
from raygenesis.workspace.workspace import Workspace

MOST_MAPPED = 2000
BOX_COLUMNS = ("coordinate", "origin_mm", "extent_mm")

Vectors = Mapping[str, NDArray[np.float32]]  # embeddings by volume id


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings along their two principal axes. first_axis: share of the variance along the first one."""

    chart: Chart
    first_axis: float


@dataclass(frozen=True)
class NeighboursSection:
    """likeness: the chart of `quality`, where known. pictures: the reference and its neighbours, and other scans."""

    reference: str
    num_references: int
    num_neighbours: int
    index: IndexManifest
    quality: Quality | None
    likeness: Chart | None
    pictures: ScanPictures | Absent
    map: EmbeddingMap | Absent


def neighbours_section(contents: Contents, intensity: IntensitySettings) -> NeighboursSection:
    """Reference 0 with its nearest training scans beside others at random, as the paper's Fig. 4, and the map.

    What can be shown without the embeddings is shown without them.
    """
    workspace, manifest = contents.workspace, contents[PATTERNS].finished
    references = [reference.volume_id for reference in manifest.references]
    first = (pc.field("coordinate") == 0) & (pc.field("scale") == 0) & (pc.field("rank") > 0)
    columns = ("volume_id", "rank", "reference")
    found = read_patterns(workspace.patterns, columns, predicate(TRAINING) & first).sort_by("rank").to_pylist()
    nearest = [row["volume_id"] for row in found if row["reference"] == 0]
    near = {row["volume_id"] for row in found} - set(references)
    rest = sorted(set(split_of(workspace, manifest)[0]) - near - set(references))
    order = MAPPED_SCANS.generator(manifest.settings["seed"]).permutation(len(rest))[:MOST_MAPPED]
    wanted = [*references, *sorted(near)[:MOST_MAPPED], *nearest, *(rest[n] for n in order)]
    embedded = guarded(_vectors, workspace.embeddings, wanted)
    vectors: Vectors = {} if isinstance(embedded, Absent) else embedded
    others = [rest[n] for n in order if rest[n] in vectors or not vectors]
    return NeighboursSection(
        reference=references[0],
        num_references=len(references),
        num_neighbours=len(nearest),
        index=contents[INDEX].finished,
        quality=manifest.quality,
        likeness=_likeness(manifest.quality) if manifest.quality else None,
        pictures=guarded(_pictures, workspace, manifest, intensity, vectors, nearest, others),
        map=embedded if isinstance(embedded, Absent) else guarded(embedding_map, vectors, references, near),
    )


def _vectors(folder: Place, ids: Sequence[str]) -> Vectors:
    vectors = Embeddings(folder).of(ids)
    if not vectors:
        raise WorkspaceError(f"{folder} holds none of these scans: remove it and run `raygenesis embed`")
    return vectors


def _pictures(
    workspace: Workspace, manifest: PatternsManifest, intensity: IntensitySettings, vectors: Vectors,
    nearest: Sequence[str], others: Sequence[str],
) -> ScanPictures:  # fmt: skip
    """Two rows: the reference and its nearest scans, each with the box of one class, and others with that place."""
    reference = reference_row(workspace, manifest)["volume_id"]
    titles = {reference: "Reference"}
    titles |= {name: f"Rank {rank}" for rank, name in enumerate(nearest[: MOST_COLUMNS - 1], 1)}
    titles |= {name: f"Other {number}" for number, name in enumerate(others[:MOST_COLUMNS], 1)}
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, titles)}
    boxes = _boxes(workspace.patterns, rows[reference])

    def draw(row: CatalogueRow) -> Picture:
        name, title, box = row["volume_id"], titles[row["volume_id"]], boxes.get(row["volume_id"])
        known = name in vectors and reference in vectors
        apart = np.linalg.norm(vectors[name] - vectors[reference]) if known else 0
        if box is None and reference in boxes:  # no pattern was taken there: the same fraction of its sides
            box, extent = boxes[reference], np.array(boxes[reference].extent_mm)
            centre = _centre(box, rows[reference])
            box = replace(box, origin_mm=origin_of(centre * size_mm(row), extent, size_mm(row)).tolist())
        note = f"{title}{f', distance {apart:.1f}' if apart else ''}: {name}"
        alt = f"Slice of {title.lower()}, {name}{', with a box' if box else ''}"
        at_mm = box.origin_mm[CORONAL] + box.extent_mm[CORONAL] / 2 if box and len(row["shape"]) == 3 else None
        spec = SliceSpec(alt, note, at_mm=at_mm, boxes=[box] if box else [])
        return scan_picture(workspace.volumes, row, intensity, spec)

    lines = {"the reference\nand its neighbours": [reference, *nearest[: MOST_COLUMNS - 1]], "others": others}
    drawn: dict[str, list[Picture]] = {}
    damages = []
    for line, members in lines.items():
        pictures, damage = draw_each(draw, [rows[name] for name in members if name in rows and name in titles])
        drawn |= {line: pictures} if pictures else {}
        damages += [damage] if damage else []
    plane = plane_note(len(rows[reference]["shape"]))
    note = f"{plane}; distances are between embeddings. Boxes: patterns of one class, in others the same place"
    gallery = Gallery("Neighbours", list(drawn.values()), names=list(drawn), note=note) if drawn else None
    return ScanPictures(gallery, " ".join(damages))


def _boxes(folder: Place, reference: CatalogueRow) -> dict[str, PatternBox]:
    """Of each scan, the pattern of the coordinate that lies nearest to the middle of the reference."""
    where = predicate(TRAINING) & (pc.field("reference") == 0) & (pc.field("scale") == 0)
    own = read_patterns(folder, BOX_COLUMNS, where & (pc.field("rank") == 0)).to_pylist()
    if not own:
        return {}
    middle = min((PatternBox(**row) for row in own), key=lambda box: np.abs(_centre(box, reference) - 0.5).max())
    where &= (pc.field("coordinate") == middle.coordinate) & (pc.field("rank") < MOST_COLUMNS)
    near = read_patterns(folder, ("volume_id", *BOX_COLUMNS), where).to_pylist()
    return {row.pop("volume_id"): PatternBox(**row) for row in near} | {reference["volume_id"]: middle}


def _centre(box: PatternBox, row: CatalogueRow) -> NDArray[np.float64]:
    """The middle of a box as fractions of the sides of its scan."""
    centre: NDArray[np.float64] = (np.array(box.origin_mm) + np.array(box.extent_mm) / 2) / size_mm(row)
    return centre


def _likeness(quality: Quality) -> Chart:
    """How alike patients' patterns are to the reference's, by rank, and random patients' (the paper's Fig. 4)."""
    values = {"–".join(map(str, group.ranks)): group.values for group in quality.by_rank}
    if quality.random.num_patients:
        values["random"] = quality.random.values
    labels = Labels("Likeness to the reference's patterns", "patient's rank", "correlation")
    return charts.strip(labels, values, is_joined=True, dot="patient")


def embedding_map(vectors: Vectors, references: Sequence[str], near: set[str]) -> EmbeddingMap:
    """Embeddings along their two principal axes: those of references, of their neighbours and of others."""
    ids, values = list(vectors), np.stack(list(vectors.values())).astype(np.float64)
    fitted = PCA(min(2, *values.shape)).fit(values)
    places, share = (
        np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, 2 - array.shape[-1])])
        for array in (fitted.transform(values), np.nan_to_num(fitted.explained_variance_ratio_))
    )
    kind = np.array([2 if name in references else int(name in near) for name in ids])
    counts = np.bincount(kind, minlength=3)
    names = (f"others ({counts[0]})", f"neighbours ({counts[1]})", f"references ({counts[2]})")
    alt = f"Map of {len(ids)} embeddings in two dimensions: {', '.join(reversed(names))}."
    along = [f"principal axis {axis + 1} ({share[axis]:.0%} of the variance)" for axis in (0, 1)]
    groups = {name: places[kind == n] for n, name in enumerate(names)}
    labels = Labels("Embedding map of training scans", *along)
    return EmbeddingMap(charts.scatter(labels, alt, groups), float(share[0]))
