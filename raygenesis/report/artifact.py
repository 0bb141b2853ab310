"""One artifact of the workspace, as the page shows it, and all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic

from raygenesis.errors import WorkspaceError
from raygenesis.report.commands import Record, command_of
from raygenesis.text.amounts import duration
from raygenesis.training.metrics import read_metrics
from raygenesis.training.records import EpochRow
from raygenesis.workspace.artifacts import (
    ARCHIVE,
    ARTIFACTS,
    COMPONENTS,
    CROPS,
    EMBEDDINGS,
    NEIGHBOURS,
    PATTERNS,
    SWEEPS,
    TRANSFER,
    Artifact,
)
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import M, RunManifest, Tree
from raygenesis.workspace.manifest_files import Started, read_started
from raygenesis.workspace.workspace import Workspace

# Whose last call's rate is shown: what is counted, its unit, and the count of what was spared.
RATES = {
    ARCHIVE: ("scans", "scans", "known"), EMBEDDINGS: ("new", "scans", ""), PATTERNS: ("patterns", "patterns", ""),
    NEIGHBOURS: ("added", "scans", ""),
    CROPS: ("patterns", "crops", ""), TRANSFER: ("trials", "trials", ""), SWEEPS: ("points", "points", ""),
}  # fmt: skip


@dataclass(frozen=True)
class ArtifactView(Generic[M]):
    """One artifact of the workspace: finished when it has a manifest, begun when it has a `started` record.

    name: what the page calls it. command: what makes it, or goes on with it. problem: why its records cannot be read.
    """

    kind: Artifact[M]
    name: str
    folder: Place
    manifest: M | None
    started: Started | None
    command: str
    problem: str = ""

    @property
    def record(self) -> M | Started | None:
        """What it was made with, or begun with."""
        return self.manifest or self.started

    @property
    def finished(self) -> M:
        """The manifest of an artifact that is finished."""
        assert self.manifest is not None  # the sections of what is not finished are left out
        return self.manifest

    @property
    def settings(self) -> Tree:
        """The sections of settings that it was made with, or begun with."""
        return self.record.settings if self.record else {}

    @property
    def holds(self) -> dict[str, int]:
        """The manifest's counts, under the names of what was learnt from."""
        if self.manifest is None:
            return {}
        counts = asdict(self.manifest.counts)
        learnt_from = self.manifest.store if isinstance(self.manifest, RunManifest) else "patterns"
        if self.kind is CROPS:
            learnt_from, counts["crops of each scan"] = "crops", counts["coordinates"]
            for name in ("references", "coordinates", "neighbours"):
                del counts[name]
        return {learnt_from if name == "patterns" else name: count for name, count in counts.items()}

    @property
    def rate(self) -> str:
        """What the last call did in a second, or the seconds that one took."""
        if self.manifest is None:
            return "–"
        counts, seconds = self.manifest.counts, self.manifest.seconds
        if isinstance(self.manifest, RunManifest) and self.manifest.speed:
            return f"{_per_second(self.manifest.speed.cubes_per_s)} cubes/s in steps"
        key, unit, spared = RATES.get(self.kind, ("", "", ""))
        done = getattr(counts, key, 0) - getattr(counts, spared, 0)
        if not done or not seconds:
            return "–"
        return (
            f"{_per_second(done / seconds)} {unit}/s" if done > seconds else f"{duration(seconds / done)}/{unit[:-1]}"
        )


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


@dataclass(frozen=True)
class Contents:
    """What a workspace holds. artifacts: in the order data flows; of a kind that it has none of, an empty one."""

    workspace: Workspace
    artifacts: tuple[ArtifactView[Any], ...]

    @classmethod
    def of(cls, workspace: Workspace) -> Contents:
        """Read every artifact's records; one that cannot be read costs that artifact alone."""
        named = {kind: workspace.folders(kind) if kind.is_named else [] for kind in ARTIFACTS}
        folders = [
            (kind, folder) for kind in ARTIFACTS for folder in named[kind] or [workspace.folder(kind, "default")]
        ]
        read = {folder: _records(kind, folder) for kind, folder in folders}
        records: dict[Place, Record] = {
            folder: record for folder, (manifest, started, _) in read.items() if (record := manifest or started)
        }
        views = (
            ArtifactView(
                kind, f"{kind.name}/{folder.name}" if named[kind] else kind.name, folder, manifest, started,
                command_of(kind, folder, records, workspace), problem,
            )
            for (kind, folder), (manifest, started, problem) in zip(folders, read.values(), strict=True)
        )  # fmt: skip
        # Principal components are an alternative to the auto-encoder: who has none does not lack them.
        return cls(workspace, tuple(view for view in views if view.kind is not COMPONENTS or view.record))

    def __getitem__(self, kind: Artifact[M]) -> ArtifactView[M]:
        """The artifact of a kind, or the first of several."""
        return next(view for view in self.artifacts if view.kind is kind)

    def each(self, kind: Artifact[M]) -> list[ArtifactView[M]]:
        """Those of a kind that are begun or finished, by name."""
        return [view for view in self.artifacts if view.kind is kind and view.record]


def _records(kind: Artifact[M], folder: Place) -> tuple[M | None, Started | None, str]:
    """Manifest and `started` record of an artifact, and why they cannot be read."""
    try:
        return kind.read(folder), read_started(folder), ""
    except WorkspaceError as error:
        return None, None, str(error)


def history_of(artifact: ArtifactView[Any]) -> Sequence[EpochRow]:
    """The rows of an artifact's training, one an epoch.

    Raises WorkspaceError if what is finished has none, or its table is damaged.
    """
    history = read_metrics(artifact.folder)
    if artifact.manifest and not history:
        raise WorkspaceError(
            f"{artifact.folder / 'metrics.parquet'} is missing: restore it from a copy, or remove {artifact.folder} "
            "to make it again"
        )
    return history


def column(rows: Sequence[Mapping[str, object]], key: str) -> list[float | None]:
    """A figure over epochs, None where an epoch has none."""
    values = (row.get(key) for row in rows)
    return [value if isinstance(value, int | float) else None for value in values]
