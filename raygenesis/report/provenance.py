"""The section on reproducibility: fingerprints, commands, versions, seeds and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from raygenesis.errors import SettingsError
from raygenesis.report.artifact import ArtifactView, Contents
from raygenesis.settings import as_yaml, settings_of_run
from raygenesis.text.tables import Rows
from raygenesis.transfer.initialisations import SEPARATOR
from raygenesis.workspace.artifacts import RUNS, TRANSFER
from raygenesis.workspace.manifest import ComparisonManifest, RunManifest, TransferManifest

PACKAGES = (
    "raygenesis", "ray", "torch", "numpy", "pyarrow", "hnswlib", "nibabel", "matplotlib",
)  # fmt: skip


@dataclass(frozen=True)
class ProvenanceSection:
    """rows: of the table of fingerprints. config: a tree of settings as YAML, and whose it is, `config_of`."""

    rows: Rows
    versions: Mapping[str, str]
    commands: Sequence[str]
    seeds: Sequence[int]
    config: str
    config_of: str


def provenance_section(
    contents: Contents, runs: Sequence[ArtifactView[RunManifest]], given: str, seed: int
) -> ProvenanceSection:
    """Fingerprints and what they were made from, versions, seeds, and the settings of the first run with whole ones.

    given: the settings of the report as YAML; seed: of them.
    """
    config, config_of = given, "given to this report"
    for run in runs:
        with suppress(SettingsError):
            if found := settings_of_run(run.folder):
                config, config_of = as_yaml(found), f"of run {run.folder.name}"
                break
    whole = [view for view in contents.artifacts if view.manifest]
    rows = [
        {
            "artifact": view.name, "fingerprint": view.finished.fingerprint,
            "made from": ", ".join(_inputs_of(view, contents)),
        }
        for view in whole
    ]  # fmt: skip
    seeds = {view.settings["seed"] for view in whole if "seed" in view.settings}
    seeds |= {view.settings.get("pretraining", {}).get("seed") for view in whole} - {None}
    return ProvenanceSection(
        rows=rows,
        versions={package: _version(package) for package in PACKAGES},
        commands=list(dict.fromkeys(view.command for view in whole)),
        seeds=sorted(seeds) or [seed],
        config=config,
        config_of=config_of,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _inputs_of(view: ArtifactView[Any], contents: Contents) -> Iterator[str]:
    """Each thing that an artifact was made from, with what it was known by, and whether there is another now."""
    manifest = view.finished
    known = {name: (then, name, "fingerprint") for name, then in manifest.inputs.items()}
    if isinstance(manifest, ComparisonManifest):  # of targets, which may have grown, by when they were finished
        known = {
            title: (then, f"{TRANSFER.name}/{view.folder.name}-{title.removeprefix('transfer ')}", "finished")
            for title, then in manifest.inputs.items()
        }
    if isinstance(manifest, TransferManifest):
        for start, run in manifest.runs.items():
            fingerprints = manifest.extent.initialisations[start].split(SEPARATOR)
            for one, then in zip(run.split(SEPARATOR), fingerprints, strict=True):
                known[f"run {one}"] = (then, f"{RUNS.name}/{one}", "fingerprint")
    now = {each.name: each.manifest for each in contents.artifacts if each.manifest}
    for name, (then, source, key) in known.items():
        has_changed = source in now and getattr(now[source], key) != then
        yield f"{name} {then}{' (changed since)' * has_changed}"
