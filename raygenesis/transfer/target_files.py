"""What a target's files hold: results that were learnt from other bytes are never mixed with those of the present ones.

A file is read once: its digest is kept beside its size and times in the workspace's `private/` folder, and holds as
long as these are the same (`--rehash` has every file read again).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from raygenesis.archive.formats.readers import format_named
from raygenesis.cluster import fan_out
from raygenesis.cluster.progress import progress
from raygenesis.errors import ScanError
from raygenesis.transfer.examples import Target
from raygenesis.workspace.faults import patiently
from raygenesis.workspace.files import Place, blake2b_of, read_table, write_table
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.workspace import Workspace, make_private

FILES_PER_TASK = 32
TARGET_FILES = "the target's files"  # in the sentence of an error that lasts

# Files that were read, with the companions that each names (such as the voxels of a MetaImage header).
DIGESTS = pa.schema(
    [
        ("path", pa.string()),
        ("companions", pa.list_(pa.string())),
        ("stamp", pa.string()),  # of the sizes and times of all of them
        ("content", pa.string()),  # digest of the bytes of all of them
    ]
)


@dataclass(frozen=True)
class FileDigest:
    """A row of the table (schema DIGESTS)."""

    path: str
    companions: tuple[str, ...]
    stamp: str
    content: str

    @property
    def is_present(self) -> bool:
        """Whether the files are as they were, by their sizes and times. Raises PassingError."""
        return self.stamp == patiently(lambda: _stamp([self.path, *self.companions]), TARGET_FILES)


def digest_of_content(target: Target, workspace: Workspace) -> str:
    """Identity of the bytes of all files of a target: images, label maps, and what these name.

    Raises PassingError where a file cannot be reached.
    """
    paths = [str(path) for path in _files_of(target)]
    known = {row.path: row for row in _read(_table(workspace))}  # also of other targets, which may be out of reach
    lacking = [path for path in paths if path not in known or not known[path].is_present]
    if lacking:
        blocks = [lacking[first : first + FILES_PER_TASK] for first in range(0, len(lacking), FILES_PER_TASK)]
        with progress("finetune", len(lacking), "files hashed") as ticker:
            for found in fan_out.each(digests_of, blocks):
                known |= {row.path: row for row in found}
                ticker.advance(len(found))
        make_private(workspace.private)
        rows = [vars(known[path]) for path in sorted(known)]
        write_table(_table(workspace), pa.Table.from_pylist(rows, DIGESTS))
    return digest([known[path].content for path in paths])


def forget_digests(workspace: Workspace) -> None:
    """Have every file be read again, whatever its size and times."""
    _table(workspace).unlink(missing_ok=True)


def digests_of(paths: Sequence[str]) -> list[FileDigest]:
    """Read files and what they name: in a task, as it parses their headers."""
    return [patiently(lambda path=path: _digest_of(path), TARGET_FILES) for path in paths]  # type: ignore[misc]


def _digest_of(path: str) -> FileDigest:
    companions = tuple(str(each) for each in _companions(Path(path)) if each.is_file())
    files = [path, *companions]
    stamp = _stamp(files)
    content = digest([blake2b_of(Path(file)) if Path(file).is_file() else None for file in files])
    return FileDigest(path, companions, stamp, content)


def _companions(path: Path) -> Sequence[Path]:
    known = format_named(path.name)
    try:
        return known.companions(path) if known is not None and path.is_file() else ()
    except ScanError:
        return ()  # reported when it is read


def _stamp(paths: Iterable[str]) -> str:
    """Sizes and times of files; the time of a change of their entry too, which no copy can take along."""
    stats = (Path(path).stat() if Path(path).is_file() else None for path in paths)
    return digest([stat and [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in stats])


def _files_of(target: Target) -> list[Path]:
    """The files of a target's images and labels, each once, in order."""
    found = dict.fromkeys(path for example in target.examples for path in example.image.paths)
    labels = [example.label for example in target.examples if example.label is not None]
    return list(found | dict.fromkeys(path for label in labels for path in _paths_in(label)))


def _paths_in(label: Any) -> Iterator[Path]:
    for field in fields(label):
        value = getattr(label, field.name)
        yield from (each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, Path))


def _table(workspace: Workspace) -> Place:
    return workspace.private / "target-files.parquet"  # paths may name patients


def _read(path: Place) -> list[FileDigest]:
    try:
        rows = read_table(path, schema=DIGESTS).to_pylist()
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return []  # it only spares reading
    return [FileDigest(**{**row, "companions": tuple(row["companions"])}) for row in rows]
