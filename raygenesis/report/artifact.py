"""One artifact of the workspace, as the page tells of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raygenesis.errors import RaygenesisError, ScanError, WorkspaceError
from raygenesis.text.amounts import duration
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace.files import Place

Row = Mapping[str, Any]

MEND_A_SCAN = "remove its folder below archive/volumes/ and ingest again"
REMEDY = "restore it from a copy, or remove the artifact's folder and make it anew"


@dataclass(frozen=True)
class ArtifactView:
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


def history_of(artifact: ArtifactView) -> Sequence[Row]:
    """A row an epoch. Raises WorkspaceError if what is finished has none, or its table is damaged."""
    history = read_metrics(artifact.folder)
    if artifact.manifest and not history:
        raise WorkspaceError(
            f"{artifact.folder / 'metrics.parquet'} is missing: restore it from a copy, or remove {artifact.folder} "
            "to make it anew"
        )
    return history


def column(rows: Sequence[Row], key: str) -> list[float | None]:
    return [row.get(key) for row in rows]
