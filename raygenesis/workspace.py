"""Where artifacts live, their manifests, and publishing that is all or nothing.

A stage is (artifacts in, settings) → artifact out. Its folder holds `started.json` while it is being made and
`manifest.json` once it is whole; a reader that finds no manifest finds no artifact.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raygenesis._version import __version__
from raygenesis.errors import WorkspaceError
from raygenesis.files import Place, folder_bytes, locked, place, read_json, write_json
from raygenesis.gauges import set_gauge
from raygenesis.machine import hardware


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


@dataclass(frozen=True)
class Stage:
    """One artifact folder being made from `settings` and `inputs` (name → fingerprint of an earlier artifact).

    lasting: dotted keys that say how long it takes; extends: they may have been lower when the artifact was made, which
    is then not finished, but goes on. command: what makes it again, where that is not its verb and name alone: words
    after `raygenesis`, without workspace and settings; kept for readers and never compared.
    """

    folder: Place
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    lasting: frozenset[str] = frozenset()
    extends: bool = False
    command: tuple[str, ...] = ()

    def is_finished(self) -> bool:
        """Whether the artifact is whole and is the one these settings and inputs would make.

        Raises WorkspaceError naming the keys that differ if other settings or inputs made, or began, what is there.
        """
        for name in ("manifest.json", "started.json"):
            record = read_json(self.folder / name)
            if record is not None:
                if not all(isinstance(record.get(key), dict) for key in ("settings", "inputs")):
                    raise WorkspaceError(
                        f"{self.folder / name} is damaged (settings or inputs are missing): remove it, then run "
                        "again the command that made it"
                    )
                has_grown = self._compare(record)
                return name == "manifest.json" and not has_grown
        return False

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """The folder is this job's while the block runs; what an earlier attempt of the same settings left is kept.

        Raises WorkspaceError if another job holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(f"{self.folder} cannot be made: {error.strerror}") from None
        with locked(self.folder):
            self.is_finished()  # raises if another job has meanwhile made it with other settings
            started = {"settings": self.settings, "inputs": self.inputs, **self._command()}
            started["hardware"] = hardware().as_record()
            write_json(self.folder / "started.json", started)
            # From here on the artifact is being changed: nothing may be built on it until it is whole again.
            (self.folder / "manifest.json").unlink(missing_ok=True)
            yield

    def finish(self, counts: Mapping[str, Any], seconds: float, **facts: Any) -> dict[str, Any]:
        """Write the manifest, last of all, and return it.

        Of the facts `content` goes into the fingerprint, and `bytes` spares looking at every file.
        """
        if "failures" in counts:
            set_gauge("raygenesis_failures", counts["failures"], stage=self.folder.name)
        manifest = {
            "settings": self.settings,
            "inputs": self.inputs,
            "fingerprint": self.fingerprint(facts.pop("content", None)),
            "counts": dict(counts),
            "seconds": round(seconds, 3),
            "bytes": facts.pop("bytes", None) or folder_bytes(self.folder),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
            **self._command(),
            **self._hardware(),
            **facts,
        }
        # `started.json` stays: should the manifest be removed to mend a part, it tells what the others are.
        write_json(self.folder / "manifest.json", manifest)
        return manifest

    def _command(self) -> dict[str, Any]:
        return {"command": list(self.command)} if self.command else {}

    def _hardware(self) -> dict[str, Any]:
        """What it was made on, if that was the same from begin to end: rates are learnt from it."""
        there = hardware().as_record()
        started = read_json(self.folder / "started.json") or {}
        return {"hardware": there} if started.get("hardware") == there else {}

    def fingerprint(self, content: Any = None) -> str:
        """Identity of the artifact: its settings, inputs and, for artifacts read from outside, their content."""
        return digest({"settings": self.settings, "inputs": self.inputs, "content": content})

    def _compare(self, record: Mapping[str, Any]) -> bool:
        """Whether it is extended. Raises WorkspaceError if anything else is other than it was."""
        then, now = _flat(record["settings"]), _flat(json.loads(json.dumps(self.settings)))
        changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
        longer = [key for key in changed if key in self.lasting and then[key] < now[key]]
        if self.extends:
            changed = [key for key in changed if key not in longer]
        if changed:
            listed = ", ".join(f"{key} was {then.get(key)!r} and is now {now.get(key)!r}" for key in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            extend = "add --extend to go on for longer, " if changed == longer else ""
            raise WorkspaceError(
                f"{self.folder} was made with other settings ({listed}{more}): {extend}give the same settings, "
                "choose another name or workspace, or remove that folder to make it anew"
            )
        stale = [name for name, value in self.inputs.items() if record["inputs"].get(name) != value]
        if stale:
            raise WorkspaceError(
                f"{self.folder} was not made from the present {' and '.join(stale)}: remove that folder, and "
                "those made from it, to make them anew, or choose another workspace"
            )
        return self.extends and bool(longer)


def manifest_of(folder: Place, made_by: str) -> dict[str, Any]:
    """The manifest of a finished artifact. Raises WorkspaceError naming the verb that makes it when absent."""
    manifest = read_json(folder / "manifest.json")
    if manifest is None:
        raise WorkspaceError(f"{folder} is not there or not finished: run `raygenesis {made_by}` first")
    return manifest


def digest(tree: Any) -> str:
    """Sixteen hex digits that identify a JSON tree."""
    return digest_of_text([json.dumps(tree, sort_keys=True)])


def digest_of_text(pieces: Iterable[str]) -> str:
    """The digest of the JSON tree whose text comes in pieces, for trees that are never held."""
    identity = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        identity.update(piece.encode())
    return identity.hexdigest()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
