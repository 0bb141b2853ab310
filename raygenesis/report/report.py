"""Report: everything that a workspace holds on one self-contained HTML page; needs no Ray and no network."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.report import sections
from raygenesis.report.artifact import ArtifactView, Contents, Row, finished, guarded
from raygenesis.report.charts import Chart
from raygenesis.report.cost import cost
from raygenesis.report.neighbours import neighbours
from raygenesis.report.page import render
from raygenesis.report.pictures import Gallery
from raygenesis.report.runs import runs as runs_in
from raygenesis.report.sweep import sweep
from raygenesis.report.transfer import MARKS, comparison, transfer
from raygenesis.settings import Settings, as_yaml, settings_beside
from raygenesis.text.amounts import GIB, several, size
from raygenesis.workspace import hardware
from raygenesis.workspace.artifacts import (
    ARCHIVE,
    AUTOENCODER,
    COMPARISONS,
    CROPS,
    EMBEDDINGS,
    INDEX,
    PATTERNS,
    RUNS,
    SWEEPS,
    TRANSFER,
    Artifact,
)  # fmt: skip
from raygenesis.workspace.files import Place, publish
from raygenesis.workspace.manifest import ComparisonManifest, TransferManifest
from raygenesis.workspace.workspace import Workspace

PACKAGES = (
    "raygenesis", "ray", "torch", "numpy", "pyarrow", "hnswlib", "nibabel", "matplotlib",
)  # fmt: skip


def report(workspace: Workspace, settings: Settings) -> Place:
    """Write `report/index.html` about whatever the workspace holds; `settings` fill in what no artifact records.

    Raises WorkspaceError if it holds nothing.
    """
    watch = Stopwatch()
    contents = Contents.of(workspace)
    if not any(view.record or view.problem for view in contents.artifacts):
        raise WorkspaceError(
            f"workspace {workspace.root} holds nothing to report: run `raygenesis run` or `raygenesis ingest` first"
        )
    context = _context(contents, settings)
    page = render("page.html.j2", context)
    path = workspace.report / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, lambda aside: aside.write_text(page, encoding="utf-8"))
    num_figures = _write_figures(workspace.report / "figures", context)
    problems = _problems_in(context)
    lacking = (
        f"; {several(len(problems), 'parts')} of the page cannot be shown, the first: {problems[0]}" if problems else ""
    )
    say("report", f"{size(path.stat().st_size)}, {num_figures} figures, {watch.seconds:.1f} s → {path}{lacking}")
    return path


def _write_figures(folder: Place, context: Mapping[str, Any]) -> int:
    """Every figure of the page as SVG and PNG, in place of those that were there; returns the number of figures."""
    figures = {part.name: part for part in _parts_of(context) if isinstance(part, Chart | Gallery)}
    folder.mkdir(parents=True, exist_ok=True)
    written = set()
    for name, figure in figures.items():
        for ending, content in figure.files():
            path = folder / f"{name}.{ending}"
            publish(path, partial(Path.write_bytes, data=content))
            written.add(path.name)
    there: list[Place] = list(folder.glob("*.*"))
    for path in there:
        if path.name not in written:
            path.unlink(missing_ok=True)
    return len(figures)


def _parts_of(part: Any) -> Iterator[Any]:
    """A part of the page's context, and everything in it."""
    yield part
    if isinstance(part, Mapping | list | tuple):
        for below in part.values() if isinstance(part, Mapping) else part:
            yield from _parts_of(below)


def _problems_in(context: Mapping[str, Any]) -> list[str]:
    """Why parts of the page, or some of their pictures, cannot be shown."""
    parts = (part for part in _parts_of(context) if isinstance(part, Mapping))
    found = [part[key].rstrip(".") for part in parts for key in ("problem", "lacking") if part.get(key)]
    return [*(view.problem for view in context["artifacts"] if view.problem), *found]


def _context(contents: Contents, settings: Settings) -> dict[str, Any]:
    """What the template shows; a section without the artifacts it needs is only the first `missing` of them."""

    def section(build: Callable[[Contents, Settings], dict[str, Any]], *needs: Artifact[Any]) -> dict[str, Any]:
        missing = next((contents[kind] for kind in needs if not contents[kind].manifest), None)
        return {"missing": missing} if missing else guarded(build, contents, settings)

    workspace, runs = contents.workspace, runs_in(contents)
    # A comparison's time is that of its targets.
    whole = [view.manifest for view in contents.artifacts if view.manifest and view.kind is not COMPARISONS]
    patterns, crops, autoencoder = contents[PATTERNS].manifest, contents[CROPS].manifest, contents[AUTOENCODER]
    return {
        "workspace": str(workspace.root), "artifacts": contents.artifacts, "written": _now(), "machine": _machine(),
        "archived": contents[ARCHIVE].manifest, "stored": patterns, "cropped": crops,
        "example_id": patterns.references[0].volume_id if patterns and patterns.references else "",
        "ndim": len(autoencoder.settings["autoencoder"]["input_shape"]) if autoencoder.record else 3,
        "first_of": {kind.name: contents[kind] for kind in (RUNS, SWEEPS, TRANSFER, COMPARISONS)},
        "total": {key: sum(getattr(manifest, key) for manifest in whole) for key in ("seconds", "bytes")},
        "archive": section(sections.archive, ARCHIVE),
        "jobs": guarded(sections.jobs, workspace, settings.prices),
        "failures": guarded(sections.failures, workspace),
        "autoencoder": section(sections.autoencoder, ARCHIVE, AUTOENCODER),
        "neighbours": section(neighbours, ARCHIVE, EMBEDDINGS, INDEX, PATTERNS),
        "patterns": section(sections.patterns, ARCHIVE, PATTERNS),
        "runs": runs,
        "sweeps": [{"artifact": view, **guarded(sweep, view)} for view in contents.each(SWEEPS)],
        "transfers": [{"artifact": view, **guarded(transfer, view)} for view in contents.each(TRANSFER)],
        "comparisons": [
            {"artifact": view, **guarded(comparison, view, contents)} for view in contents.each(COMPARISONS)
        ],
        "marks": MARKS,
        "cost": section(cost, ARCHIVE),
        "provenance": _provenance(contents, runs, settings),
    }  # fmt: skip


def _provenance(contents: Contents, runs: Sequence[Row], settings: Settings) -> dict[str, Any]:
    """Fingerprints and what they were made from, versions, seeds, and the settings of the first run with whole ones."""
    config, of = as_yaml(settings), "given to this report"
    for run in runs:
        with suppress(SettingsError):
            if there := settings_beside(run["artifact"].folder):
                config, of = as_yaml(there), f"of run {run['name']}"
                break
    whole = [(view, view.manifest) for view in contents.artifacts if view.manifest]
    rows = [
        {
            "artifact": view.name, "fingerprint": manifest.fingerprint,
            "made from": ", ".join(_made_from(view, contents)),
        }
        for view, manifest in whole
    ]  # fmt: skip
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    seeds = {manifest.settings.get("seed") for _, manifest in whole} - {None}
    return {
        "rows": rows, "versions": versions, "commands": list(dict.fromkeys(view.command for view, _ in whole)),
        "seeds": sorted(seeds) or [settings.seed],
        "config": config, "config_of": of,
    }  # fmt: skip


def _made_from(view: ArtifactView[Any], contents: Contents) -> Iterator[str]:
    """Each thing that an artifact was made from, with what it was known by, and whether there is another now."""
    manifest = finished(view)
    known = {name: (then, name, "fingerprint") for name, then in manifest.inputs.items()}
    if isinstance(manifest, ComparisonManifest):  # of targets, which may have grown, by when they were finished
        known = {
            title: (then, f"{TRANSFER.name}/{view.folder.name}-{title.removeprefix('transfer ')}", "finished")
            for title, then in manifest.inputs.items()
        }
    if isinstance(manifest, TransferManifest):
        for start, run in manifest.runs.items():
            known[f"run {run}"] = (manifest.extent.initialisations[start], f"{RUNS.name}/{run}", "fingerprint")
    now = {each.name: each.manifest for each in contents.artifacts if each.manifest}
    for name, (then, source, key) in known.items():
        has_changed = source in now and getattr(now[source], key) != then
        yield f"{name} {then}{' (changed since)' * has_changed}"


def _machine() -> list[str]:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [
        several(hardware.num_cores(), "cores"), size(hardware.memory_gib() * GIB) + " memory",
        ", ".join(gpus) or "no GPU", platform.platform(), f"Python {platform.python_version()}",
    ]  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
