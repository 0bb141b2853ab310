"""Report: everything that a workspace holds on one self-contained HTML page; needs no Ray and no network."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.errors import WorkspaceError
from raygenesis.report.archive import archive_section, failures_section
from raygenesis.report.artifact import Contents
from raygenesis.report.autoencoder import autoencoder_section
from raygenesis.report.comparison import comparison_section
from raygenesis.report.cost import cost_section
from raygenesis.report.groups import groups_section
from raygenesis.report.jobs import jobs_section
from raygenesis.report.neighbours import neighbours_section
from raygenesis.report.page import render
from raygenesis.report.parts import guarded, parts_of, problems_in, section
from raygenesis.report.patterns import patterns_section
from raygenesis.report.pictures import Gallery
from raygenesis.report.provenance import provenance_section
from raygenesis.report.runs import run_sections
from raygenesis.report.sweep import sweep_section
from raygenesis.report.transfer import MARKS, transfer_section
from raygenesis.settings import IntensitySettings, Settings, as_yaml
from raygenesis.studies.agreement import AGREEMENT_NOTE
from raygenesis.studies.semantics import SEMANTICS_NOTE
from raygenesis.text.amounts import GIB, several, size
from raygenesis.text.charts import Chart
from raygenesis.workspace import hardware
from raygenesis.workspace.artifacts import (
    ARCHIVE,
    AUTOENCODER,
    COMPARISONS,
    CROPS,
    EMBEDDINGS,
    INDEX,
    NEIGHBOURS,
    PATTERNS,
    RUNS,
    SWEEPS,
    TRANSFER,
)
from raygenesis.workspace.files import Place, publish
from raygenesis.workspace.workspace import Workspace


def report(workspace: Workspace, settings: Settings) -> Place:
    """Write `report/index.html` about whatever the workspace holds.

    settings: for what no artifact records. Returns the path of the page. Raises WorkspaceError if the workspace holds
    nothing.
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
    problems = [*(view.problem for view in contents.artifacts if view.problem), *problems_in(context)]
    lacking = (
        f"; {several(len(problems), 'parts')} of the page cannot be shown, the first: {problems[0]}" if problems else ""
    )
    say("report", f"{size(path.stat().st_size)}, {num_figures} figures, {watch.seconds:.1f} s → {path}{lacking}")
    return path


def _write_figures(folder: Place, context: Mapping[str, Any]) -> int:
    """Every figure of the page as SVG and PNG, in place of those that were there; returns the number of figures."""
    figures = {part.name: part for part in parts_of(context) if isinstance(part, Chart | Gallery)}
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


def _context(contents: Contents, settings: Settings) -> dict[str, Any]:
    """What the template shows."""
    workspace, runs = contents.workspace, run_sections(contents)
    autoencoder, patterns = contents[AUTOENCODER], contents[PATTERNS]
    intensity = _intensity_of(contents, settings.intensity)
    # A comparison's time is that of its targets.
    whole = [view.manifest for view in contents.artifacts if view.manifest and view.kind is not COMPARISONS]
    return {
        "workspace": str(workspace.root), "artifacts": contents.artifacts, "written": _now(), "machine": _machine(),
        "tiles": list(_tiles(contents)),
        "total": {key: sum(getattr(manifest, key) for manifest in whole) for key in ("seconds", "bytes")},
        "ndim": len(autoencoder.settings["autoencoder"]["input_shape"]) if autoencoder.record else 3,
        "example_id": next((one.volume_id for one in patterns.manifest.references), "") if patterns.manifest else "",
        # In the place of sections of which there are none.
        "first_of": {kind.name: contents[kind] for kind in (RUNS, SWEEPS, TRANSFER, COMPARISONS)},
        "archive": section(contents, [ARCHIVE], archive_section, workspace, intensity),
        "jobs": guarded(jobs_section, workspace, settings.prices),
        "failures": guarded(failures_section, workspace),
        "autoencoder": section(contents, [ARCHIVE, AUTOENCODER], autoencoder_section, workspace, autoencoder),
        "neighbours": section(
            contents, [ARCHIVE, EMBEDDINGS, INDEX, PATTERNS], neighbours_section, contents, intensity
        ),
        "groups": section(contents, [ARCHIVE, NEIGHBOURS], groups_section, workspace, contents[NEIGHBOURS], intensity),
        "patterns": section(contents, [ARCHIVE, PATTERNS], patterns_section, workspace, patterns),
        "runs": runs,
        "sweeps": [(view, guarded(sweep_section, view)) for view in contents.each(SWEEPS)],
        "transfers": [(view, guarded(transfer_section, view)) for view in contents.each(TRANSFER)],
        "comparisons": [(view, guarded(comparison_section, view, contents)) for view in contents.each(COMPARISONS)],
        "marks": MARKS, "semantics_note": SEMANTICS_NOTE, "agreement_note": AGREEMENT_NOTE,
        "cost": section(contents, [ARCHIVE], cost_section, workspace, settings),
        "provenance": provenance_section(contents, [run.view for run in runs], as_yaml(settings), settings.seed),
    }  # fmt: skip


def _tiles(contents: Contents) -> Iterator[tuple[str, int]]:
    """The counts at the top of the page, and what they are of."""
    if archive := contents[ARCHIVE].manifest:
        yield "scans", archive.counts.volumes
    if patterns := contents[PATTERNS].manifest:
        yield "patterns", patterns.counts.patterns
        yield "of them held out", patterns.counts.validation
    if crops := contents[CROPS].manifest:
        yield "random crops", crops.counts.patterns


def _intensity_of(contents: Contents, otherwise: IntensitySettings) -> IntensitySettings:
    """The intensities that the artifacts were made with."""
    for view in (contents[PATTERNS], contents[AUTOENCODER]):
        if view.record:
            return IntensitySettings.model_validate(view.settings["intensity"])
    return otherwise


def _machine() -> list[str]:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [
        several(hardware.num_cores(), "cores"), size(hardware.memory_gib() * GIB) + " memory",
        ", ".join(gpus) or "no GPU", platform.platform(), f"Python {platform.python_version()}",
    ]  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
