"""The commands that make a workspace's artifacts again, each with the settings that it was made with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from raygenesis.errors import SettingsError
from raygenesis.settings import command_line_of, merged, settings_beside
from raygenesis.workspace.files import Place
from raygenesis.workspace.workspace import Workspace

# What makes each kind of artifact, in the order data flows.
VERBS = {
    "archive": "ingest --scans SCANS", "autoencoder": "embed", "embeddings": "embed", "index": "discover",
    "patterns": "discover", "crops": "crop", "runs": "pretrain --name {name}", "sweeps": "sweep --name {name}",
    "transfer": "finetune --target TARGET.yaml --name {name}", "comparisons": "compare PLAN.yaml",
}  # fmt: skip
# What one command makes together.
TOGETHER = {"autoencoder": "embeddings", "embeddings": "autoencoder", "index": "patterns", "patterns": "index"}

Records = Mapping[str, Mapping[str, Any]]


def command_of(name: str, records: Records, workspace: Workspace) -> str:
    """The command that makes an artifact, or would make it.

    records: manifests by the artifacts' names, or what they were begun with; empty where there is nothing.
    """
    kind, _, given = name.partition("/")
    usual = VERBS[kind].format(name=given or "default").split()
    words = ["raygenesis", *records[name].get("command", usual), "--workspace", str(workspace.root)]
    return shlex.join([*words, *command_line_of(_settings_of(name, records, workspace.root / name))])


def _settings_of(name: str, records: Records, folder: Place) -> Mapping[str, Any]:
    """The tree of settings, or the sections of it, that an artifact was made with."""
    record = records[name]
    with suppress(SettingsError):  # the page says elsewhere that a run's settings are damaged
        if whole := settings_beside(folder):
            return whole.model_dump(mode="json")
    both = (records.get(TOGETHER.get(name, ""), {}), record)
    tree = merged(*(each.get("config") or each.get("settings", {}) for each in both))
    if method := tree.pop("method", None):  # as discovery calls how it has searched
        tree["index"] = tree.get("index", {}) | {"method": method}
    return tree
