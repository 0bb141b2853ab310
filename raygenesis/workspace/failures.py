"""Tables of failures: what each stage left out and why, and failures of one reason together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TypedDict

import pyarrow as pa

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.artifacts import ARTIFACTS
from raygenesis.workspace.files import Place, read_table
from raygenesis.workspace.workspace import Workspace

FAILURES_TABLE = "failures.parquet"
FAILURES = pa.schema([("source", pa.string()), ("reason", pa.string())])


class FailureRow(TypedDict):
    """A row of a table of failures: what failed, a scan or a volume, and why."""

    source: str
    reason: str


# What differs between failures, or corrections, of one cause: hashes and numbers.
NUMBER = re.compile(r"\b(?:[0-9a-f]{16}){1,2}\b|\d[\d,.]*")


def read_failures(folder: Place) -> list[FailureRow]:
    """The table of failures in an artifact's folder. Raises WorkspaceError if it is missing or damaged."""
    path = folder / FAILURES_TABLE
    try:
        return read_table(path, schema=FAILURES).to_pylist()
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        verb = next(artifact.verb for artifact in ARTIFACTS if artifact.name == folder.name)
        raise WorkspaceError(
            f"{path} is missing or damaged: remove manifest.json beside it and run `raygenesis {verb}`"
        ) from None


def every_failure(workspace: Workspace) -> dict[str, list[FailureRow]]:
    """The failures of each artifact whose stage has left a table of them, by the artifact's name."""
    folders = (workspace.folder(artifact) for artifact in ARTIFACTS if artifact.has_failures)
    return {folder.name: read_failures(folder) for folder in folders if (folder / FAILURES_TABLE).is_file()}


def alike(text: str) -> str:
    """The text with … for hashes and numbers: the same for what has one cause."""
    return NUMBER.sub("…", text)


def grouped(failures: Iterable[FailureRow]) -> list[tuple[str, list[str]]]:
    """Reasons and the sources that failed for each, most frequent first; … where those of one cause differ."""
    causes: dict[str, list[FailureRow]] = defaultdict(list)
    for row in failures:
        causes[alike(row["reason"])].append(row)
    ranked = sorted(causes.values(), key=len, reverse=True)
    return [(_in_common([row["reason"] for row in rows]), [row["source"] for row in rows]) for rows in ranked]


def _in_common(reasons: list[str]) -> str:
    """Reasons that are alike as one, with the hashes and numbers that all of them have."""
    places = zip(*(NUMBER.findall(reason) for reason in reasons), strict=True)
    shared = (numbers[0] if len(set(numbers)) == 1 else "…" for numbers in places)
    return NUMBER.sub(lambda _: next(shared), reasons[0])
