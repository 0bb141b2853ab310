"""Manifests: what a finished artifact says of itself."""

from __future__ import annotations

from typing import Any

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, read_json


def manifest_of(folder: Place, made_by: str) -> dict[str, Any]:
    """The manifest of a finished artifact. Raises WorkspaceError naming the verb that makes it when absent."""
    manifest = read_json(folder / "manifest.json")
    if manifest is None:
        raise WorkspaceError(f"{folder} is not there or not finished: run `raygenesis {made_by}` first")
    return manifest
