"""Parts of the page, and what stands in the place of one that cannot be shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa

from raygenesis.errors import RaygenesisError, ScanError, WorkspaceError
from raygenesis.report.artifact import ArtifactView, Contents
from raygenesis.report.pictures import Gallery
from raygenesis.workspace.artifacts import Artifact

P = ParamSpec("P")
T = TypeVar("T")

MEND_A_SCAN = "remove its folder below archive/volumes/ and ingest again"
REMEDY = "restore it from a copy, or remove the artifact's folder and make it again"


@dataclass(frozen=True)
class Absent:
    """In the place of a part: the artifact that is `missing`, or a sentence, `problem`, on why it cannot be shown."""

    missing: ArtifactView[Any] | None = None
    problem: str = ""


@dataclass(frozen=True)
class ScanPictures:
    """Pictures of scans, None where there are none, and a sentence about those scans that are damaged."""

    gallery: Gallery | None
    damage: str = ""


def guarded(build: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Absent:
    """A part of the page as `build` returns it; where an artifact is damaged, what that is and what helps."""
    try:
        return build(*args, **kwargs)
    except WorkspaceError as error:  # which says itself what helps
        return Absent(problem=_first_line(error))
    except (RaygenesisError, OSError, pa.ArrowException) as error:
        remedy = MEND_A_SCAN if isinstance(error, ScanError) else REMEDY
        return Absent(problem=f"{_first_line(error).rstrip('.')}; {remedy}")


def section(
    contents: Contents, needs: Sequence[Artifact[Any]], build: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | Absent:
    """As `guarded`; where one of the artifacts that the section needs is not finished, the first of them."""
    missing = next((contents[kind] for kind in needs if not contents[kind].manifest), None)
    return Absent(missing) if missing else guarded(build, *args, **kwargs)


def parts_of(part: object) -> Iterator[object]:
    """A part of the page, and everything in it but the artifacts that it is about."""
    yield part
    if isinstance(part, ArtifactView):
        return
    below: Iterator[object] | Sequence[object] = ()
    if isinstance(part, Mapping):
        below = iter(part.values())
    elif isinstance(part, list | tuple):
        below = part
    elif is_dataclass(part):
        below = (getattr(part, field.name) for field in fields(part))
    for each in below:
        yield from parts_of(each)


def problems_in(page: object) -> list[str]:
    """Why parts of the page, or some of their pictures, cannot be shown."""
    problems = (
        part.problem if isinstance(part, Absent) else part.damage if isinstance(part, ScanPictures) else ""
        for part in parts_of(page)
    )
    return [problem.rstrip(".") for problem in problems if problem]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
