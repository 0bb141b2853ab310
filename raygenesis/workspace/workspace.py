"""Where artifacts live, their manifests, and publishing that is all or nothing.

A stage is (artifacts in, settings) → artifact out. Its folder holds `started.json` while it is being made and
`manifest.json` once it is whole; a reader that finds no manifest finds no artifact.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, place


@dataclass(frozen=True)
class Workspace:
    """The folder of everything that a run leaves behind."""

    root: Place

    @classmethod
    def open(cls, location: str | Place) -> Workspace:
        """The workspace at `location`, a folder or s3://bucket/prefix, made when absent.

        Raises WorkspaceError if it cannot be written.
        """
        root = place(location)
        probe = root / f".write-test-{uuid.uuid4().hex}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise WorkspaceError(
                f"workspace {root} cannot be written ({error.strerror}): choose a folder that you may write"
            ) from None
        return cls(root)

    @classmethod
    def existing(cls, location: str | Place) -> Workspace:
        """The workspace at `location`, which must be there already."""
        root = place(location)
        if not root.is_dir():
            raise WorkspaceError(
                f"workspace {location} does not exist: make one with `raygenesis run` or `ingest`, or wait until the "
                "job that does has begun"
            )
        if not any(root.iterdir()):
            raise WorkspaceError(f"workspace {location} is empty: run `raygenesis run` or `raygenesis ingest` first")
        return cls(root)

    @property
    def private(self) -> Place:
        """What identifies patients: never part of what is shared."""
        return self.root / "private"

    @property
    def archive(self) -> Place:
        return self.root / "archive"

    @property
    def volumes(self) -> Place:
        return self.archive / "volumes"

    @property
    def catalog(self) -> Place:
        return self.archive / "catalog.parquet"

    @property
    def autoencoder(self) -> Place:
        return self.root / "autoencoder"

    @property
    def pca(self) -> Place:
        return self.root / "pca"

    @property
    def embeddings(self) -> Place:
        return self.root / "embeddings"

    @property
    def index(self) -> Place:
        return self.root / "index"

    @property
    def patterns(self) -> Place:
        return self.root / "patterns"

    @property
    def crops(self) -> Place:
        return self.root / "crops"

    @property
    def report(self) -> Place:
        return self.root / "report"

    def run(self, name: str) -> Place:
        return self.root / "runs" / _checked_name(name)

    def sweep(self, name: str) -> Place:
        return self.root / "sweeps" / _checked_name(name)

    def transfer(self, name: str) -> Place:
        return self.root / "transfer" / _checked_name(name)

    def comparison(self, name: str) -> Place:
        return self.root / "comparisons" / _checked_name(name)


def make_private(folder: Place) -> None:
    """Make a folder that, on a disk, nobody but its owner may look into."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(folder, Path):
        folder.chmod(0o700)


def _checked_name(name: str) -> str:
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise WorkspaceError(f"name {name!r}: use letters, digits, '-', '_' and '.', not starting with '.'")
    return name
