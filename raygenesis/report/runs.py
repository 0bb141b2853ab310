"""The section of the pretraining runs: facts, curves, restored cubes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from raygenesis.errors import WorkspaceError
from raygenesis.patterns.reader import STORES
from raygenesis.pretraining.stores import pretext_task
from raygenesis.pretraining.task import JOINT
from raygenesis.report.artifact import ArtifactView, Contents, column, history_of
from raygenesis.report.galleries import RestoredCube, restorations
from raygenesis.report.parts import Absent, guarded
from raygenesis.report.pictures import Gallery, plane_note
from raygenesis.settings import settings_from
from raygenesis.text import charts
from raygenesis.text.amounts import duration
from raygenesis.text.charts import Chart, Labels, Line
from raygenesis.training.records import EpochRow
from raygenesis.workspace.artifacts import RUNS, Artifact
from raygenesis.workspace.manifest import RunManifest

MOST_RUNS_DRAWN, MOST_RUNS_RESTORED = 12, 3


@dataclass(frozen=True)
class RunCurves:
    """charts: none of older runs, or before the first epoch has ended."""

    num_epochs: int
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Restorations:
    """Held-out cubes as the set `corruption` corrupts them and the run's network restores them, also as a figure."""

    corruption: str
    cubes: Sequence[RestoredCube]
    classifies: bool
    gallery: Gallery | None


@dataclass(frozen=True)
class RunSection:
    """facts: its row of the table of runs. findings: what its monitors say, in sentences. restored: of a few runs."""

    view: ArtifactView[RunManifest]
    facts: Mapping[str, str | int | float | None]
    findings: Sequence[str]
    curves: RunCurves | Absent
    restored: Restorations | Absent | None

    @property
    def name(self) -> str:
        return self.view.folder.name

    @property
    def manifest(self) -> RunManifest | None:
        return self.view.manifest

    @property
    def warnings(self) -> Sequence[str]:
        """What went wrong, in sentences."""
        return self.manifest.warnings if self.manifest else ()


def run_sections(contents: Contents) -> list[RunSection]:
    """Every run, `default` and then the newest first: facts, curves, restored cubes and, in words, what went wrong."""
    begun = contents.each(RUNS)
    # Runs that are not finished count as the newest.
    begun.sort(
        key=lambda run: (run.folder.name == "default", run.manifest.finished if run.manifest else "~"), reverse=True
    )
    restores = [run for run in begun if run.manifest and run.manifest.restoration_mse is not None]
    restored = {run.name for run in restores[:MOST_RUNS_RESTORED]}
    return [
        RunSection(
            view=run,
            facts=_facts(run.folder.name, run.manifest) if run.manifest else {},
            findings=_findings(run.manifest) if run.manifest else (),
            curves=guarded(_curves, run, number < MOST_RUNS_DRAWN),
            restored=guarded(_restored, run, contents) if run.name in restored else None,
        )
        for number, run in enumerate(begun)
    ]


def _facts(name: str, run: RunManifest) -> dict[str, str | int | float | None]:
    return {
        "run": name, "pretext task": run.settings["pretraining"]["pretext"],
        "best epoch": f"{run.epoch + 1} of {run.counts.epochs}",
        "accuracy": run.accuracy, "chance": run.chance, "restoration error": run.restoration_mse,
        "identity": run.identity_mse, "mean image": run.mean_image_mse, "anatomy retrieval": run.retrieval,
        "untrained": run.retrieval_untrained, "effective rank": run.effective_rank,
        "cubes in its store": run.counts.patterns, "time": duration(run.seconds),
    }  # fmt: skip


def _findings(run: RunManifest) -> list[str]:
    """What a run's monitors say, in sentences."""
    found = []
    if run.accuracy is not None and run.chance:
        times = run.accuracy / run.chance
        found.append(f"It names {run.accuracy:.0%} of what is held out rightly, {times:.1f} times chance")
    if run.restoration_mse is not None:
        baselines = {"leaving the cube as it is": run.identity_mse, "the mean image": run.mean_image_mse}
        shares = [f"{run.restoration_mse / mse:.2f} of that of {name}" for name, mse in baselines.items() if mse]
        found.append(f"It restores with an error of {run.restoration_mse:.4g}: {' and '.join(shares)}")
    if run.contrast is not None:
        found.append(f"Its contrast of pairs is {run.contrast:.3g} in training, {run.contrast_chance:.3g} by chance")
    if run.cross_restoration_mse is not None:
        found.append(f"With a partner's bottleneck it restores with an error of {run.cross_restoration_mse:.4g}")
    if run.separation is not None:
        found.append(f"{run.separation:.0%} of the variance of held-out projections lies between classes")
    if run.retrieval is not None:
        untrained = run.retrieval_untrained  # an earlier version's run has none
        beside = "" if untrained is None else f", as untrained it did with {untrained:.3f}"
        precision = f"a mean average precision of {run.retrieval:.3f}"
        found.append(f"It finds the same place in other scans with {precision}{beside}")
    found.append(f"Its embedding uses {run.effective_rank:.1f} directions")
    if run.speed:
        waited = f"waited for data {run.speed.gap:.1%} of the time"
        found.append(f"It learnt from {run.speed.cubes_per_s:.1f} cubes a second and {waited}")
    return found


def _curves(run: ArtifactView[RunManifest], is_drawn: bool) -> RunCurves:
    history = history_of(run)
    drawn = _run_charts(run.folder.name, run.manifest, history) if history and is_drawn else []
    return RunCurves(len(history), drawn)


def _restored(run: ArtifactView[RunManifest], contents: Contents) -> Restorations:
    manifest = run.finished
    kind: Artifact[Any] = STORES[manifest.store]
    store = contents[kind]
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
    task = pretext_task(settings.pretraining, settings.pretraining_seed, store.manifest)
    cubes = restorations(run.folder, store.folder, task, settings.discovery.scales[0].extent_mm)
    classifies = any(cube.label is not None for cube in cubes)
    answers = [f"class {cube.label}, answer {cube.answer}\n" * classifies for cube in cubes]
    gallery = Gallery(
        f"Run {run.folder.name} restored", [cube.pictures for cube in cubes], ("original", "corrupted", "restored"),
        [f"{answer}error {cube.mse:.4g}" for answer, cube in zip(answers, cubes, strict=True)],
        plane_note(settings.ndim, "Coronal mid-slices of the cubes"),
    )  # fmt: skip
    return Restorations(task.pretext.corruption, cubes, classifies, gallery if cubes else None)


def _run_charts(name: str, run: RunManifest | None, history: Sequence[EpochRow]) -> list[Chart]:
    """Losses by phase, accuracy, restoration, speed. The joint loss is shown where it is what is minimised."""
    begins = next((number for number, row in enumerate(history) if row["phase"] == JOINT), None)
    boundary = begins + 0.5 if begins else None
    joint: list[Mapping[str, object]] = [row if row["phase"] == JOINT else {} for row in history]

    def pair(key: str, rows: Sequence[Mapping[str, object]] = history) -> list[Line]:
        lines = (Line("training", column(rows, f"train_{key}")), Line("held out", column(rows, f"val_{key}")))
        return [line for line in lines if any(value is not None for value in line.y)]

    def draw(title: str, axis: str, lines: Sequence[Line], *, most: float | None = None, **options: Any) -> list[Chart]:
        labels = Labels(title, y=axis, of=f"run {name}")
        return [charts.curves(labels, lines, limits=(0, most), **options)] if lines else []

    def one(key: str, line: str = "training") -> list[Line]:
        return [Line(line, column(history, key))]

    levels = {"identity": column(history, "val_identity")[-1], "mean image": run.mean_image_mse if run else None}
    chance = _known({"chance": run.chance if run else None})
    alike = _known({"all alike": run.contrast_chance if run else None})
    return [
        *draw("Classification loss", "loss", pair("classification"), boundary=boundary),
        *draw("Accuracy", "accuracy", pair("accuracy"), levels=chance, most=1, percent=True),
        *draw("Restoration error", "mean squared error", pair("restoration"), levels=_known(levels), boundary=boundary),
        *draw("Contrast of pairs", "loss", pair("contrast"), levels=alike, boundary=boundary),
        *draw("Cross-restoration error", "mean squared error", pair("cross_restoration"), boundary=boundary),
        *draw("Separation of classes", "share of variance", pair("separation"), most=1, percent=True),
        *draw("Joint loss", "loss", pair("loss", joint)),
        *draw("Effective rank of the embedding", "effective rank", one("val_effective_rank", "held out")),
        *draw("Norm of the gradient", "norm", one("train_gradient_norm")),
        *draw("Training cubes per second", "cubes per second", one("cubes_per_s", "cubes per second")),
        *draw("Share of time waiting for data", "share of time", one("gap", "gap"), most=1, percent=True),
    ]


def _known(levels: Mapping[str, float | None]) -> dict[str, float]:
    return {name: level for name, level in levels.items() if level is not None}
