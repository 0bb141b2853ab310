"""Where artifacts live, their manifests, and publishing that is all or nothing.

A stage is (artifacts in, settings) → artifact out. Its folder holds `started.json` while it is being made and
`manifest.json` once it is whole; a reader that finds no manifest finds no artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raygenesis._version import __version__
from raygenesis.errors import WorkspaceError


@dataclass(frozen=True)
class Workspace:
    """The folder of everything that a run leaves behind."""

    root: Path

    @classmethod
    def open(cls, location: str | Path) -> Workspace:
        """The workspace at `location`, made when absent. Raises WorkspaceError if it cannot be written."""
        if "://" in str(location):
            raise WorkspaceError(f"workspace {location}: only folders of a mounted file system are supported so far")
        root = Path(location).expanduser().absolute()
        probe = root / f".write-test-{uuid.uuid4().hex}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WorkspaceError(
                f"workspace {root} cannot be written ({error.strerror}): choose a folder that you may write"
            ) from None
        return cls(root)

    @classmethod
    def existing(cls, location: str | Path) -> Workspace:
        """The workspace at `location`, which must be there already."""
        if not Path(location).expanduser().is_dir():
            raise WorkspaceError(f"workspace {location} does not exist: make one with `raygenesis run` or `ingest`")
        return cls.open(location)

    @property
    def archive(self) -> Path:
        return self.root / "archive"

    @property
    def volumes(self) -> Path:
        return self.archive / "volumes"

    @property
    def catalog(self) -> Path:
        return self.archive / "catalog.parquet"

    @property
    def autoencoder(self) -> Path:
        return self.root / "autoencoder"

    @property
    def embeddings(self) -> Path:
        return self.root / "embeddings"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def patterns(self) -> Path:
        return self.root / "patterns"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def run(self, name: str) -> Path:
        return self.root / "runs" / _checked_name(name)

    def sweep(self, name: str) -> Path:
        return self.root / "sweeps" / _checked_name(name)

    def transfer(self, name: str) -> Path:
        return self.root / "transfer" / _checked_name(name)


def _checked_name(name: str) -> str:
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise WorkspaceError(f"name {name!r}: use letters, digits, '-', '_' and '.', not starting with '.'")
    return name


@dataclass(frozen=True)
class Stage:
    """One artifact folder being made from `settings` and `inputs` (name → fingerprint of an earlier artifact)."""

    folder: Path
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]

    def is_finished(self) -> bool:
        """Whether the artifact is whole and is the one these settings and inputs would make.

        Raises WorkspaceError naming the keys that differ if other settings or inputs made, or began, what is there.
        """
        for name in ("manifest.json", "started.json"):
            record = read_json(self.folder / name)
            if record is not None:
                if not all(isinstance(record.get(key), dict) for key in ("settings", "inputs")):
                    raise WorkspaceError(
                        f"{self.folder / name} is damaged (settings or inputs are missing): remove {self.folder} to "
                        "make it anew"
                    )
                self._compare(record)
                return name == "manifest.json"
        return False

    def start(self) -> None:
        """Claim the folder for these settings; what an earlier attempt of the same settings left is kept."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(f"{self.folder} cannot be made: {error.strerror}") from None
        write_json(self.folder / "started.json", {"settings": self.settings, "inputs": self.inputs})
        # From here on the artifact is being changed: nothing may be built on it until it is whole again.
        (self.folder / "manifest.json").unlink(missing_ok=True)

    def finish(self, counts: Mapping[str, Any], seconds: float, **facts: Any) -> dict[str, Any]:
        """Write the manifest, last of all, and return it."""
        manifest = {
            "settings": self.settings,
            "inputs": self.inputs,
            "fingerprint": self.fingerprint(facts.pop("content", None)),
            "counts": dict(counts),
            "seconds": round(seconds, 3),
            "bytes": folder_bytes(self.folder),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
            **facts,
        }
        write_json(self.folder / "manifest.json", manifest)
        (self.folder / "started.json").unlink(missing_ok=True)
        return manifest

    def fingerprint(self, content: Any = None) -> str:
        """Identity of the artifact: its settings, inputs and, for artifacts read from outside, their content."""
        return digest({"settings": self.settings, "inputs": self.inputs, "content": content})

    def _compare(self, record: Mapping[str, Any]) -> None:
        then, now = _flat(record["settings"]), _flat(json.loads(json.dumps(self.settings)))
        changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
        if changed:
            listed = ", ".join(f"{key} was {then.get(key)!r} and is now {now.get(key)!r}" for key in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise WorkspaceError(
                f"{self.folder} was made with other settings ({listed}{more}): give the same settings, "
                "choose another name or workspace, or remove that folder to make it anew"
            )
        stale = [name for name, value in self.inputs.items() if record["inputs"].get(name) != value]
        if stale:
            raise WorkspaceError(
                f"{self.folder} was not made from the present {' and '.join(stale)}: remove that folder, and "
                "those made from it, to make them anew, or choose another workspace"
            )


def manifest_of(folder: Path, made_by: str) -> dict[str, Any]:
    """The manifest of a finished artifact. Raises WorkspaceError naming the verb that makes it when absent."""
    manifest = read_json(folder / "manifest.json")
    if manifest is None:
        raise WorkspaceError(f"{folder} is not there or not finished: run `raygenesis {made_by}` first")
    return manifest


def digest(tree: Any) -> str:
    """Sixteen hex digits that identify a JSON tree."""
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None when there is no such file."""
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:  # not JSON, or not even text
        tree = None
    if not isinstance(tree, dict):
        raise WorkspaceError(f"{path} is damaged (not a JSON object): remove {path.parent} to make it anew")
    return tree


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    publish(path, lambda aside: aside.write_text(json.dumps(tree, indent=2) + "\n"))


def write_table(path: Path, table: pa.Table, **options: Any) -> None:
    publish(path, lambda aside: pq.write_table(table, aside, **options))


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a name aside, then rename: readers see the whole file or none. Failure leaves nothing."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        write(aside)
        os.replace(aside, path)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        elif aside.exists():
            aside.unlink()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
