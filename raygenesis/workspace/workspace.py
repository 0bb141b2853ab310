"""The workspace: the folder, on a disk or in an object store, that holds every artifact."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.artifacts import (
    ARCHIVE,
    AUTOENCODER,
    COMPARISONS,
    COMPONENTS,
    CROPS,
    EMBEDDINGS,
    INDEX,
    NEIGHBOURS,
    PATTERNS,
    RUNS,
    SWEEPS,
    TRANSFER,
    Artifact,
)
from raygenesis.workspace.files import Place, as_place, make_folder

# Nothing of a workspace goes with a job's code (`ray job submit --working-dir`), or into a repository.
IGNORE_FILES = (".gitignore", ".rayignore")


@dataclass(frozen=True)
class Workspace:
    """The folder of everything that a run leaves behind."""

    root: Place

    @classmethod
    def open(cls, location: str | Place) -> Workspace:
        """The workspace at `location`, a folder or s3://bucket/prefix, made when absent.

        Raises WorkspaceError if it cannot be written.
        """
        root = as_place(location)
        probe = root / f".write-test-{uuid.uuid4().hex}"
        try:
            is_new = not root.is_dir() or not any(root.iterdir())
            root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
            if isinstance(root, Path) and is_new:  # in a folder of something else all of that would be ignored too
                _keep_here(root)
        except OSError as error:
            raise WorkspaceError(
                f"workspace {root} cannot be written ({error.strerror}): choose a folder that you may write"
            ) from None
        return cls(root)

    @classmethod
    def existing(cls, location: str | Place) -> Workspace:
        """The workspace at `location`, which must be there already."""
        root = as_place(location)
        if not root.is_dir():
            raise WorkspaceError(
                f"workspace {location} does not exist: make one with `raygenesis run` or `ingest`, or wait until the "
                "job that does has begun"
            )
        if all(path.name in IGNORE_FILES for path in root.iterdir()):
            raise WorkspaceError(f"workspace {location} is empty: run `raygenesis run` or `raygenesis ingest` first")
        return cls(root)

    @property
    def private(self) -> Place:
        """What identifies patients: never part of what is shared."""
        return self.root / "private"

    @property
    def report(self) -> Place:
        return self.root / "report"

    @property
    def volumes(self) -> Place:
        return self.archive / "volumes"

    @property
    def catalog(self) -> Place:
        return self.archive / "catalog.parquet"

    def folder(self, artifact: Artifact[Any], name: str | None = None) -> Place:
        """The folder of an artifact; name: which one, of a kind of which there may be several.

        Raises WorkspaceError if that is no name.
        """
        folder = self.root / artifact.name
        return folder / _checked_name(name or "") if artifact.is_named else folder

    def folders(self, artifact: Artifact[Any]) -> list[Place]:
        """The folders of those of a kind that there are, finished or not, by name; whatever a folder is called.

        artifact: of a kind of which there may be several.
        """
        folders: list[Place] = list((self.root / artifact.name).glob("[!.]*"))
        return sorted((folder for folder in folders if folder.is_dir()), key=lambda folder: folder.name)

    @property
    def archive(self) -> Place:
        return self.folder(ARCHIVE)

    @property
    def autoencoder(self) -> Place:
        return self.folder(AUTOENCODER)

    @property
    def pca(self) -> Place:
        return self.folder(COMPONENTS)

    @property
    def embeddings(self) -> Place:
        return self.folder(EMBEDDINGS)

    @property
    def index(self) -> Place:
        return self.folder(INDEX)

    @property
    def neighbours(self) -> Place:
        return self.folder(NEIGHBOURS)

    @property
    def patterns(self) -> Place:
        return self.folder(PATTERNS)

    @property
    def crops(self) -> Place:
        return self.folder(CROPS)

    def run(self, name: str) -> Place:
        return self.folder(RUNS, name)

    def sweep(self, name: str) -> Place:
        return self.folder(SWEEPS, name)

    def transfer(self, name: str) -> Place:
        return self.folder(TRANSFER, name)

    def comparison(self, name: str) -> Place:
        return self.folder(COMPARISONS, name)


def make_private(folder: Place) -> None:
    """Make a folder that, on a disk, nobody but its owner may look into."""
    make_folder(folder)
    if isinstance(folder, Path):
        folder.chmod(0o700)


def _keep_here(root: Path) -> None:
    for name in IGNORE_FILES:
        (root / name).write_text("*\n")


def _checked_name(name: str) -> str:
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise WorkspaceError(f"name {name!r}: use letters, digits, '-', '_' and '.', not starting with '.'")
    return name
