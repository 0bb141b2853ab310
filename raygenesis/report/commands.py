"""The commands that make a workspace's artifacts again, each with the settings that it was made with."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from raygenesis.errors import SettingsError
from raygenesis.settings import command_line_of, merge, settings_of_run
from raygenesis.workspace.artifacts import (
    ARCHIVE,
    AUTOENCODER,
    COMPARISONS,
    COMPONENTS,
    EMBEDDINGS,
    INDEX,
    NEIGHBOURS,
    PATTERNS,
    PCA_COMMAND,
    TRANSFER,
    Artifact,
)
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import Manifest, Tree
from raygenesis.workspace.manifest_files import Started
from raygenesis.workspace.workspace import Workspace

Record = Manifest | Started

# The files of the user's that a verb takes.
FILES = {ARCHIVE: ("--scans", "SCANS"), TRANSFER: ("--target", "TARGET.yaml"), COMPARISONS: ("PLAN.yaml",)}


def command_of(kind: Artifact[Any], folder: Place, records: Mapping[Place, Record], workspace: Workspace) -> str:
    """The command that makes an artifact, or would make it.

    records: manifests by the artifacts' folders, or what they were begun with.
    """
    record = records.get(folder)
    # A comparison's name is that of its plan.
    name = ("--name", folder.name) if kind.is_named and kind is not COMPARISONS else ()
    verb = record.command if record and record.command else (kind.verb, *FILES.get(kind, ()), *name)
    settings = command_line_of(_settings_of(kind, folder, records, workspace))
    return shlex.join(["raygenesis", *verb, "--workspace", str(workspace.root), *settings])


def _settings_of(
    kind: Artifact[Any], folder: Place, records: Mapping[Place, Record], workspace: Workspace
) -> dict[str, Any]:
    """The tree of settings, or the sections of it, that an artifact was made with."""
    if folder in records:
        with suppress(SettingsError):  # the page says elsewhere that a run's settings are damaged
            if whole := settings_of_run(folder):
                return whole.model_dump(mode="json")
    folders = [*(workspace.folder(other) for other in _made_with(kind, records, workspace)), folder]
    tree = merge(*(_settings_in(records[each]) for each in folders if each in records))
    if method := tree.pop("method", None):  # as discovery calls how it has searched
        tree["index"] = tree.get("index", {}) | {"method": method}
    return tree


def _made_with(kind: Artifact[Any], records: Mapping[Place, Record], workspace: Workspace) -> Iterator[Artifact[Any]]:
    """What the command that makes an artifact makes besides: it takes the settings of both."""
    embedded = records.get(workspace.folder(EMBEDDINGS))
    encoder = COMPONENTS if embedded is not None and embedded.command == PCA_COMMAND else AUTOENCODER
    for together in ((encoder, EMBEDDINGS), (INDEX, NEIGHBOURS, PATTERNS)):
        if kind in together:
            yield from (other for other in together if other is not kind)


def _settings_in(record: Record) -> Tree:
    """The settings in a record: those of its pretrainings, where the artifact is made of several."""
    return getattr(record, "config", None) or record.settings
