"""The files of an artifact's folder that say what it is: what it was begun with, and its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raygenesis.workspace.files import Place, write_json
from raygenesis.workspace.hardware import Hardware
from raygenesis.workspace.manifest import M, Manifest, Tree
from raygenesis.workspace.records import read_record

MANIFEST, STARTED = "manifest.json", "started.json"

# What every manifest that is read must have, though one that is being made is given it last of all, by `Stage.finish`.
REQUIRED = ("settings", "inputs", "fingerprint")


@dataclass(frozen=True, kw_only=True)
class Started:
    """What an artifact was begun with: settings and inputs, and command, hardware and format (see `Manifest`)."""

    settings: Tree
    inputs: Mapping[str, str]
    command: tuple[str, ...] | None = None
    hardware: Hardware | None = None
    format: int = 1


def read_manifest(folder: Place, kind: type[M]) -> M | None:
    """The manifest in a folder; None where it is not there or not finished. Raises WorkspaceError if it is damaged."""
    return read_record(folder / MANIFEST, kind, REQUIRED)


def write_manifest(folder: Place, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, as_tree(manifest))


def read_started(folder: Place) -> Started | None:
    """What an artifact was begun with; None where it was not. Raises WorkspaceError if the record is damaged."""
    return read_record(folder / STARTED, Started)


def write_started(folder: Place, started: Started) -> None:
    write_json(folder / STARTED, as_tree(started))


def as_tree(record: Manifest | Started) -> dict[str, Any]:
    """A record as its file has it: without command and hardware where there are none."""
    tree = asdict(record)
    return {key: value for key, value in tree.items() if value is not None or key not in ("command", "hardware")}
