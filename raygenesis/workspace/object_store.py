"""Artifacts in object stores: what the project asks of a `pathlib.Path`, at `s3://bucket/prefix` or `gs://bucket/prefix`.

The standard environment says where and who: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION or AWS_DEFAULT_REGION,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE; for gs:// the application default credentials.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from raygenesis.errors import PassingError, WorkspaceError
from raygenesis.workspace.faults import ATTEMPTS, wait

CONNECT_SECONDS, STALL_SECONDS = 2, 10  # of one attempt: to reach the server, and without a byte from or to it
MARKER = "zarr.json"  # a folder without it is not a volume
UPLOADS = 8  # files of a folder at a time
DOWNLOAD_BYTES = 2**26  # in one request


class Stat(NamedTuple):
    st_size: int
    st_mtime_ns: int


class StoreSettings(NamedTuple):
    """What the connections of a process to a store are made of, but no secret."""

    scheme: str
    endpoint: str | None
    region: str | None
    attempts: int
    process: int


@dataclass(frozen=True, order=True)
class RemotePath:
    """A place in a bucket. Folders are only prefixes: making one does nothing, and one without files is not there.

    Whatever the store fails in, after retries, is a WorkspaceError; an object that is not there a FileNotFoundError.
    """

    scheme: str
    bucket: str
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.scheme}://{'/'.join((self.bucket, *self.parts))}"

    def __truediv__(self, below: str) -> RemotePath:
        names = [name for name in below.split("/") if name not in ("", ".")]
        if ".." in names:
            raise WorkspaceError(f"{self}: '..' in {below!r} has no meaning in an object store: give the whole URL")
        return RemotePath(self.scheme, self.bucket, (*self.parts, *names))

    @property
    def name(self) -> str:
        return self.parts[-1] if self.parts else ""

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.scheme, self.bucket, self.parts[:-1])

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        return self.with_name(PurePosixPath(self.name).with_suffix(suffix).name)

    def exists(self) -> bool:
        return self._info().type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        return self._info().type == pafs.FileType.File

    def is_dir(self) -> bool:
        return self._info().type == pafs.FileType.Directory

    def stat(self) -> Stat:
        info = self._info()
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(f"{self} does not exist")
        return Stat(info.size or 0, info.mtime_ns or 0)

    def folder_bytes(self) -> int:
        """Bytes of all files below, from one listing."""
        return sum(info.size or 0 for info in self._below(recursive=True))

    def read_bytes(self) -> bytes:
        """The whole content, never a piece of a longer one that has taken its place meanwhile.

        Raises PassingError where the object keeps changing, or its length and its content disagree.
        """
        for number in range(ATTEMPTS):
            with self.open() as file:  # pyarrow asks for the size, and then for so many bytes
                content = file.read()
            if len(content) == self.stat().st_size:
                return content
            wait(number)
        raise PassingError(
            f"{self} gave another number of bytes than it has in {ATTEMPTS} attempts: see to the store, then run the "
            "same command again"
        )

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    @contextmanager
    def open(self, mode: str = "rb") -> Iterator[Any]:
        """A seekable file (`pyarrow.NativeFile`) to read in a `with` block; only what is read of it is fetched."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: a remote file is opened with 'rb'")
        with self._store() as store, store.open_input_file(self.key) as file:
            yield _PatientFile(file)

    def write_bytes(self, content: bytes | pa.Buffer) -> None:
        """Readers see the whole content or what was there before."""
        with self._store() as store, store.open_output_stream(self.key) as file:
            file.write(content)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there once a file is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        with suppress(FileNotFoundError) if missing_ok else nullcontext(), self._store() as store:
            store.delete_file(self.key)

    def remove_tree(self) -> None:
        """Remove a folder or a file, if it is there; a volume stops being one first of all."""
        if self.is_file():
            self.unlink(missing_ok=True)
            return
        (self / MARKER).unlink(missing_ok=True)
        with suppress(FileNotFoundError), self._store() as store:
            store.delete_dir(self.key)

    def iterdir(self) -> Iterator[RemotePath]:
        return self.glob("*")

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What lies directly below and has a name like `pattern`, which names no folders."""
        return self._matching(pattern, recursive=False)

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """The same at any depth."""
        return self._matching(pattern, recursive=True)

    def upload(self, local: Path) -> None:
        """Copy a file, or a folder with its MARKER last of all, to here."""
        if not local.is_dir():
            self.write_bytes(pa.memory_map(str(local)).read_buffer())
            return
        files = sorted(path for path in local.rglob("*") if path.is_file() and path != local / MARKER)
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(lambda file: (self / file.relative_to(local).as_posix()).upload(file), files))
        if (local / MARKER).is_file():
            (self / MARKER).upload(local / MARKER)

    def download(self, local: Path) -> None:
        """Copy a file to this machine."""
        with self.open() as remote, local.open("wb") as file:
            while block := remote.read(DOWNLOAD_BYTES):
                file.write(block)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """For what pyarrow reads by itself, under `key`; what it fails in then, `fault_of` tells."""
        with self._store() as store:
            return store

    @property
    def key(self) -> str:
        """The place's name for `filesystem`."""
        return "/".join((self.bucket, *self.parts))

    def require_bucket(self) -> None:
        """Ask, once a process, whether the bucket is there and may be read. Raises WorkspaceError if not."""
        with self._store():
            pass

    def fault_of(self, error: Exception) -> WorkspaceError | None:
        """What to put right where the store failed, in one sentence; None if something else did."""
        return _store_fault(self, error)

    def _info(self) -> pafs.FileInfo:
        with self._store() as store:
            return store.get_file_info(self.key)

    def _below(self, recursive: bool) -> list[pafs.FileInfo]:
        with self._store() as store:
            return store.get_file_info(pafs.FileSelector(self.key, allow_not_found=True, recursive=recursive))

    def _matching(self, pattern: str, recursive: bool) -> Iterator[RemotePath]:
        for info in self._below(recursive):
            if fnmatchcase(info.base_name, pattern):
                yield RemotePath(self.scheme, self.bucket, tuple(info.path.split("/")[1:]))

    @contextmanager
    def _store(self) -> Iterator[pafs.FileSystem]:
        """The file system of the bucket, with what it fails in told in one sentence."""
        settings = store_settings(self.scheme)
        try:
            _require_bucket(self.bucket, *settings)
            yield _filesystem(*settings)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            fault = _store_fault(self, error)
            if fault is None:
                raise  # of a local file, or of what the object holds
            raise fault from error


class _PatientFile:
    """A file that tries again where pyarrow gives up at once.

    A store explains its errors in words, which pyarrow puts where the bytes that it asked for were to go. Where there
    is too little room for them, as in reading a small object, it no longer sees that the error may pass.
    """

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, nbytes: int | None = None) -> bytes:
        return self._again(lambda: self._file.read(nbytes))

    def read_at(self, nbytes: int, offset: int) -> bytes:
        return self._again(lambda: self._file.read_at(nbytes, offset))

    def _again(self, read: Callable[[], bytes]) -> bytes:
        for number in range(ATTEMPTS - 1):
            try:
                return read()
            except OSError as error:
                if "Failed to flush response stream" not in str(error):
                    raise
            wait(number)
        return read()


def remote(url: str) -> RemotePath:
    """The place that a URL names. Raises WorkspaceError for another scheme, no bucket, '..', or credentials in it."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("s3", "gs"):
        raise WorkspaceError(f"{scheme}:// is not supported: give a folder, s3://bucket/prefix or gs://bucket/prefix")
    bucket, _, key = rest.partition("/")
    if ":" in bucket or set(rest) & set("@?#"):  # not repeated, as a secret may be in it
        raise WorkspaceError(
            f"a {scheme}:// URL may hold no credentials or options (no ':' in the bucket, no '@', '?' or '#'): "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", bucket):
        raise WorkspaceError(f"{url}: {bucket!r} is not the name of a bucket: give {scheme}://bucket/prefix")
    return RemotePath(scheme, bucket) / key


def _store_fault(path: RemotePath, error: Exception) -> WorkspaceError | None:
    """What to put right where the store failed, by what pyarrow or tensorstore says; None if something else did."""
    message = str(error).splitlines()[0]
    for said, fault in _FAULTS.items():
        if re.search(said, message):
            store = store_settings(path.scheme).endpoint or "the store"
            kind = PassingError if fault == _NO_ANSWER else WorkspaceError
            return kind(
                f"{path}: "
                + fault.format(store=store, bucket=path.bucket, tries=ATTEMPTS, message=message.split(" [")[0])
            )
    return None


_NO_ANSWER = "{store} did not answer properly in {tries} attempts: check AWS_ENDPOINT_URL, the network and the server"
_FAULTS = {
    r"AWS Error NO_SUCH_BUCKET|: NoSuchBucket": (
        "{store} has no bucket {bucket}: make it, or correct the URL or AWS_ENDPOINT_URL"
    ),
    r"AWS Error (ACCESS_DENIED|SIGNATURE|INVALID_ACCESS_KEY|EXPIRED)|"
    r"\b(PERMISSION_DENIED|UNAUTHENTICATED): |OAuth2 access token|ExpiredToken|InvalidToken": (
        "{store} denies access: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (for gs:// "
        "GOOGLE_APPLICATION_CREDENTIALS), to those of an account that may read and write there"
    ),
    r"AWS Error (NETWORK|SERVICE_UNAVAILABLE|SLOW_DOWN|INTERNAL_FAILURE|REQUEST_TIMEOUT|\w+ \(HTTP status 5)|"
    r"retry attempts failed: |Failed to flush response stream|\b(UNAVAILABLE|DEADLINE_EXCEEDED): ": _NO_ANSWER,
    r"AWS Error|google::cloud|\[(http_response|curl)_code=": (
        "{message}: check the URL, AWS_ENDPOINT_URL and AWS_REGION"
    ),
}


def store_settings(scheme: str) -> StoreSettings:
    """The settings of a scheme's store, by the environment. Raises WorkspaceError if the endpoint is no plain URL."""
    if scheme == "gs":
        return StoreSettings(scheme, None, None, ATTEMPTS, os.getpid())
    endpoint = (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "").rstrip("/")
    if endpoint and ("@" in endpoint or not endpoint.startswith(("http://", "https://"))):
        raise WorkspaceError("AWS_ENDPOINT_URL must be a URL like https://host:port, without credentials")
    # Without an endpoint pyarrow asks the profile; other servers than Amazon's take any.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    return StoreSettings(scheme, endpoint or None, region, ATTEMPTS, os.getpid())


@functools.cache  # one a process, also of those that are forked: it holds connections, and so is never part of a path
def _filesystem(scheme: str, endpoint: str | None, region: str | None, attempts: int, process: int) -> pafs.FileSystem:
    if scheme == "gs":
        return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=5 * attempts))
    if endpoint:  # SeaweedFS, for one, keeps the encoding of a checksummed upload, which not every reader can undo
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=STALL_SECONDS,
        allow_delayed_open=True,  # small files in one request
    )


@functools.cache
def _require_bucket(bucket: str, *settings: Any) -> None:
    """A wrong bucket would otherwise look like one in which nothing is there."""
    if _filesystem(*settings).get_file_info(bucket).type == pafs.FileType.NotFound:
        raise OSError("AWS Error NO_SUCH_BUCKET")
