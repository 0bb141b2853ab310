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
from raygenesis.report.artifact import ArtifactView, Row, guarded
from raygenesis.report.charts import Chart
from raygenesis.report.commands import VERBS, command_of
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
from raygenesis.workspace.files import Place, publish, read_json
from raygenesis.workspace.workspace import Workspace

PACKAGES = (
    "raygenesis", "ray", "torch", "numpy", "pyarrow", "hnswlib", "nibabel", "matplotlib",
)  # fmt: skip


def report(workspace: Workspace, settings: Settings) -> Place:
    """Write `report/index.html` about whatever the workspace holds; `settings` fill in what no artifact records.

    Raises WorkspaceError if it holds nothing.
    """
    watch = Stopwatch()
    made = _artifacts(workspace)
    if not any(artifact.record for artifact in made.values()):
        raise WorkspaceError(
            f"workspace {workspace.root} holds nothing to report: run `raygenesis run` or `raygenesis ingest` first"
        )
    context = _context(workspace, settings, made)
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
    return [part[key].rstrip(".") for part in parts for key in ("problem", "lacking") if part.get(key)]


def _artifacts(workspace: Workspace) -> dict[str, ArtifactView]:
    """Every stage by name, and every run, sweep and target as `runs/<name>` and so on, in the order data flows."""
    names = list(VERBS)[:6]
    for kind in list(VERBS)[6:]:
        folders = sorted(path for path in (workspace.root / kind).glob("[!.]*") if path.is_dir())
        names += [f"{kind}/{folder.name}" for folder in folders] or [kind]
    manifests, started = (
        {name: read_json(workspace.root / name / file) or {} for name in names}
        for file in ("manifest.json", "started.json")
    )
    records = {name: manifests[name] or started[name] for name in names}
    return {
        name: ArtifactView(
            name, workspace.root / name, manifests[name], started[name], command_of(name, records, workspace)
        )
        for name in names
    }


def _context(workspace: Workspace, settings: Settings, made: Mapping[str, ArtifactView]) -> dict[str, Any]:
    """What the template shows; a section without the artifacts it needs is only the first `missing` of them."""

    def section(build: Callable[..., dict[str, Any]], *needs: str) -> dict[str, Any]:
        missing = next((made[name] for name in needs if not made[name].manifest), None)
        return {"missing": missing} if missing else guarded(build, workspace, settings, made)

    def each(kind: str, build: Callable[[ArtifactView], dict[str, Any]]) -> list[dict[str, Any]]:
        begun = [artifact for name, artifact in made.items() if name.partition("/")[0] == kind and artifact.record]
        return [{"artifact": artifact, **guarded(build, artifact)} for artifact in begun]

    runs = runs_in(made)
    # A comparison's time is that of its targets.
    whole = [made[name].manifest for name in made if made[name].manifest and not name.startswith("comparisons")]
    return {
        "workspace": str(workspace.root), "made": made, "written": _now(), "machine": _machine(),
        "total": {key: sum(manifest[key] for manifest in whole) for key in ("seconds", "bytes")},
        "archive": section(sections.archive, "archive"),
        "jobs": guarded(sections.jobs, workspace, settings.prices),
        "failures": guarded(sections.failures, workspace),
        "autoencoder": section(sections.autoencoder, "archive", "autoencoder"),
        "neighbours": section(neighbours, "archive", "embeddings", "index", "patterns"),
        "patterns": section(sections.patterns, "archive", "patterns"),
        "runs": runs,
        "sweeps": each("sweeps", sweep),
        "transfers": each("transfer", transfer), "comparisons": each("comparisons", comparison),
        "marks": MARKS,
        "cost": section(cost, "archive"),
        "provenance": _provenance(made, runs, settings),
    }  # fmt: skip


def _provenance(made: Mapping[str, ArtifactView], runs: Sequence[Row], settings: Settings) -> dict[str, Any]:
    """Fingerprints and what they were made from, versions, seeds, and the settings of the first run with whole ones."""
    config, of = as_yaml(settings), "given to this report"
    for run in runs:
        with suppress(SettingsError):
            if there := settings_beside(run["artifact"].folder):
                config, of = as_yaml(there), f"of run {run['name']}"
                break
    whole = [artifact for artifact in made.values() if artifact.manifest]
    rows = [
        {
            "artifact": artifact.name, "fingerprint": artifact.manifest.fingerprint,
            "made from": ", ".join(_made_from(artifact, made)),
        }
        for artifact in whole
    ]  # fmt: skip
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    seeds = {artifact.manifest.settings.get("seed") for artifact in whole} - {None}
    return {
        "rows": rows, "versions": versions, "commands": list(dict.fromkeys(artifact.command for artifact in whole)),
        "seeds": sorted(seeds) or [settings.seed],
        "config": config, "config_of": of,
    }  # fmt: skip


def _made_from(artifact: ArtifactView, made: Mapping[str, ArtifactView]) -> Iterator[str]:
    """Each thing that an artifact was made from, with what it was known by, and whether there is another now."""
    manifest = artifact.manifest
    known = {name: (then, name, "fingerprint") for name, then in manifest.inputs.items()}
    if artifact.name.startswith(
        "comparisons/"
    ):  # of targets, which may have grown, by the times when they were finished
        for title in list(known):
            target = f"{artifact.folder.name}-{title.removeprefix('transfer ')}"
            known[title] = (manifest.inputs[title], f"transfer/{target}", "finished")
    for start, run in manifest.get("runs", {}).items():
        known[f"run {run}"] = (manifest.extent["initialisations"][start], f"runs/{run}", "fingerprint")
    for name, (then, source, key) in known.items():
        now = made[source].manifest.get(key, then) if source in made else then
        yield f"{name} {then}{' (changed since)' * (now != then)}"


def _machine() -> list[str]:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [
        several(hardware.num_cores(), "cores"), size(hardware.memory_gib() * GIB) + " memory",
        ", ".join(gpus) or "no GPU", platform.platform(), f"Python {platform.python_version()}",
    ]  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
