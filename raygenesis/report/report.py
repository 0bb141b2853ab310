"""Report: everything that a workspace holds on one self-contained HTML page; needs no Ray and no network."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import torch

from raygenesis.config import Settings
from raygenesis.errors import WorkspaceError
from raygenesis.progress import mib, say
from raygenesis.report import sections
from raygenesis.report.cost import cost
from raygenesis.report.sections import Made, Row
from raygenesis.report.sweep import SYMBOLS, sweep
from raygenesis.report.transfer import comparison, transfer
from raygenesis.settings import as_yaml
from raygenesis.workspace import Place, Stopwatch, Workspace, publish, read_json

PACKAGES = (
    "raygenesis", "ray", "torch", "numpy", "pyarrow", "hnswlib", "nibabel", "matplotlib",
)  # fmt: skip
WORDS = {
    **SYMBOLS, "dice": "Dice", "iou": "IoU", "sd": "s.d.", "rankme": "RankMe",
}  # fmt: skip
# The commands that make what is not there yet; `{name}` is a run's, a sweep's or a target's.
VERBS = {
    "archive": "ingest --scans SCANS", "autoencoder": "embed", "embeddings": "embed", "index": "discover",
    "patterns": "discover", "crops": "crop", "runs": "pretrain --name {name}", "sweeps": "sweep --name {name}",
    "transfer": "finetune --target TARGET.yaml --name {name}", "comparisons": "compare {name}.yaml",
}  # fmt: skip


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
    page = _render(_context(workspace, settings, made))
    path = workspace.report / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, lambda aside: aside.write_text(page, encoding="utf-8"))
    say("report", f"{mib(path.stat().st_size)}, {watch.seconds:.1f} s → {path}")
    return path


def _artifacts(workspace: Workspace) -> dict[str, Made]:
    """Every stage by name, and every run, sweep and target as `runs/<name>` and so on, in the order data flows."""
    names = list(VERBS)[:6]
    for kind in list(VERBS)[6:]:
        folders = sorted(path for path in (workspace.root / kind).glob("[!.]*") if path.is_dir())
        names += [f"{kind}/{folder.name}" for folder in folders] or [kind]
    made = {}
    for name in names:
        kind, _, given = name.partition("/")
        verb, *options = VERBS[kind].split()
        words = [verb, *(option.format(name=given or "default") for option in options)]
        folder = workspace.root / name
        if (folder / "config.yaml").is_file():  # which another preset would be refused for
            words += ["--preset", str(folder / "config.yaml")]
        command = shlex.join(["raygenesis", *words, "--workspace", str(workspace.root)])
        records = (read_json(folder / file) for file in ("manifest.json", "started.json"))
        made[name] = Made(name, folder, *records, command)
    return made


def _context(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> dict[str, Any]:
    """What the template shows; a section without the artifacts it needs is only the first `missing` of them."""

    def section(build: Callable[..., dict[str, Any]], *needs: str) -> dict[str, Any]:
        missing = next((made[name] for name in needs if not made[name].manifest), None)
        return {"missing": missing} if missing else sections.guarded(build, workspace, settings, made)

    def each(kind: str, build: Callable[[Made], dict[str, Any]]) -> list[dict[str, Any]]:
        begun = [artifact for name, artifact in made.items() if name.partition("/")[0] == kind and artifact.record]
        return [{"artifact": artifact, **sections.guarded(build, artifact)} for artifact in begun]

    runs = sections.runs(made)
    whole = [artifact.manifest for artifact in made.values() if artifact.manifest]
    return {
        "workspace": str(workspace.root), "made": made, "written": _now(), "machine": _machine(),
        "total": {key: sum(manifest[key] for manifest in whole) for key in ("seconds", "bytes")},
        "archive": section(sections.archive, "archive"),
        "failures": sections.guarded(sections.failures, workspace),
        "autoencoder": section(sections.autoencoder, "archive", "autoencoder"),
        "neighbours": section(sections.neighbours, "archive", "embeddings", "index", "patterns"),
        "patterns": section(sections.patterns, "archive", "patterns"),
        "runs": runs,
        "sweeps": each("sweeps", sweep),
        "transfers": each("transfer", transfer), "comparisons": each("comparisons", comparison),
        "cost": section(cost, "archive"),
        "provenance": _provenance(made, runs, settings),
    }  # fmt: skip


def _provenance(made: Mapping[str, Made], runs: Sequence[Row], settings: Settings) -> dict[str, Any]:
    """Fingerprints and what they were made from, versions, seeds, and the settings of the newest run."""
    config = next((path for run in runs if (path := run["artifact"].folder / "config.yaml").is_file()), None)
    current = {name: artifact.manifest["fingerprint"] for name, artifact in made.items() if artifact.manifest}
    rows = []
    for artifact in made.values():
        if artifact.manifest:
            inputs = dict(artifact.manifest["inputs"])
            now = current | {"run": current.get(f"runs/{artifact.manifest.get('run')}")}
            stale = {name for name, fingerprint in inputs.items() if now.get(name, fingerprint) != fingerprint}
            texts = [f"{name} {value}{' (changed since)' * (name in stale)}" for name, value in inputs.items()]
            row = {"artifact": artifact.name, "fingerprint": artifact.manifest["fingerprint"]}
            rows.append({**row, "made from": ", ".join(texts)})
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    seeds = {a.manifest["settings"]["seed"] for a in made.values() if a.manifest and "seed" in a.manifest["settings"]}
    return {
        "rows": rows, "versions": versions, "seeds": sorted(seeds) or [settings.seed],
        "config": config.read_text() if config else as_yaml(settings),
        "config_of": f"of run {config.parent.name}" if config else "given to this report",
    }  # fmt: skip


def _machine() -> list[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [
        _counted({"CPUs": os.cpu_count()}), f"{memory / 2**30:.1f} GiB memory", ", ".join(gpus) or "no GPU",
        platform.platform(), f"Python {platform.python_version()}",
    ]  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _render(context: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    filters = (("size", _size), ("duration", _duration), ("number", _number), ("words", _words), ("counted", _counted))
    environment.filters.update(filters)
    return environment.get_template("page.html.j2").render(context)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 24 * 60:
        return f"{minutes // 60 // 24:,} d {minutes // 60 % 24:02d} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else str(value)  # a string may be markup
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _size(num_bytes: float) -> str:
    for unit in ("KiB", "MiB", "GiB"):
        num_bytes /= 2**10
        if num_bytes < 2**10:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 2**10:,.1f} TiB"


def _counted(counts: Mapping[str, int]) -> str:
    """`125 volumes, 1 part`: counts under their names."""
    parts = [(count, name.replace("_", " ")) for name, count in counts.items()]
    return ", ".join(f"{_number(count)} {name.removesuffix('s') if count == 1 else name}" for count, name in parts)


def _words(key: str) -> str:
    return WORDS.get(key) or " ".join(WORDS.get(word, word) for word in key.split("_"))
