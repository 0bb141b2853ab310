"""The section of the pretraining runs: facts, curves, restored cubes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from raygenesis.errors import WorkspaceError
from raygenesis.patterns.reader import STORES
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.pretrain import pretext_task
from raygenesis.pretraining.task import JOINT
from raygenesis.report import charts, galleries
from raygenesis.report.artifact import ArtifactView, Contents, Row, column, finished, guarded, history_of
from raygenesis.report.charts import Chart, Line
from raygenesis.report.pictures import Gallery, plane_words
from raygenesis.settings import settings_from
from raygenesis.text.amounts import duration
from raygenesis.workspace.artifacts import RUNS
from raygenesis.workspace.manifest import RunManifest

MOST_RUNS_DRAWN, MOST_RUNS_RESTORED = 12, 3


def runs(contents: Contents) -> list[dict[str, Any]]:
    """Every run, `default` and then the newest first: facts, curves, restored cubes and, in words, what went wrong."""
    begun = contents.each(RUNS)
    # Runs that are not finished count as the newest.
    begun.sort(
        key=lambda run: (run.folder.name == "default", run.manifest.finished if run.manifest else "~"), reverse=True
    )
    restores = [run for run in begun if run.manifest and run.manifest.restoration_mse is not None]
    restored = [run.name for run in restores[:MOST_RUNS_RESTORED]]
    out = []
    for number, artifact in enumerate(begun):
        out.append(
            {
                "name": artifact.folder.name, "artifact": artifact, "facts": artifact.manifest,
                "facts_row": _facts_row(artifact.folder.name, artifact.manifest) if artifact.manifest else {},
                "curves": guarded(_run_curves, artifact, number < MOST_RUNS_DRAWN),
                "warnings": artifact.manifest.warnings if artifact.manifest else (),
                "words": _in_words(artifact.manifest) if artifact.manifest else [],
                "restored": guarded(_restored, artifact, contents) if artifact.name in restored else None,
            }
        )  # fmt: skip
    return out


def _facts_row(name: str, facts: RunManifest) -> dict[str, Any]:
    return {
        "run": name, "pretext task": facts.settings["pretraining"]["pretext"],
        "best epoch": f"{facts.epoch + 1} of {facts.counts.epochs}",
        "accuracy": facts.accuracy, "chance": facts.chance, "restoration error": facts.restoration_mse,
        "identity": facts.identity_mse, "mean image": facts.mean_image_mse,
        "anatomy retrieval": facts.retrieval,
        "untrained": facts.retrieval_untrained, "effective rank": facts.effective_rank,
        "cubes in its store": facts.counts.patterns, "time": duration(facts.seconds),
    }  # fmt: skip


def _in_words(facts: RunManifest) -> list[str]:
    """What a run's monitors say, in sentences."""
    said = []
    if facts.accuracy is not None and facts.chance:
        times = facts.accuracy / facts.chance
        said.append(f"It names {facts.accuracy:.0%} of what is held out rightly, {times:.1f} times chance")
    if facts.restoration_mse is not None:
        baselines = {"leaving the cube as it is": facts.identity_mse, "the mean image": facts.mean_image_mse}
        shares = [f"{facts.restoration_mse / mse:.2f} of that of {name}" for name, mse in baselines.items() if mse]
        said.append(f"It restores with an error of {facts.restoration_mse:.4g}: {' and '.join(shares)}")
    if facts.retrieval is not None:
        untrained = facts.retrieval_untrained  # an earlier version's run has none
        beside = "" if untrained is None else f", as untrained it did with {untrained:.3f}"
        precision = f"a mean average precision of {facts.retrieval:.3f}"
        said.append(f"It finds the same place in other scans with {precision}{beside}")
    if facts.effective_rank is not None:
        said.append(f"Its embedding uses {facts.effective_rank:.1f} directions")
    if speed := facts.speed:
        waited = f"waited for data {speed.gap:.1%} of the time"
        said.append(f"It learnt from {speed.cubes_per_s:.1f} cubes a second and {waited}")
    return said


def _run_curves(artifact: ArtifactView[RunManifest], drawn: bool) -> dict[str, Any]:
    history = history_of(artifact)
    shown = _run_charts(artifact.folder.name, artifact.manifest, history) if history and drawn else []
    return {"epochs": len(history), "charts": shown}


def _restored(run: ArtifactView[RunManifest], contents: Contents) -> dict[str, Any]:
    manifest = finished(run)
    store = contents[STORES[manifest.store]]
    if not store.manifest or manifest.inputs.get(store.name) != store.manifest.fingerprint:
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


def _run_charts(name: str, facts: RunManifest | None, history: Sequence[Row]) -> list[Chart]:
    """Losses by phase, accuracy, restoration, speed. The joint loss is shown where it is what is minimised."""
    of = f"run {name}"
    begins = next((number for number, row in enumerate(history) if row["phase"] == JOINT), None)
    boundary = begins + 0.5 if begins else None
    joint = [row if row["phase"] == JOINT else {} for row in history]

    def pair(key: str, rows: Sequence[Row] = history) -> list[Line]:
        lines = (Line("training", column(rows, f"train_{key}")), Line("held out", column(rows, f"val_{key}")))
        return [line for line in lines if any(value is not None for value in line.y)]

    floor = {"identity": column(history, "val_identity")[-1], "mean image": facts.mean_image_mse if facts else None}
    chance = {"chance": facts.chance if facts else None}
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
            [Line("held out", column(history, "val_effective_rank"))], {},
        ),
        ("Norm of the gradient", "norm", [Line("training", column(history, "train_gradient_norm"))], {}),
        (
            "Training cubes per second", "cubes per second",
            [Line("cubes per second", column(history, "cubes_per_s"))], {},
        ),
        (
            "Share of time waiting for data", "share of time", [Line("gap", column(history, "gap"))],
            {"most": 1, "percent": True},
        ),
    ]  # fmt: skip
    return [
        charts.curves(title, ylabel, of, lines, least=0, **options) for title, ylabel, lines, options in drawn if lines
    ]


def _known(levels: Mapping[str, float | None]) -> dict[str, float]:
    return {name: level for name, level in levels.items() if level is not None}
