"""Objects of a store that one of several jobs writes: conditional puts, by tensorstore, as pyarrow has none."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import tensorstore as ts

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.faults import MAX_WAIT_SECONDS
from raygenesis.workspace.object_store import STALL_SECONDS, RemotePath, StoreSettings, store_settings

# tensorstore gives its errors the Python types of their codes.
ERRORS = (ValueError, IndexError, NotImplementedError, RuntimeError, OSError)


class Version(NamedTuple):
    """What an object held when it was read, None where there was none, and what tells whether it does still."""

    content: bytes | None
    generation: bytes


def read_version(path: RemotePath) -> Version:
    """An object as it is now. Raises WorkspaceError where the store fails."""
    found = _wait(path, lambda store: store.read(path.name))
    return Version(found.value if found.state == "value" else None, found.stamp.generation)


def write_if(path: RemotePath, content: bytes, version: Version) -> Version | None:
    """Write an object if it is still as it was read; None where it is not, and stays.

    Raises WorkspaceError where the store fails.
    """
    written = _wait(path, lambda store: store.write(path.name, content, if_equal=version.generation))
    if written.generation:
        return Version(content, written.generation)
    now = read_version(path)  # ours after all, where the store did not get to say so
    return now if now.content == content else None


def create(path: RemotePath, content: bytes) -> None:
    """Write an object if there is none; one that another job has written meanwhile stays."""
    version = read_version(path)
    if version.content is None:
        write_if(path, content, version)


def location(folder: RemotePath | Path) -> dict[str, Any]:
    """Where a folder lies, as tensorstore is told."""
    if isinstance(folder, Path):
        return {"driver": "file", "path": f"{folder}/"}
    where = {"bucket": folder.bucket, "path": "".join(f"{part}/" for part in folder.parts)}
    if folder.scheme == "gs":
        return {"driver": "gcs", **where}
    _, endpoint, region, *_ = store_settings(folder.scheme)
    chosen = {"endpoint": endpoint, "aws_region": region}
    return {"driver": "s3", **where, **{name: value for name, value in chosen.items() if value}}


def store_resources(settings: StoreSettings) -> dict[str, Any]:
    """How tensorstore asks a store: how often again, and with which keys."""
    # A server that hangs is given up, as by pyarrow.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(STALL_SECONDS))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    kind = "gcs" if settings.scheme == "gs" else "s3"
    retries = {"max_retries": settings.attempts, "initial_delay": "1s", "max_delay": f"{MAX_WAIT_SECONDS}s"}
    keys = {"aws_credentials": _credentials()} if kind == "s3" else {}
    return {f"{kind}_request_retries": retries, **keys}


def _credentials() -> dict[str, str]:
    """Where tensorstore finds the keys; they are in nothing that it could print."""
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return {"type": "environment"}
    profile = os.environ.get("AWS_PROFILE")
    return {"type": "default", "profile": profile} if profile else {"type": "default"}


@functools.cache  # one a process and store, as it holds connections
def _context(settings: StoreSettings) -> ts.Context:
    return ts.Context(store_resources(settings))


def _open(folder: RemotePath) -> Any:
    return ts.KvStore.open(location(folder), context=_context(store_settings(folder.scheme))).result()


def _wait(path: RemotePath, ask: Any) -> Any:
    path.require_bucket()
    try:
        return ask(_open(path.parent)).result()
    except ERRORS as error:
        fault = path.fault_of(error) or WorkspaceError(f"{path} cannot be written: {str(error).splitlines()[0]}")
        raise fault from error
