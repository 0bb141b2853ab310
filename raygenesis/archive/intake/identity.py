"""Names that identify patients, kept apart from the archive.

The archive holds keyed hashes only. What links them to patients and files, the key and the table of sources, lies in
the workspace's `private/` folder: an archive can be shared without it, and without it nobody finds the way back.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from raygenesis.archive.intake.survey import Scan, without_ending
from raygenesis.cluster import environment
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import publish
from raygenesis.workspace.workspace import Workspace, make_private

KEY_BYTES = 32
BIDS_SUBJECT = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+")


@dataclass(frozen=True)
class Identity:
    """Turns names into what the archive may hold: a keyed hash, or with `keep_ids` the name itself."""

    key: bytes
    keep_ids: bool = False

    def subject(self, name: str) -> str:
        return self._hashed("subject", name)

    def source(self, name: str, path: str = "") -> str:
        """What the archive calls a scan of that name; with `keep_ids` its path, where that is not its name."""
        return path or name if self.keep_ids else self._hashed("source", name)

    def _hashed(self, kind: str, name: str) -> str:
        if self.keep_ids:
            return name
        return hashlib.blake2b(name.encode(), key=self.key, person=kind.encode(), digest_size=8).hexdigest()


def open_identity(workspace: Workspace, keep_ids: bool) -> Identity:
    """The identity of a workspace; its key is made, for its owner alone, as long as there is no catalogue.

    Jobs that make one at the same time get the same. Raises WorkspaceError if the key is damaged or lost: another one
    would give every subject another name.
    """
    if keep_ids:
        return Identity(b"", keep_ids)
    folder = workspace.private
    path = folder / "key"
    try:
        key = bytes.fromhex(path.read_text())
    except FileNotFoundError:
        if workspace.catalog.is_file():
            raise WorkspaceError(
                f"{path} is gone, and the archive's subjects are named by it: put it back, or start a new workspace"
            ) from None
        make_private(folder)
        new = secrets.token_bytes(KEY_BYTES).hex()
        publish(path, lambda aside: _write_private(aside, new), keep=True)
        key = bytes.fromhex(path.read_text())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise WorkspaceError(
            f"{path} is damaged (expected {2 * KEY_BYTES} hex digits): put the right one back, or start a new workspace"
        )
    return Identity(key)


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def name_for_log(path: str, name: str = "", identity: Identity | None = None) -> str:
    """What a message calls a scan: its path, but on a joined cluster what the archive calls it.

    Others may read the logs of a cluster, and paths may name patients. Where there is no key yet, the name is left out.
    """
    if not environment.is_joined():
        return path
    return identity.source(name or path, path) if identity else "[a name that is left out of a cluster's log]"


def subject_of(scan: Scan, pattern: str | None) -> str:
    """Whose scan it is: the pattern's group in its path, else DICOM's patient id, else BIDS' `sub-…`, else the path."""
    if pattern is None and scan.patient:
        return scan.patient
    return subject_in(scan.source, pattern)


def subject_in(source: str, pattern: str | None) -> str:
    """The subject that a path names: the pattern's group, else BIDS' `sub-…`, else the path without its ending."""
    found = re.search(pattern, source) if pattern else BIDS_SUBJECT.search(source)
    subject = found and found.group(min(found.re.groups, 1))
    return subject or without_ending(source)
