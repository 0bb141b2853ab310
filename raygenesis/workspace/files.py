"""Files and tables on a disk or in an object store: read, and published whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import xxhash

from raygenesis.errors import PassingError, WorkspaceError
from raygenesis.text.names import inner_path
from raygenesis.workspace.conditional import create
from raygenesis.workspace.faults import patiently, raise_passing
from raygenesis.workspace.lease import leased
from raygenesis.workspace.object_store import RemotePath, remote

Place = Path | RemotePath

BLOCK_BYTES = 2**20  # read at once for a checksum
# What file systems without syncing say, most of them of folders alone, such as on networks; they differ by system.
CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def as_place(location: str | Place) -> Place:
    """A folder on this machine, or a remote one where the location is a URL."""
    if re.match(r"(s3|gs):/(?!/)", str(location)):
        raise WorkspaceError(f"workspace {location}: a URL has two slashes, as in s3://bucket/prefix")
    return remote(str(location)) if "://" in str(location) else Path(str(location)).expanduser().absolute()


def below(folder: Place, name: str) -> Place:
    """The place of a name, with "/" between folders, inside of a folder; raises RaygenesisError for one outside."""
    return folder / str(inner_path(name))


def read_json(path: Place) -> dict[str, Any] | None:
    """The JSON object in a file, or None when there is no such file."""
    try:
        tree = json.loads(patiently(path.read_text, path))
    except FileNotFoundError:
        return None
    except ValueError:  # not JSON, or not even text
        tree = None
    if not isinstance(tree, dict):
        raise WorkspaceError(
            f"{path} is damaged (not a JSON object): remove it, then run again the command that made it"
        )
    return tree


def write_json(path: Place, tree: Mapping[str, Any]) -> None:
    publish(path, lambda aside: aside.write_text(json.dumps(tree, indent=2) + "\n"))


def read_table(path: Place, **options: Any) -> pa.Table:
    """A Parquet file as a table; of a remote one some columns, or the row groups that `filters` leave, come alone.

    Raises FileNotFoundError if it is not there.
    """
    if not isinstance(path, RemotePath):
        return patiently(lambda: pq.read_table(path, **options), path)
    if not options.keys() & {"columns", "filters"}:  # at once: it may be replaced meanwhile
        return pq.read_table(io.BytesIO(path.read_bytes()), **options)
    try:
        return pq.read_table(path.key, filesystem=path.filesystem, **options)
    except OSError as error:
        raise store_fault(path, error) or error from error


def write_table(path: Place, table: pa.Table, **options: Any) -> None:
    publish(path, lambda aside: pq.write_table(table, aside, **options))


def parquet_file(path: Place, **options: Any) -> pq.ParquetFile:
    """A Parquet file of which only what is asked for is read."""
    if isinstance(path, RemotePath):
        return pq.ParquetFile(path.key, filesystem=path.filesystem, **options)
    return patiently(lambda: pq.ParquetFile(path, **options), path)


def parquet_dataset(paths: Sequence[Place], schema: pa.Schema | None = None) -> ds.Dataset:
    """Parquet files of one folder as one table, of which only what is asked for is read."""
    remote_ones = [path for path in paths if isinstance(path, RemotePath)]
    if remote_ones:
        keys = [path.key for path in remote_ones]
        return ds.dataset(keys, schema=schema, format="parquet", filesystem=remote_ones[0].filesystem)
    return ds.dataset([str(path) for path in paths], schema=schema, format="parquet")


def store_fault(path: Place, error: Exception) -> WorkspaceError | None:
    """What a store or a disk failed in when pyarrow read by itself; None if something else is at fault."""
    if isinstance(path, RemotePath):
        return path.fault_of(error)
    try:
        raise_passing(error, path)
    except PassingError as passing:
        return passing
    return None


@contextmanager
def on_disk(path: Place) -> Iterator[Path]:
    """A file for code that reads files of this machine alone: itself, or a copy while the block runs.

    Raises FileNotFoundError if a remote one is not there.
    """
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        path.download(Path(scratch, path.name))
        yield Path(scratch, path.name)


def publish(path: Place, write: Callable[[Path], object], keep: bool = False) -> None:
    """Call `write` with a name aside, then rename: readers see the whole file or none. Failure leaves nothing.

    What is there is there to stay: files and folders are on the disk before the name is, and the name before this
    returns. keep: a file that is there by then stays, where the file system or store can tell. To a remote place
    `write` writes on this machine, and the result is uploaded, a folder's `zarr.json` last.
    """
    with _aside(path) as aside:
        try:
            write(aside)
            if isinstance(path, RemotePath):
                create(path, aside.read_bytes()) if keep else path.upload(aside)
                return
            sync_tree(aside)
            if not (keep and _link(aside, path)):
                os.replace(aside, path)
            sync(path.parent)
        except OSError as error:
            raise_passing(error, path)
            reason = os.strerror(error.errno) if error.errno else error
            raise WorkspaceError(f"{path} cannot be written: {reason}") from error


def make_folder(folder: Place) -> None:
    """Make a folder, with those above it, that is there to stay; it may be there already. Raises OSError."""
    if isinstance(folder, RemotePath):
        return
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync(each.parent)


def sync_tree(path: Path) -> None:
    """Have a file, or a folder with all that is in it, be on the disk. Raises OSError."""
    if path.is_dir():
        for below in path.iterdir():
            sync_tree(below)
    sync(path)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, be on the disk, where the file system can. Raises OSError."""
    try:
        number = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        if not path.is_dir():
            raise
        return  # a folder that may not be read, or a system that opens none
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(number)


def _link(aside: Path, path: Path) -> bool:
    """Give a file its name as well, unless the name is taken; whether the file system has such links."""
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError:
        return False
    return True


@contextmanager
def _aside(path: Place) -> Iterator[Path]:
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch, path.name)
        return
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield aside
    finally:
        with suppress(WorkspaceError):  # what writing failed in says more
            remove_tree(aside)


@contextmanager
def locked(folder: Place) -> Iterator[None]:
    """Hold a folder's lock, a file beside it; the operating system gives it back however the process ends.

    Of a remote folder it is a lease (`lease.py`). Raises WorkspaceError if another job holds it.
    """
    if isinstance(folder, RemotePath):
        with leased(folder):
            yield
        return
    path = folder.with_name(f".{folder.name}.lock")
    try:
        file = path.open("a+")
    except OSError as error:
        reason = f"{path} cannot be written ({error.strerror})"
        raise WorkspaceError(f"{reason}: choose a folder that you may write") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkspaceError(
                f"{folder} is being written by another job ({file.read().strip()}): wait until it ends, or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n")
        file.flush()
        yield


def remove_tree(path: Place) -> None:
    """Remove a file, or a folder with all that is in it; nothing may be there. Raises WorkspaceError if it stays."""
    if isinstance(path, RemotePath):
        path.remove_tree()
        return
    try:
        while path.is_dir() and not path.is_symlink():  # again where another process removes it too
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be removed: {error.strerror}") from None


def folder_bytes(folder: Place) -> int:
    """Bytes of all files below a folder."""
    if isinstance(folder, RemotePath):
        return folder.folder_bytes()
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())


def blake2b_of(path: Place) -> str:
    """Identity of a file's content, which nobody can give another file: blake2b of 16 bytes, 32 hex digits."""
    content = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            content.update(block)
    return content.hexdigest()


def xxh3_of(path: Path) -> str:
    """Checksum of a local file's content: xxh3_64, 16 hex digits."""
    content = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            content.update(block)
    return content.hexdigest()
