"""What each section of the page tells, gathered from the artifacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from raygenesis.amounts import duration
from raygenesis.archive.catalogue import read_catalogue, read_columns, split_by_subject
from raygenesis.archive.cells import decode
from raygenesis.archive.failures import alike, every_failure, grouped
from raygenesis.discovery.quality import correlations
from raygenesis.errors import RaygenesisError, ScanError, WorkspaceError
from raygenesis.files import Place, read_json
from raygenesis.job import is_own, jobs_folder
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.pretrain import pretext_task
from raygenesis.pretraining.task import JOINT
from raygenesis.report import charts, galleries
from raygenesis.report.charts import Chart, Line
from raygenesis.report.galleries import MEND_A_SCAN
from raygenesis.report.pictures import Gallery, plane_words
from raygenesis.settings import IntensitySettings, PriceSettings, Settings, settings_from
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace import Workspace

Row = Mapping[str, Any]

MOST_FAILURES = 50
MOST_JOBS = 20
MOST_SCANS, MOST_HELD_OUT, MOST_RUNS_DRAWN, MOST_RUNS_RESTORED = 16, 4, 12, 3
MOST_SCANS_COMPARED = 12
REMEDY = "restore it from a copy, or remove the artifact's folder and make it anew"
UNIFORM = 0.05  # a cube with a smaller standard deviation shows next to nothing


@dataclass(frozen=True)
class Made:
    """One artifact of the workspace: whole when it has a manifest, begun when it has a `started` record; else empty."""

    name: str
    folder: Place
    manifest: Row
    started: Row
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
    def rate(self) -> str:
        """What the last call did in a second, or the seconds that one took."""
        per_second = {
            "archive": ("scans", "scans", "known"), "embeddings": ("new", "scans", ""),
            "patterns": ("patterns", "patterns", ""), "crops": ("patterns", "crops", ""),
            "transfer": ("trials", "trials", ""), "sweeps": ("points", "points", ""),
        }  # fmt: skip
        kind = self.name.partition("/")[0]
        counts, seconds = self.manifest["counts"], self.manifest["seconds"]
        if kind == "runs" and self.manifest.get("speed"):
            return f"{_per_second(self.manifest['speed']['cubes_per_s'])} cubes/s in steps"
        key, unit, spared = per_second.get(kind, ("", "", ""))
        done = counts.get(key, 0) - counts.get(spared, 0)
        if not done or not seconds:
            return "–"
        return (
            f"{_per_second(done / seconds)} {unit}/s" if done > seconds else f"{duration(seconds / done)}/{unit[:-1]}"
        )

    @property
    def record(self) -> Row:
        return self.manifest or self.started


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def guarded(build: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A section, or as its `problem` the sentence that says why a damaged artifact cannot be shown, and what helps."""
    try:
        return build(*arguments)
    except WorkspaceError as error:  # which says itself what helps
        return {"problem": str(error).splitlines()[0]}
    except (RaygenesisError, OSError, pa.ArrowException) as error:
        remedy = MEND_A_SCAN if isinstance(error, ScanError) else REMEDY
        return {"problem": f"{str(error).splitlines()[0].rstrip('.')}; {remedy}"}


def _history(artifact: Made) -> Sequence[Row]:
    """A row an epoch. Raises WorkspaceError if what is finished has none, or its table is damaged."""
    history = read_metrics(artifact.folder)
    if artifact.manifest and not history:
        raise WorkspaceError(
            f"{artifact.folder / 'metrics.parquet'} is missing: restore it from a copy, or remove {artifact.folder} "
            "to make it anew"
        )
    return history


def archive(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> dict[str, Any]:
    """Counts, modalities, corrections, ranges of shape and spacing, and a contact sheet."""
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
    sheet, lacking = galleries.contact_sheet(workspace.volumes, chosen, intensity_of(made, settings))
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


def autoencoder(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> dict[str, Any]:
    """The training curve, and held-out scans beside their reconstructions."""
    manifest = made["autoencoder"].manifest
    rows = read_catalogue(workspace.catalog, _evenly(split_of(workspace, manifest)[1], MOST_HELD_OUT))
    return {
        "manifest": manifest,
        "curve": guarded(_learning_curve, made["autoencoder"]),
        "held_out": guarded(_reconstructed, workspace, rows, manifest),
    }


def _learning_curve(autoencoder: Made) -> dict[str, Any]:
    history = _history(autoencoder)
    lines = [Line("training", _column(history, "train_loss")), Line("held out", _column(history, "val_mse"))]
    title = "Mean squared error"
    return {"chart": charts.curves(title, title.lower(), "the auto-encoder", lines, least=0)}


def _reconstructed(workspace: Workspace, rows: Sequence[Row], manifest: Row) -> dict[str, Any]:
    shown, lacking = galleries.reconstructions(workspace.autoencoder, workspace.volumes, rows, manifest)
    return {"gallery": shown, "lacking": lacking}


def patterns(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> dict[str, Any]:
    """The classes, how alike their cubes are, and where they lie in the reference."""
    manifest = made["patterns"].manifest
    rows = galleries.classes(workspace.patterns, manifest)
    columns = [shown.note for shown in max(rows.values(), key=len, default=())]
    names = [f"class {label}" for label in rows]
    plane = plane_words(len(manifest["cube_shape"]), "Coronal mid-slices of the cubes")
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


def _planes(workspace: Workspace, manifest: Row) -> dict[str, Any]:
    return {"gallery": galleries.coordinate_boxes(workspace, manifest)}


def _similarity(folder: Place, manifest: Row) -> dict[str, Any] | None:
    """How scans' cubes correlate with the references' of the same class, and of other classes (`discovery.quality`).

    Of held-out scans, where there are any, which were not searched for among all that are like the reference; else of
    the nearest neighbours. Also the share of these cubes that is uniform.
    """
    shape = tuple(manifest["cube_shape"])
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


def runs(made: Mapping[str, Made]) -> list[dict[str, Any]]:
    """Every run, `default` and then the newest first: facts, curves, restored cubes and, in words, what went wrong."""
    begun = [artifact for name, artifact in made.items() if name.startswith("runs/") and artifact.record]
    # Runs that are not finished count as the newest.
    begun.sort(key=lambda run: (run.folder.name == "default", run.record.get("finished", "~")), reverse=True)
    restores = [run for run in begun if run.manifest and run.manifest["restoration_mse"] is not None]
    restored = [run.name for run in restores[:MOST_RUNS_RESTORED]]
    out = []
    for number, artifact in enumerate(begun):
        out.append(
            {
                "name": artifact.folder.name, "artifact": artifact, "facts": artifact.manifest,
                "facts_row": _facts_row(artifact) if artifact.manifest else {},
                "curves": guarded(_run_curves, artifact, number < MOST_RUNS_DRAWN),
                "warnings": artifact.manifest.get("warnings", []),
                "words": _in_words(artifact.manifest) if artifact.manifest else [],
                "restored": guarded(_restored, artifact, made) if artifact.name in restored else None,
            }
        )  # fmt: skip
    return out


def _facts_row(run: Made) -> dict[str, Any]:
    facts = run.manifest
    return {
        "run": run.folder.name, "pretext task": facts["settings"]["pretraining"]["pretext"],
        "best epoch": f"{facts['epoch'] + 1} of {facts['counts']['epochs']}",
        "accuracy": facts["accuracy"], "chance": facts["chance"], "restoration error": facts["restoration_mse"],
        "identity": facts["identity_mse"], "mean image": facts["mean_image_mse"],
        "anatomy retrieval": facts["retrieval"],
        "untrained": facts.get("retrieval_untrained"), "effective rank": facts["effective_rank"],
        "cubes in its store": facts["counts"]["patterns"], "time": duration(facts["seconds"]),
    }  # fmt: skip


def _in_words(facts: Row) -> list[str]:
    """What a run's monitors say, in sentences."""
    said = []
    if facts["accuracy"] is not None:
        times = facts["accuracy"] / facts["chance"]
        said.append(f"It names {facts['accuracy']:.0%} of what is held out rightly, {times:.1f} times chance")
    if facts["restoration_mse"] is not None:
        baselines = {"leaving the cube as it is": facts["identity_mse"], "the mean image": facts["mean_image_mse"]}
        shares = [f"{facts['restoration_mse'] / mse:.2f} of that of {name}" for name, mse in baselines.items() if mse]
        said.append(f"It restores with an error of {facts['restoration_mse']:.4g}: {' and '.join(shares)}")
    if facts["retrieval"] is not None:
        untrained = facts.get("retrieval_untrained")  # an earlier version's run has none
        beside = "" if untrained is None else f", as untrained it did with {untrained:.3f}"
        precision = f"a mean average precision of {facts['retrieval']:.3f}"
        said.append(f"It finds the same place in other scans with {precision}{beside}")
    if facts["effective_rank"] is not None:
        said.append(f"Its embedding uses {facts['effective_rank']:.1f} directions")
    if speed := facts.get("speed"):
        waited = f"waited for data {speed['gap']:.1%} of the time"
        said.append(f"It learnt from {speed['cubes_per_s']:.1f} cubes a second and {waited}")
    return said


def _run_curves(artifact: Made, drawn: bool) -> dict[str, Any]:
    history = _history(artifact)
    shown = _run_charts(artifact.folder.name, artifact.manifest, history) if history and drawn else []
    return {"epochs": len(history), "charts": shown}


def _restored(run: Made, made: Mapping[str, Made]) -> dict[str, Any]:
    store = made[run.manifest["store"]]
    if not store.manifest or run.manifest["inputs"].get(store.name) != store.manifest["fingerprint"]:
        raise WorkspaceError(
            f"the {store.name} that this run learnt from are no longer there: remove {run.folder} and run "
            f"`{run.command}` to learn from those that are"
        )
    path = run.folder / "config.yaml"
    try:
        settings = settings_from(yaml.safe_load(path.read_text()))
    except (OSError, ValueError, yaml.YAMLError):
        raise WorkspaceError(
            f"{path} is missing or damaged: restore it from a copy, or remove {run.folder} and pretrain again"
        ) from None
    task = pretext_task(settings, store.manifest)
    rows = galleries.restorations(run.folder, store.folder, task, settings)
    columns, pictures = ("original", "corrupted", "restored"), [row["pictures"] for row in rows]
    classifies = any(row["label"] is not None for row in rows)
    answers = [f"class {row['label']}, answer {row['guess']}\n" * classifies for row in rows]
    names = [f"{answer}error {row['mse']:.4g}" for answer, row in zip(answers, rows, strict=True)]
    note = plane_words(len(settings.discovery.cube_shape), "Coronal mid-slices of the cubes")
    return {
        "corruption": pretext_of(settings.pretraining).corruption,
        "rows": rows,
        "classifies": classifies,
        "gallery": Gallery(f"Run {run.folder.name} restored", pictures, columns, names, note) if rows else None,
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
    drawn: list[tuple[str, str, list[Line], dict[str, Any]]] = [
        ("Classification loss", "loss", pair("classification"), {"boundary": boundary}),
        ("Accuracy", "accuracy", pair("accuracy"), {"levels": _known(chance), "most": 1, "percent": True}),
        (
            "Restoration error", "mean squared error", pair("restoration"),
            {"levels": _known(floor), "boundary": boundary},
        ),
        ("Joint loss", "loss", pair("loss", joint), {}),
        (
            "Effective rank of the embedding", "effective rank",
            [Line("held out", _column(history, "val_effective_rank"))], {},
        ),
        ("Norm of the gradient", "norm", [Line("training", _column(history, "train_gradient_norm"))], {}),
        (
            "Training cubes per second", "cubes per second",
            [Line("cubes per second", _column(history, "cubes_per_s"))], {},
        ),
        (
            "Share of time waiting for data", "share of time", [Line("gap", _column(history, "gap"))],
            {"most": 1, "percent": True},
        ),
    ]  # fmt: skip
    return [
        charts.curves(title, ylabel, of, lines, least=0, **options) for title, ylabel, lines, options in drawn if lines
    ]


def _known(levels: Mapping[str, float | None]) -> dict[str, float]:
    return {name: level for name, level in levels.items() if level is not None}


def intensity_of(made: Mapping[str, Made], settings: Settings) -> IntensitySettings:
    """The intensities that the artifacts were made with."""
    for name in ("patterns", "autoencoder"):
        if made[name].record:
            return IntensitySettings.model_validate(made[name].record["settings"]["intensity"])
    return settings.intensity


def split_of(workspace: Workspace, manifest: Row) -> tuple[list[str], list[str]]:
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
