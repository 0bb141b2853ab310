"""A stage: one artifact being made, and published all or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from raygenesis._version import __version__
from raygenesis.cluster.gauges import set_gauge
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, folder_bytes, locked, read_json, write_json
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.hardware import available


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
            started["hardware"] = available().as_record()
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
        there = available().as_record()
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


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
