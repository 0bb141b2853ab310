"""The section of neighbours: who is like the references, how alike their patterns are, and a map of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from raygenesis.archive.catalogue import read_catalogue
from raygenesis.discovery.cubes import origin_of, size_mm
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING
from raygenesis.report import charts
from raygenesis.report.artifact import Contents, Row, finished, guarded
from raygenesis.report.charts import Chart
from raygenesis.report.galleries import MOST_COLUMNS, drawn_of, reference_row
from raygenesis.report.pictures import CORONAL, Gallery, Picture, plane_words, scan_picture
from raygenesis.report.sections import intensity_of, split_of
from raygenesis.settings import Settings
from raygenesis.workspace.artifacts import INDEX, PATTERNS
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import Quality

MOST_MAPPED = 2000


def neighbours(contents: Contents, settings: Settings) -> dict[str, Any]:
    """Reference 0 with its nearest training scans beside others at random, as the paper's Fig. 4, and the map.

    What can be shown without the embeddings is shown without them.
    """
    workspace, manifest = contents.workspace, finished(contents[PATTERNS])
    references = [reference.volume_id for reference in manifest.references]
    first = (pc.field("coordinate") == 0) & (pc.field("scale") == 0) & (pc.field("rank") > 0)
    columns = ("volume_id", "rank", "reference")
    found = read_patterns(workspace.patterns, columns, predicate(TRAINING) & first).sort_by("rank").to_pylist()
    nearest = [row["volume_id"] for row in found if row["reference"] == 0]
    near = set(row["volume_id"] for row in found) - set(references)
    rest = sorted(set(split_of(workspace, manifest)[0]) - near - set(references))
    order = np.random.default_rng(manifest.settings["seed"]).permutation(len(rest))[:MOST_MAPPED]
    wanted = [*references, *sorted(near)[:MOST_MAPPED], *nearest, *(rest[n] for n in order)]
    embedded = guarded(_vectors, workspace.embeddings, wanted)
    vectors = embedded.pop("vectors", {})
    others = [rest[n] for n in order if rest[n] in vectors or not vectors]
    return {
        "shown": guarded(_shown, contents, settings, vectors, nearest, others),
        "map": embedded or guarded(_map, vectors, references, near),
        "index": finished(contents[INDEX]), "num_neighbours": len(nearest), "quality": manifest.quality,
        "likeness": _likeness(manifest.quality) if manifest.quality else None,
        "reference": references[0], "num_references": len(references),
    }  # fmt: skip


def _vectors(folder: Place, ids: Sequence[str]) -> dict[str, Any]:
    vectors = Embeddings(folder).of(ids)
    if not vectors:
        raise WorkspaceError(f"{folder} holds none of these scans: remove it and run `raygenesis embed`")
    return {"vectors": vectors}


def _map(vectors: Mapping[str, NDArray[np.float32]], references: Sequence[str], near: set[str]) -> dict[str, Any]:
    chart, share = embedding_map(vectors, references, near)
    return {"chart": chart, "first_axis": share}


def _shown(
    contents: Contents, settings: Settings, vectors: Mapping[str, NDArray[np.float32]],
    nearest: Sequence[str], others: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Two rows: the reference and its nearest scans, each with the box of one class, and others with that place."""
    workspace = contents.workspace
    reference = reference_row(workspace, finished(contents[PATTERNS]))["volume_id"]
    titles = {reference: "Reference"}
    titles |= {name: f"Rank {rank}" for rank, name in enumerate(nearest[: MOST_COLUMNS - 1], 1)}
    titles |= {name: f"Other {number}" for number, name in enumerate(others[:MOST_COLUMNS], 1)}
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, titles)}
    boxes = _boxes(workspace.patterns, rows, reference)

    def draw(row: Row) -> Picture:
        name, title, box = row["volume_id"], titles[row["volume_id"]], boxes.get(row["volume_id"])
        known = name in vectors and reference in vectors
        apart = np.linalg.norm(vectors[name] - vectors[reference]) if known else 0
        if box is None and reference in boxes:  # no pattern was taken there: the same fraction of its sides
            centre, extent = (np.array(boxes[reference][key]) for key in ("centre", "extent_mm"))
            box = {**boxes[reference], "origin_mm": origin_of(centre * size_mm(row), extent, size_mm(row))}
        note = f"{title}{f', distance {apart:.1f}' if apart else ''}: {name}"
        alt = f"Slice of {title.lower()}, {name}{', with a box' if box else ''}"
        at = box["origin_mm"][CORONAL] + box["extent_mm"][CORONAL] / 2 if box and len(row["shape"]) == 3 else None
        about = (alt, note, CORONAL, [box] if box else [], at)
        return scan_picture(workspace.volumes, row, intensity_of(contents, settings), *about)

    lines = {"the reference\nand its neighbours": [reference, *nearest[: MOST_COLUMNS - 1]], "others": others}
    drawn: dict[str, list[Picture]] = {}
    faults = []
    for line, members in lines.items():
        pictures, fault = drawn_of(draw, [rows[name] for name in members if name in rows and name in titles])
        drawn |= {line: pictures} if pictures else {}
        faults += [fault] if fault else []
    plane = plane_words(len(rows[reference]["shape"]))
    note = f"{plane}; distances are between embeddings. Boxes: patterns of one class, in others the same place"
    gallery = Gallery("Neighbours", list(drawn.values()), names=list(drawn), note=note) if drawn else None
    return {"gallery": gallery, "lacking": " ".join(faults)}


def _boxes(folder: Place, rows: Mapping[str, Row], reference: str) -> dict[str, Row]:
    """Of each scan, the pattern of the coordinate that lies nearest to the middle of the reference."""
    where = (pc.field("reference") == 0) & (pc.field("scale") == 0)
    columns = ("coordinate", "rank", "volume_id", "origin_mm", "extent_mm")
    mine = read_patterns(folder, columns, predicate(TRAINING) & where & (pc.field("rank") == 0)).to_pylist()
    size = size_mm(rows[reference])
    for box in mine:
        box["centre"] = (np.array(box["origin_mm"]) + np.array(box["extent_mm"]) / 2) / size
    if not mine:
        return {}
    middle = min(mine, key=lambda box: np.abs(box["centre"] - 0.5).max())
    where &= (pc.field("coordinate") == middle["coordinate"]) & (pc.field("rank") < MOST_COLUMNS)
    theirs = read_patterns(folder, columns, predicate(TRAINING) & where).to_pylist()
    return {box["volume_id"]: box for box in theirs} | {reference: middle}


def _likeness(quality: Quality) -> Chart:
    """How alike patients' patterns are to the reference's, by rank, and random patients' (the paper's Fig. 4)."""
    dots = {"–".join(map(str, group.ranks)): group.values for group in quality.by_rank}
    if quality.random.num_patients:
        dots["random"] = quality.random.values
    title = "Likeness to the reference's patterns"
    return charts.strip(title, "patient's rank", "correlation", dots, joined=True, dot="patient")


def embedding_map(
    vectors: Mapping[str, NDArray[np.float32]], references: Sequence[str], near: set[str]
) -> tuple[Chart, float]:
    """Embeddings along their two principal axes, and the first one's share of the variance."""
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
    labels = [f"principal axis {axis + 1} ({share[axis]:.0%} of the variance)" for axis in (0, 1)]
    groups = {name: places[kind == n] for n, name in enumerate(names)}
    return charts.scatter("Embedding map of training scans", alt, groups, labels), float(share[0])
