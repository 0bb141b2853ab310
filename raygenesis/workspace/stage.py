"""A stage: (artifacts in, settings) → artifact out, published whole or not at all.

An artifact's folder holds `started.json` from when it is begun, and `manifest.json` once it is whole; a reader that
finds no manifest finds no artifact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic

from raygenesis._version import __version__
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.artifacts import Artifact
from raygenesis.workspace.faults import patiently
from raygenesis.workspace.files import Place, blake2b_of, folder_bytes, locked, make_folder, remove_tree, sync
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.hardware import Hardware, available
from raygenesis.workspace.manifest import M, Manifest, Tree
from raygenesis.workspace.manifest_files import MANIFEST, STARTED, Started, read_started, write_manifest, write_started


@dataclass(frozen=True)
class Stage(Generic[M]):
    """One artifact being made in `folder` from `settings` and `inputs` (name → fingerprint of an earlier artifact).

    lasting: dotted keys that say how long it takes; extends: they may have been lower when the artifact was made, which
    is then not finished, but goes on. command: what makes it again, where that is not its verb and name alone: words
    after `raygenesis`, without workspace and settings; kept for readers and never compared. later: inputs that earlier
    versions did not record, compared where there is a record of them. growing: inputs that may have changed since the
    artifact was made, which stays; what is begun and not whole is begun anew.
    """

    artifact: Artifact[M]
    folder: Place
    settings: Tree
    inputs: Mapping[str, str]
    lasting: frozenset[str] = frozenset()
    extends: bool = False
    command: tuple[str, ...] = ()
    later: frozenset[str] = frozenset()
    growing: frozenset[str] = frozenset()

    def finished(self) -> M | None:
        """The manifest, if the artifact is whole and is the one that these settings and inputs would make.

        Raises WorkspaceError naming the keys that differ if other settings or inputs made, or began, what is there.
        """
        manifest = self.artifact.read(self.folder)
        begun: Manifest | Started | None = manifest or read_started(self.folder)
        has_grown = begun is not None and self._compare(begun)
        return None if has_grown else manifest

    def begins_anew(self) -> bool:
        """Whether it was begun, and not finished, while a `growing` input was another: `claimed` removes that first."""
        begun = None if self.artifact.read(self.folder) else read_started(self.folder)
        return begun is not None and any(begun.inputs.get(name) != self.inputs[name] for name in self.growing)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """The folder is this job's while the block runs; what an earlier attempt of the same settings left is kept.

        Raises WorkspaceError if another job holds it.
        """
        try:
            make_folder(self.folder)
        except OSError as error:
            raise WorkspaceError(f"{self.folder} cannot be made: {error.strerror}") from None
        with locked(self.folder):
            self.finished()  # raises if another job has meanwhile made it with other settings
            if self.begins_anew():
                begun: list[Place] = list(self.folder.iterdir())
                for path in sorted(begun, key=lambda path: path.name == STARTED):  # what says so, last
                    remove_tree(path)
            started = Started(
                settings=self.settings, inputs=self.inputs, command=self.command or None, hardware=available(),
                format=self.artifact.format,
            )  # fmt: skip
            write_started(self.folder, started)
            # From here on the artifact is being changed: nothing may be built on it until it is whole again.
            (self.folder / MANIFEST).unlink(missing_ok=True)
            if isinstance(self.folder, Path):
                sync(self.folder)
            yield

    def finish(self, manifest: M, content: Any = None) -> M:
        """Publish the artifact: write its manifest, last of all, and return it as it is written.

        manifest: counts, seconds and what is its kind's own; the rest is filled in here, and `bytes` where it is 0.
        content: what else, as JSON, decides the fingerprint: that of an artifact which is read from outside. The bytes
        of what was made (`Artifact.identifying`) count as well.
        """
        if self.artifact.identifying:
            content = [content, self._identifying_bytes()]
        # `started.json` stays: should the manifest be removed to mend a part, it says what the others are.
        whole = replace(
            manifest, settings=self.settings, inputs=self.inputs, fingerprint=self.fingerprint(content),
            seconds=round(manifest.seconds, 3), bytes=manifest.bytes or folder_bytes(self.folder),
            finished=datetime.now(UTC).isoformat(timespec="seconds"), version=__version__,
            command=self.command or None, hardware=self._hardware(), format=self.artifact.format,
        )  # fmt: skip
        write_manifest(self.folder, whole)
        return whole

    def fingerprint(self, content: Any = None) -> str:
        """Identity of the artifact: its settings, inputs and content (see `finish`), and a format after the first."""
        later = {} if self.artifact.format == 1 else {"format": self.artifact.format}
        return digest({"settings": self.settings, "inputs": self.inputs, "content": content, **later})

    def _identifying_bytes(self) -> list[list[str]]:
        """Names and digests of the files that the artifact is known by, in order."""
        found = {path.name: path for pattern in self.artifact.identifying for path in self.folder.glob(pattern)}
        return [[name, patiently(partial(blake2b_of, found[name]), found[name])] for name in sorted(found)]

    def _hardware(self) -> Hardware | None:
        """What it was made on, if that was the same from beginning to end: rates are learnt from it."""
        started = read_started(self.folder)
        return available() if started is not None and started.hardware == available() else None

    def _compare(self, record: Manifest | Started) -> bool:
        """Whether it is extended. Raises WorkspaceError if anything else is other than it was."""
        if record.format != self.artifact.format:
            raise WorkspaceError(
                f"{self.folder} was made by {'a later' if record.format > self.artifact.format else 'an earlier'} "
                f"version, in format {record.format} where this one writes {self.artifact.format}: remove that folder, "
                "and those made from it, to make them anew, or choose another workspace"
            )
        then, now = _flat(record.settings), _flat(json.loads(json.dumps(self.settings)))
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
                "choose another name or workspace, or remove that folder to make it again"
            )
        compared = [name for name in self.inputs if name in record.inputs or name not in self.later]
        compared = [name for name in compared if name not in self.growing]
        stale = [name for name in compared if record.inputs.get(name) != self.inputs[name]]
        if stale:
            raise WorkspaceError(
                f"{self.folder} was not made from the present {' and '.join(stale)}: remove that folder, and "
                "those made from it, to make them again, or choose another workspace"
            )
        return self.extends and bool(longer)


def begun_in(artifact: Artifact[Any], folder: Place) -> Manifest | Started | None:
    """The record of the artifact in a folder, finished or begun; None where there is none."""
    return artifact.read(folder) or read_started(folder)


def settings_of(artifact: Artifact[Any], folder: Place) -> Tree | None:
    """The settings that made, or began, the artifact in a folder; None where there is none."""
    record = begun_in(artifact, folder)
    return None if record is None else record.settings


def _flat(tree: Tree, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
