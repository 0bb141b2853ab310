"""What each section of the page tells, gathered from the artifacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.archive.catalogue import read_catalogue, read_columns, split_by_subject
from raygenesis.cluster.job import is_own, jobs_folder
from raygenesis.discovery.quality import correlations
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.cells import decode
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.report import charts, galleries
from raygenesis.report.artifact import ArtifactView, Contents, Row, column, finished, guarded, history_of
from raygenesis.report.charts import Line
from raygenesis.report.pictures import Gallery, plane_words
from raygenesis.settings import IntensitySettings, PriceSettings, Settings
from raygenesis.text.amounts import duration
from raygenesis.workspace.artifacts import AUTOENCODER, PATTERNS
from raygenesis.workspace.failures import alike, every_failure, grouped
from raygenesis.workspace.files import Place, read_json
from raygenesis.workspace.manifest import AutoencoderManifest, Manifest, PatternsManifest
from raygenesis.workspace.workspace import Workspace

MOST_FAILURES = 50
MOST_JOBS = 20
MOST_SCANS, MOST_HELD_OUT = 16, 4
MOST_SCANS_COMPARED = 12
UNIFORM = 0.05  # a cube with a smaller standard deviation shows next to nothing


def archive(contents: Contents, settings: Settings) -> dict[str, Any]:
    """Counts, modalities, corrections, ranges of shape and spacing, and a contact sheet."""
    workspace = contents.workspace
    facts = {"modality": "modality", "dtype": "stored as", "num_channels": "channels"}
    table = read_columns(workspace.catalog, ["volume_id", "subject_id", "shape", "spacing_mm", "corrections", *facts])
    ranges = []
    for ndim in (3, 2):
        members = table.filter(pc.equal(pc.list_value_length(table["shape"]), ndim))
        shapes, spacings = (np.array(members[name].to_pylist(), float) for name in ("shape", "spacing_mm"))
        for axis, voxels, step in zip("zyx"[-ndim:], shapes.T, spacings.T, strict=True) if len(members) else ():
            sizes = {"voxels": _range(voxels), "spacing in mm": _range(step), "size in mm": _range(voxels * step)}
            ranges.append({"axis": f"{axis} ({ndim}D)", **sizes})
    chosen = read_catalogue(workspace.catalog, _evenly(table["volume_id"].to_pylist(), MOST_SCANS))
    sheet, lacking = galleries.contact_sheet(workspace.volumes, chosen, intensity_of(contents, settings))
    corrections = pc.list_flatten(table["corrections"]).to_pylist()
    return {
        "volumes": table.num_rows, "subjects": pc.count_distinct(table["subject_id"]).as_py(),
        "facts": [{"fact": title, "volumes": _tally(table[key].to_pylist())} for key, title in facts.items()],
        "corrections": _tally(alike(text) for text in corrections),
        "ranges": ranges,
        "sheet": sheet, "lacking": lacking,
    }  # fmt: skip


def _tally(values: Iterable[Any]) -> str:
    return ", ".join(f"{value or 'not said'} ({count:,})" for value, count in Counter(values).most_common())


def failures(workspace: Workspace) -> dict[str, Any]:
    """Failures of all stages, those of one cause together, most frequent first."""
    found = [(stage, *group) for stage, rows in every_failure(workspace).items() for group in grouped(rows)]
    found.sort(key=lambda group: -len(group[2]))
    rows = [
        {"stage": stage, "scans": len(sources), "reason": reason, "for example": ", ".join(sources[:3])}
        for stage, reason, sources in found[:MOST_FAILURES]
    ]
    count = sum(len(sources) for _, _, sources in found)
    return {"rows": rows, "count": count, "reasons_left_out": len(found) - len(rows)}


def jobs(workspace: Workspace, prices: PriceSettings) -> dict[str, Any]:
    """The newest jobs with what they had of the cluster; of their records, which name files, only figures are shown."""
    paths: list[Place] = sorted(jobs_folder(workspace).glob("*.json"), key=lambda path: path.name, reverse=True)
    rows = []
    for path in paths[:MOST_JOBS]:
        try:
            job = read_json(path)
        except WorkspaceError:  # which `status` names
            continue
        assert job is not None
        started, updated = (datetime.fromisoformat(job[key]) for key in ("started", "updated"))
        times = {f"{what} time": _or_none(job[f"{what.lower()}_seconds"]) for what in ("core", "GPU")}
        state = "writes this page" if is_own(job) else job["state"]
        row = {"job": job["verb"], "state": state, "started": f"{started:%Y-%m-%d %H:%M}"}
        row |= {"took": duration((updated - started).total_seconds()), **times}
        cost = prices.of(job["core_seconds"], job["gpu_seconds"])
        if cost is not None:
            row["cost"] = cost
        rows.append(row)
    return {"rows": rows, "left_out": len(paths) - len(rows)}


def _or_none(seconds: float) -> str:
    return duration(seconds) if seconds else "–"


def autoencoder(contents: Contents, settings: Settings) -> dict[str, Any]:
    """The training curve, and held-out scans beside their reconstructions."""
    workspace, manifest = contents.workspace, finished(contents[AUTOENCODER])
    rows = read_catalogue(workspace.catalog, _evenly(split_of(workspace, manifest)[1], MOST_HELD_OUT))
    return {
        "manifest": manifest,
        "curve": guarded(_learning_curve, contents[AUTOENCODER]),
        "held_out": guarded(_reconstructed, workspace, rows, manifest),
    }


def _learning_curve(autoencoder: ArtifactView[AutoencoderManifest]) -> dict[str, Any]:
    history = history_of(autoencoder)
    lines = [Line("training", column(history, "train_loss")), Line("held out", column(history, "val_mse"))]
    title = "Mean squared error"
    return {"chart": charts.curves(title, title.lower(), "the auto-encoder", lines, least=0)}


def _reconstructed(workspace: Workspace, rows: Sequence[Row], manifest: AutoencoderManifest) -> dict[str, Any]:
    shown, lacking = galleries.reconstructions(workspace.autoencoder, workspace.volumes, rows, manifest)
    return {"gallery": shown, "lacking": lacking}


def patterns(contents: Contents, settings: Settings) -> dict[str, Any]:
    """The classes, how alike their cubes are, and where they lie in the reference."""
    workspace, manifest = contents.workspace, finished(contents[PATTERNS])
    rows = galleries.classes(workspace.patterns, manifest)
    columns = [shown.note for shown in max(rows.values(), key=len, default=())]
    names = [f"class {label}" for label in rows]
    plane = plane_words(len(manifest.cube_shape), "Coronal mid-slices of the cubes")
    return {
        "manifest": manifest,
        "labels": list(rows),
        "gallery": Gallery(
            "Patterns by class", list(rows.values()), columns, names, note=f"{plane}; ranks are of training scans"
        )
        if rows
        else None,
        "similarity": _similarity(workspace.patterns, manifest),
        "planes": guarded(_planes, workspace, manifest),
    }


def _planes(workspace: Workspace, manifest: PatternsManifest) -> dict[str, Any]:
    return {"gallery": galleries.coordinate_boxes(workspace, manifest)}


def _similarity(folder: Place, manifest: PatternsManifest) -> dict[str, Any] | None:
    """How scans' cubes correlate with the references' of the same class, and of other classes (`discovery.quality`).

    Of held-out scans, where there are any, which were not searched for among all that are like the reference; else of
    the nearest neighbours. Also the share of these cubes that is uniform.
    """
    shape = manifest.cube_shape
    classes = (pc.field("label") < galleries.MOST_CLASSES) & (pc.field("scale") == 0)

    def read(where: Any) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        table = read_patterns(folder, ("label", "volume_id", "cube"), where & classes)
        cubes = [decode(cell, shape).ravel() for cell in table["cube"].to_pylist()]
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
            return {
                "split": split, "scans": num_scans, "classes": len(by_class),
                "within": float(correlation[same].mean()), "between": float(correlation[~same].mean()),
                "by_class": {label: float(pairs.mean()) for label, pairs in by_class.items() if len(pairs)},
                "uniform": float((cubes.std(1) < UNIFORM).mean()),
            }  # fmt: skip
    return None


def intensity_of(contents: Contents, settings: Settings) -> IntensitySettings:
    """The intensities that the artifacts were made with."""
    for view in (contents[PATTERNS], contents[AUTOENCODER]):
        if view.record:
            return IntensitySettings.model_validate(view.settings["intensity"])
    return settings.intensity


def split_of(workspace: Workspace, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Volume ids of the training and of the held-out subjects of an artifact."""
    chosen = manifest.settings
    shape = chosen["autoencoder"]["input_shape"] if "autoencoder" in chosen else chosen["discovery"]["cube_shape"]
    rows = read_catalogue(workspace.catalog, ndim=len(shape))
    split = split_by_subject(rows, chosen["validation_fraction"], chosen["seed"])
    training, held_out = ([row["volume_id"] for row in part] for part in split)
    return training, held_out


def _range(values: NDArray[np.float64]) -> str:
    least, median, most = values.min(), np.median(values), values.max()
    return f"{least:.4g} to {most:.4g}, median {median:.4g}" if most > least else f"{least:.4g}"


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    return [items[n] for n in np.unique(np.linspace(0, len(items) - 1, most).astype(int))] if items else []
