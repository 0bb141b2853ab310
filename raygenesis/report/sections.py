"""What each section of the page tells, gathered from the artifacts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from raygenesis.archive.catalogue import read_catalogue, split_by_subject
from raygenesis.archive.cells import decode
from raygenesis.config import IntensitySettings, Settings
from raygenesis.errors import RaygenesisError, WorkspaceError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.pretrain import pretext_task
from raygenesis.pretraining.task import JOINT
from raygenesis.report import figures
from raygenesis.report.figures import Chart, Line
from raygenesis.settings import settings_from
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace import Place, Workspace, parquet_dataset, read_table

Row = Mapping[str, Any]

MOST_FAILURES = 50
NUMBER = re.compile(r"\d+")
MOST_SCANS, MOST_MAPPED, MOST_HELD_OUT, MOST_RUNS_DRAWN, MOST_RUNS_RESTORED = 12, 2000, 4, 6, 3
MOST_SCANS_COMPARED = 12
UNIFORM = 0.05  # a cube with a smaller standard deviation shows next to nothing


@dataclass(frozen=True)
class Made:
    """One artifact of the workspace: whole when it has a manifest, begun when it has a `started` record."""

    name: str
    folder: Place
    manifest: Row | None
    started: Row | None
    command: str

    @property
    def holds(self) -> dict[str, int]:
        """The manifest's counts, under the names of what was learnt from and without what there is none of."""
        counts = dict(self.manifest["counts"])
        learnt_from = "crops" if self.name == "crops" else self.manifest.get("store", "patterns")
        if self.name == "crops":
            counts["crops of each scan"] = counts["coordinates"]
            for name in ("references", "coordinates", "neighbours"):
                del counts[name]
        if counts.get("classes") == 0:
            del counts["classes"]
        return {learnt_from if name == "patterns" else name: count for name, count in counts.items()}

    @property
    def record(self) -> Row:
        return self.manifest or self.started or {}


def guarded(build: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A section, or as its `problem` the sentence that says why a damaged artifact cannot be shown."""
    try:
        return build(*arguments)
    except (RaygenesisError, OSError, pa.ArrowException) as error:
        return {"problem": str(error).splitlines()[0]}


def archive(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> dict[str, Any]:
    """Counts, ranges of shape and spacing, and a contact sheet."""
    columns = ["volume_id", "subject_id", "shape", "spacing_mm", "dtype"]
    table = read_table(workspace.catalog, columns=columns).sort_by("volume_id")
    ranges = []
    for ndim in (3, 2):
        members = [row for row in table.select(["shape", "spacing_mm"]).to_pylist() if len(row["shape"]) == ndim]
        shapes, spacings = (np.array([row[name] for row in members], float) for name in ("shape", "spacing_mm"))
        for axis, voxels, step in zip("zyx"[-ndim:], shapes.T, spacings.T, strict=True) if members else ():
            sizes = {"voxels": _range(voxels), "spacing in mm": _range(step), "size in mm": _range(voxels * step)}
            ranges.append({"axis": f"{axis} ({ndim}D)", **sizes})
    chosen = _evenly(table["volume_id"].to_pylist(), MOST_SCANS)
    rows = read_catalogue(workspace.catalog, chosen)
    return {
        "volumes": table.num_rows,
        "subjects": pc.count_distinct(table["subject_id"]).as_py(),
        "dtypes": {item["values"]: item["counts"] for item in table["dtype"].value_counts().to_pylist()},
        "ranges": ranges,
        "pictures": figures.contact_sheet(workspace.volumes, rows, _intensity(made, settings)),
    }


def failures(workspace: Workspace) -> dict[str, Any]:
    """Failures of all stages, those of one reason but for its numbers together, most frequent first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for stage in ("archive", "embeddings", "patterns", "crops"):
        path = workspace.root / stage / "failures.parquet"
        for row in read_table(path).to_pylist() if path.is_file() else []:
            groups.setdefault((stage, NUMBER.sub("…", row["reason"])), []).append(row)
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = [
        {
            "stage": stage, "scans": len(rows),
            "reason": reason if len({row["reason"] for row in rows}) > 1 else rows[0]["reason"],
            "for example": ", ".join(row["source"] for row in rows[:3]),
        }
        for (stage, reason), rows in ranked[:MOST_FAILURES]
    ]  # fmt: skip
    return {"rows": rows, "count": sum(map(len, groups.values())), "reasons_left_out": len(ranked) - len(rows)}


def autoencoder(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> dict[str, Any]:
    """The training curve, and held-out scans beside their reconstructions."""
    manifest = made["autoencoder"].manifest
    history = read_metrics(workspace.autoencoder)
    lines = [Line("training", _column(history, "train_loss")), Line("held out", _column(history, "val_mse"))]
    rows = read_catalogue(workspace.catalog, _evenly(_split(workspace, manifest)[1], MOST_HELD_OUT))
    return {
        "manifest": manifest,
        "chart": figures.curves("Mean squared error", "the auto-encoder", lines, least=0),
        "held_out": guarded(_reconstructed, workspace, rows, manifest),
    }


def _reconstructed(workspace: Workspace, rows: Sequence[Row], manifest: Row) -> dict[str, Any]:
    return {"scans": figures.reconstructions(workspace.autoencoder, workspace.volumes, rows, manifest)}


def neighbours(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> dict[str, Any]:
    """Reference 0 with its nearest training scans beside others at random, as the paper's Fig. 4."""
    manifest, index = made["patterns"].manifest, made["index"].manifest
    reference = manifest["references"][0]["volume_id"]
    first = (pc.field("reference") == 0) & (pc.field("coordinate") == 0) & (pc.field("scale") == 0)
    found = read_patterns(workspace.patterns, ("volume_id", "rank"), predicate(TRAINING) & first).sort_by("rank")
    nearest = [volume_id for volume_id in found["volume_id"].to_pylist() if volume_id != reference]
    rest = sorted(set(_split(workspace, manifest)[0]) - {reference, *nearest})
    order = np.random.default_rng(manifest["settings"]["seed"]).permutation(len(rest))[:MOST_MAPPED]
    vectors = _embeddings_of(workspace.embeddings, [reference, *nearest, *(rest[n] for n in order)])
    others = [rest[n] for n in order if rest[n] in vectors]
    titles = {reference: "Reference"}
    titles |= {name: f"Rank {rank}" for rank, name in enumerate(nearest[: figures.MOST_COLUMNS - 1], 1)}
    titles |= {name: f"Other {number}" for number, name in enumerate(others[: figures.MOST_COLUMNS], 1)}
    pictures = []
    for row in read_catalogue(workspace.catalog, titles):
        title, file = titles[row["volume_id"]], PurePath(row["source"]).name
        apart = np.linalg.norm(vectors[row["volume_id"]] - vectors[reference])
        how_far = f", distance {apart:.2f}" if apart else ""
        alt, note = f"Mid-slice of {title.lower()}, {file}", f"{title}{how_far}: {file}"
        pictures.append(figures.scan_picture(workspace.volumes, row, _intensity(made, settings), alt, note))
    chart, share = figures.embedding_map(vectors, reference, nearest)
    pictures.sort(key=lambda shown: (shown.note.startswith("Rank"), shown.note))
    return {
        "nearest": [shown for shown in pictures if not shown.note.startswith("Other")],
        "random": [shown for shown in pictures if shown.note.startswith("Other")],
        "index": index, "num_neighbours": len(nearest), "quality": made["patterns"].manifest["quality"],
        "likeness": _likeness(made["patterns"].manifest["quality"]),
        "map": chart, "first_axis": share, "source": manifest["references"][0]["source"],
    }  # fmt: skip


def _likeness(quality: Row) -> Chart:
    """How alike patients' patterns are to the reference's, by rank, and random patients' (the paper's Fig. 4)."""
    dots = {"–".join(map(str, group["ranks"])): group["values"] for group in quality["by_rank"]}
    if quality["random"]["num_patients"]:
        dots["random"] = quality["random"]["values"]
    return figures.strip("Likeness to the reference's patterns", "patient's rank", "correlation", dots, joined=True)


def _embeddings_of(folder: Place, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """The embeddings of some volumes, by volume id; failed ones are left out."""
    parts = parquet_dataset(sorted(folder.glob("part-*.parquet")))
    where = pc.field("volume_id").isin(list(ids)) & (pc.field("failure") == "")
    table = parts.to_table(columns=["volume_id", "embedding"], filter=where)
    vectors = (np.array(cell, np.float32) for cell in table["embedding"].to_pylist())
    return dict(zip(table["volume_id"].to_pylist(), vectors, strict=True))


def patterns(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> dict[str, Any]:
    """The classes, how alike their cubes are, and where they lie in the reference."""
    manifest = made["patterns"].manifest
    return {
        "manifest": manifest,
        "classes": figures.classes(workspace.patterns, manifest),
        "similarity": _similarity(workspace.patterns, manifest),
        "planes": figures.coordinate_boxes(workspace, manifest),
    }


def _similarity(folder: Place, manifest: Row) -> dict[str, Any] | None:
    """Mean Pearson correlation of two scans' cubes of the same class, and of different classes.

    Held-out patterns when there are two scans of them, else training ones; also the share of them that is uniform.
    """
    shape = tuple(manifest["cube_shape"])
    for split in (VALIDATION, TRAINING):
        where = (pc.field("label") < figures.MOST_CLASSES) & (pc.field("scale") == 0)
        where &= pc.field("rank") < MOST_SCANS_COMPARED
        table = read_patterns(folder, ("label", "volume_id", "cube"), predicate(split) & where)
        labels, volumes = table["label"].to_numpy(), np.array(table["volume_id"].to_pylist(), dtype=str)
        if len(set(volumes)) < 2:
            continue
        cubes = np.stack([decode(cell, shape).ravel() for cell in table["cube"].to_pylist()])
        spread = cubes.std(1)
        cubes -= cubes.mean(1, keepdims=True)
        cubes /= np.maximum(np.linalg.norm(cubes, axis=1, keepdims=True), 1e-9)
        correlation, same = cubes @ cubes.T, labels[:, None] == labels
        apart = volumes[:, None] != volumes
        if (same & apart).any() and (~same & apart).any():
            by_class = {int(label): correlation[same & apart & (labels == label)] for label in np.unique(labels)}
            return {
                "split": split, "scans": len(set(volumes)), "classes": len(by_class),
                "within": float(correlation[same & apart].mean()), "between": float(correlation[~same & apart].mean()),
                "by_class": {label: float(pairs.mean()) for label, pairs in by_class.items() if len(pairs)},
                "uniform": float((spread < UNIFORM).mean()),
            }  # fmt: skip
    return None


def runs(made: Mapping[str, Made]) -> list[dict[str, Any]]:
    """Every run, the newest first: facts, curves, restored cubes and, in plain sentences, what went wrong."""
    begun = [artifact for name, artifact in made.items() if name.startswith("runs/") and artifact.record]
    # Runs that are not finished come first.
    begun.sort(key=lambda run: run.record.get("finished", "~"), reverse=True)
    restores = [run for run in begun if run.manifest and run.manifest["restoration_mse"] is not None]
    restored = [run.name for run in restores[:MOST_RUNS_RESTORED]]
    out = []
    for number, artifact in enumerate(begun):
        out.append(
            {
                "name": artifact.folder.name, "artifact": artifact, "facts": artifact.manifest or {},
                "facts_row": _facts_row(artifact) if artifact.manifest else {},
                "curves": guarded(_run_curves, artifact, number < MOST_RUNS_DRAWN),
                "warnings": (artifact.manifest or {}).get("warnings", []),
                "restored": guarded(_restored, artifact, made) if artifact.name in restored else None,
            }
        )  # fmt: skip
    return out


def _facts_row(run: Made) -> dict[str, Any]:
    facts = run.manifest
    return {
        "run": run.folder.name, "pretext task": facts["settings"]["pretraining"]["pretext"],
        "epochs": facts["counts"]["epochs"], "best epoch": facts["epoch"] + 1,
        "accuracy": facts["accuracy"], "chance": facts["chance"], "restoration error": facts["restoration_mse"],
        "identity": facts["identity_mse"], "mean image": facts["mean_image_mse"],
        "anatomy retrieval": facts["retrieval"], "effective rank": facts["effective_rank"],
        "cubes": facts["counts"]["patterns"], "seconds": facts["seconds"],
    }  # fmt: skip


def _run_curves(artifact: Made, drawn: bool) -> dict[str, Any]:
    history = read_metrics(artifact.folder)
    charts = _run_charts(artifact.folder.name, artifact.manifest or {}, history) if history and drawn else []
    return {"epochs": len(history), "charts": charts}


def _restored(run: Made, made: Mapping[str, Made]) -> dict[str, Any]:
    store = made[run.manifest["store"]]
    if not store.manifest or run.manifest["inputs"].get(store.name) != store.manifest["fingerprint"]:
        raise WorkspaceError(f"the {store.name} that this run learnt from are no longer there")
    settings = settings_from(yaml.safe_load((run.folder / "config.yaml").read_text()))
    return {
        "corruption": pretext_of(settings.pretraining).corruption,
        "rows": figures.restorations(run.folder, store.folder, pretext_task(settings, store.manifest), settings),
    }


def _run_charts(name: str, facts: Row, history: Sequence[Row]) -> list[Chart]:
    """Losses by phase, accuracy, restoration, speed. The joint loss is shown where it is what is minimised."""
    of = f"run {name}"
    begins = next((number for number, row in enumerate(history) if row["phase"] == JOINT), None)
    boundary = begins + 0.5 if begins else None
    joint = [row if row["phase"] == JOINT else {} for row in history]

    def pair(key: str, rows: Sequence[Row] = history) -> list[Line]:
        lines = (Line("training", _column(rows, f"train_{key}")), Line("held out", _column(rows, f"val_{key}")))
        return [line for line in lines if any(value is not None for value in line.y)]

    floor = {"identity": _column(history, "val_identity")[-1], "mean image": facts.get("mean_image_mse")}
    chance = {"chance": facts.get("chance")}
    drawn = [
        ("Classification loss", pair("classification"), {"boundary": boundary}),
        ("Accuracy", pair("accuracy"), {"levels": _known(chance), "most": 1, "percent": True}),
        ("Restoration error", pair("restoration"), {"levels": _known(floor), "boundary": boundary}),
        ("Joint loss", pair("loss", joint), {}),
        ("Effective rank of the embedding", [Line("held out", _column(history, "val_effective_rank"))], {}),
        ("Norm of the gradient", [Line("training", _column(history, "train_gradient_norm"))], {}),
        ("Training cubes per second", [Line("cubes per second", _column(history, "cubes_per_s"))], {}),
        ("Share of time waiting for data", [Line("gap", _column(history, "gap"))], {"most": 1, "percent": True}),
    ]
    return [figures.curves(title, of, lines, least=0, **options) for title, lines, options in drawn if lines]


def _known(levels: Mapping[str, float | None]) -> dict[str, float]:
    return {name: level for name, level in levels.items() if level is not None}


def _intensity(made: Mapping[str, Made], settings: Settings) -> IntensitySettings:
    """The intensities that the artifacts were made with."""
    for name in ("patterns", "autoencoder"):
        if made[name].record:
            return IntensitySettings.model_validate(made[name].record["settings"]["intensity"])
    return settings.intensity


def _split(workspace: Workspace, manifest: Row) -> tuple[list[str], list[str]]:
    """Volume ids of the training and of the held-out subjects of an artifact."""
    chosen = manifest["settings"]
    shape = chosen["autoencoder"]["input_shape"] if "autoencoder" in chosen else chosen["discovery"]["cube_shape"]
    rows = read_catalogue(workspace.catalog, ndim=len(shape))
    split = split_by_subject(rows, chosen["validation_fraction"], chosen["seed"])
    training, held_out = ([row["volume_id"] for row in part] for part in split)
    return training, held_out


def _range(values: NDArray[np.float64]) -> str:
    least, median, most = values.min(), np.median(values), values.max()
    return f"{least:.4g} to {most:.4g}, median {median:.4g}" if most > least else f"{least:.4g}"


def _column(rows: Sequence[Row], key: str) -> list[float | None]:
    return [row.get(key) for row in rows]


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    return [items[n] for n in np.unique(np.linspace(0, len(items) - 1, most).astype(int))] if items else []


