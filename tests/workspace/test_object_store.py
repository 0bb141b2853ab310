"""Remote paths: the same as local ones, through a store's bad seconds, and plain about its lasting faults."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from raygenesis.archive import reading
from raygenesis.archive.reading import open_array
from raygenesis.archive.writing import write_array
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.workspace import object_store as module
from raygenesis.workspace.conditional import Version, read_version, write_if
from raygenesis.workspace.files import locked
from raygenesis.workspace.object_store import RemotePath, remote
from tests.support.s3 import BUCKET, S3Server

VOXELS = np.arange(20 * 30 * 40, dtype=np.uint16).reshape(20, 30, 40)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        server.make_bucket()
        yield server
    finally:
        server.kill()


@pytest.fixture
def folder(server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    """A place of the test's own."""
    server.check()
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    reading._context.cache_clear()
    return remote(f"s3://{BUCKET}") / "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | RemotePath:
    return tmp_path if request.param == "local" else request.getfixturevalue("folder")


def written(path: RemotePath) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_array(Path(scratch, "array"), VOXELS, (4,) * VOXELS.ndim, (16,) * VOXELS.ndim, "zyx"[-VOXELS.ndim :])
        path.upload(Path(scratch, "array"))


def voxels(path: RemotePath) -> np.ndarray:
    return open_array(path).read()


def test_files_and_folders_are_what_they_are_on_a_disk(place: Path | RemotePath) -> None:
    folder = place / "runs" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "part-0.parquet"
    assert not file.exists() and not file.is_file() and not file.is_dir()
    file.write_text("größer", encoding="utf-8")
    assert file.exists() and file.is_file() and not file.is_dir()
    assert folder.exists() and folder.is_dir() and not folder.is_file()
    assert file.read_text(encoding="utf-8") == "größer" and file.stat().st_size == 8
    file.write_bytes(b"0123456789")
    assert file.read_bytes() == b"0123456789" and file.stat().st_size == 10
    with file.open("rb") as opened:
        assert (opened.seek(4), opened.read(3), opened.tell(), opened.read()) == (4, b"456", 7, b"789")
    empty = file.with_name("empty")
    empty.write_bytes(b"")
    assert empty.is_file() and empty.stat().st_size == 0 and empty.read_bytes() == b""
    empty.unlink()
    assert not empty.exists() and folder.is_dir()
    empty.unlink(missing_ok=True)
    for absent in (empty.unlink, empty.read_text, empty.read_bytes, empty.stat):
        with pytest.raises(FileNotFoundError):
            absent()


def test_listings_are_what_they_are_on_a_disk(place: Path | RemotePath) -> None:
    for name in ("b/part-1.parquet", "b/part-0.parquet", "b.c/x", "b/.part-2.parquet.aside", "b/d/part-3.parquet", "B"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)

    def names(paths: Any) -> list[str]:
        return [str(path).removeprefix(f"{place}/") for path in sorted(paths)]

    assert names(place.iterdir()) == ["B", "b", "b.c"]
    assert names((place / "b").glob("part-*.parquet")) == ["b/part-0.parquet", "b/part-1.parquet"]
    assert names((place / "b").glob(".*")) == ["b/.part-2.parquet.aside"]
    assert names((place / "b").glob("[!.]*")) == ["b/d", "b/part-0.parquet", "b/part-1.parquet"]
    assert names(place.rglob("part-*")) == ["b/d/part-3.parquet", "b/part-0.parquet", "b/part-1.parquet"]
    assert names(place.rglob("*")) == [
        "B", "b", "b/.part-2.parquet.aside", "b/d", "b/d/part-3.parquet", "b/part-0.parquet", "b/part-1.parquet",
        "b.c", "b.c/x",
    ]  # fmt: skip
    assert names((place / "none").glob("*")) == names((place / "none").rglob("*")) == []


@pytest.mark.parametrize("root", [Path("/bucket"), remote("s3://bucket")])
def test_names_are_what_they_are_on_a_disk(root: Path | RemotePath) -> None:
    path = root / "runs" / "a/config.yaml"
    assert path == root / "runs/a" / "config.yaml" == root / "runs//./a" / "config.yaml" and path != root
    assert len({path, root / "runs" / "a" / "config.yaml"}) == 1
    assert (path.name, path.parent.name, path.parent.parent.parent) == ("config.yaml", "a", root)
    assert path.with_name("x") == path.parent / "x"
    assert str(path) == f"{path}" == f"{root}/runs/a/config.yaml"
    order = [root / "a", root / "a" / "b", root / "a" / "c", root / "a-b", root / "a.b", root / "b"]
    assert sorted(reversed(order)) == order


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/a/b c", "gs://my.bucket_1/a"])
def test_a_url_comes_back(url: str) -> None:
    assert str(remote(url)) == str(remote(url + "/")) == url and eval(repr(remote(url))) == remote(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://bucket/a", "http:// is not supported: give a folder, s3://bucket/prefix or gs://"),
        ("s3://", "'' is not the name of a bucket"),
        ("s3:///a", "'' is not the name of a bucket"),
        ("s3://B_cket!/a", "is not the name of a bucket"),
        ("s3://bucket/a/../b", "'..' in 'a/../b' has no meaning in an object store"),
        ("s3://KEY:hidden@bucket/a", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://KEY:hid/den@bucket/a", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://KEY:hidden/a", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket/a?secret_key=hidden", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_what_is_no_place_is_refused_without_repeating_a_secret(url: str, said: str) -> None:
    with pytest.raises(WorkspaceError) as refusal:
        remote(url)
    assert said in str(refusal.value) and "hid" not in str(refusal.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "http://KEY:hidden@host"])
def test_an_endpoint_is_a_url_without_credentials(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(WorkspaceError, match="must be a URL like https://host:port, without credentials") as refusal:
        remote("s3://bucket").exists()
    assert "hidden" not in str(refusal.value)


def test_a_path_works_in_another_process(folder: RemotePath) -> None:
    file = folder / "file"
    file.write_text("content")  # by now this process has connections, which must not go with the path
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(RemotePath.read_text, file).result() == "content"


def test_parquet_is_read_in_pieces_and_damage_stays_what_it_is(folder: RemotePath, tmp_path: Path) -> None:
    table = pa.table({"a": range(1000), "b": ["x"] * 1000})
    pq.write_table(table, tmp_path / "table")
    (folder / "table").upload(tmp_path / "table")
    with (folder / "table").open() as file:
        assert pq.read_table(file, columns=["a"]).equals(table.select(["a"]))
    (folder / "table").write_bytes(b"PAR1")
    with pytest.raises(pa.ArrowInvalid), (folder / "table").open() as file:
        pq.read_table(file)


def volume(folder: Path) -> Path:
    """A volume, its own `zarr.json` at the top."""
    zarr.create_group(folder, zarr_format=3, attributes={"of": "test"})
    write_array(folder / "0", VOXELS, (8, 8, 8), (16, 16, 16), "zyx")
    return folder


def test_a_volume_is_uploaded_with_its_marker_last(
    folder: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, order, write = volume(tmp_path / "v"), [], RemotePath.write_bytes
    monkeypatch.setattr(RemotePath, "write_bytes", lambda self, content: (write(self, content), order.append(self)))
    folder.upload(local)
    files = [path for path in local.rglob("*") if path.is_file()]
    assert len(order) == len(files) and order[-1] == folder / "zarr.json"
    assert {str(path).removeprefix(str(folder)) for path in order} == {
        str(path).removeprefix(str(local)) for path in files
    }
    assert folder.folder_bytes() == sum(path.stat().st_size for path in files)
    assert np.array_equal(voxels(folder / "0"), VOXELS)


@pytest.mark.parametrize("content", [b"", b"x" * 11_000_000], ids=["empty", "in parts"])
def test_a_file_is_uploaded(folder: RemotePath, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    (folder / "file").upload(tmp_path / "file")
    assert (folder / "file").stat().st_size == len(content) and (folder / "file").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        (folder / "none").upload(tmp_path / "none")
    assert not (folder / "none").exists()


def test_half_a_volume_has_no_marker(folder: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, write = volume(tmp_path / "v"), RemotePath.write_bytes

    def fails_once(self: RemotePath, content: bytes) -> None:
        if self.name.startswith("c.1"):
            raise WorkspaceError("full")
        write(self, content)

    monkeypatch.setattr(RemotePath, "write_bytes", fails_once)
    with pytest.raises(WorkspaceError, match="full"):
        folder.upload(local)
    assert folder.is_dir() and not (folder / "zarr.json").exists()


def test_a_tree_is_removed_and_its_neighbours_stay(folder: RemotePath, tmp_path: Path) -> None:
    (folder / "v").upload(volume(tmp_path / "v"))
    (folder / "v.2").write_text("neighbour")
    (folder / "v").remove_tree()
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "v.2"]
    (folder / "v").remove_tree()
    (folder / "none").remove_tree()
    (folder / "v.2").remove_tree()  # a file
    assert not any(path.is_file() for path in folder.rglob("*"))


def test_arrays_are_read_in_place(folder: RemotePath) -> None:
    array = folder / "with a space, ä and %20" / "array"
    written(array)
    assert np.array_equal(voxels(array), VOXELS)
    generator = np.random.default_rng(0)
    corners = np.sort(generator.integers(0, 20, (12, 2, 3)), axis=1)
    regions = [tuple(slice(low, high + 1) for low, high in zip(*pair, strict=True)) for pair in corners.tolist()]
    for found, region in zip(open_array(array).begin_reading(regions)(), regions, strict=True):
        assert np.array_equal(found, VOXELS[region])


def test_damaged_arrays_are_told_as_on_a_disk(place: Path | RemotePath, tmp_path: Path) -> None:
    local = tmp_path / "local"
    write_array(local, VOXELS, (4, 4, 4), (16, 16, 16), "zyx")
    whole = (local / "c.0.1.0").read_bytes()
    turned = bytearray(whole)
    turned[300] ^= 1
    damages = {
        "cut": (whole[:100], "shard c.0.1.0 is cut short"),
        "index": (whole[:-1] + b"x", "a checksum in shard c.0.1.0 does not agree"),
        "chunk": (bytes(turned), "shard c.0.1.0"),
        "lost": (None, "shard c.0.1.0 is missing, or a chunk of it"),
    }
    for name, (content, said) in damages.items():
        array = place / name
        for file in local.iterdir():
            array.mkdir(exist_ok=True)
            if content is not None or file.name != "c.0.1.0":
                (array / file.name).write_bytes(content if file.name == "c.0.1.0" else file.read_bytes())
        with pytest.raises(ScanError, match=said) as fault:
            voxels(array)
        assert "\n" not in str(fault.value) and str(tmp_path) not in str(fault.value)
        assert np.array_equal(open_array(array).read([slice(0, 16)] * 3), VOXELS[:16, :16, :16])
        (array / "zarr.json").write_text("{")
        with pytest.raises(ScanError, match=r"its zarr\.json is damaged"):
            voxels(array)
        (array / "zarr.json").unlink()
        with pytest.raises(ScanError, match=r"its zarr\.json is missing"):
            voxels(array)


def test_what_takes_the_place_of_an_object_is_read(folder: RemotePath, tmp_path: Path) -> None:
    for number in range(3):
        write_array(tmp_path / f"{number}", VOXELS + np.uint16(number), (4, 4, 4), (16, 16, 16), "zyx")
        (folder / "array").upload(tmp_path / f"{number}")
        assert np.array_equal(voxels(folder / "array"), VOXELS + np.uint16(number))


def test_another_process_reads_an_array(folder: RemotePath) -> None:
    written(folder / "array")
    assert np.array_equal(voxels(folder / "array"), VOXELS)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert np.array_equal(pool.submit(voxels, folder / "array").result(timeout=120), VOXELS)


def test_keys_of_a_profile_are_found(folder: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder / "array")
    keys = {name: os.environ[name.upper()] for name in ("aws_access_key_id", "aws_secret_access_key")}
    lines = [f"{name}={value}" for name, value in keys.items()]
    (tmp_path / "credentials").write_text("\n".join(["[clinic]", *lines]))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "clinic")
    for name in keys:
        monkeypatch.delenv(name.upper())
    reading._context.cache_clear()
    assert np.array_equal(voxels(folder / "array"), VOXELS)


# As long as a store's own; more than the bytes of a small object.
WORDS = b"<Error><Code>InternalError</Code><Message>We encountered an internal error, try again.</Message></Error>"


@contextmanager
def faulty(endpoint: str, faults: list[str]) -> Iterator[str]:
    """A way to the server on which the first connections meet these faults.

    "503", or a "reset"; "cut": the answer breaks off after 100,000 bytes; "words": the first request for an object's
    bytes is answered by an error and its explanation.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            fault = faults.pop(0) if faults else None
            if fault == "reset":
                linger = b"\1\0\0\0\0\0\0\0"  # at once: the other side sees a reset, not an end
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif fault == "503":
                self.request.recv(2**16)
                self.request.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                with socket.create_connection((urlsplit(endpoint).hostname, urlsplit(endpoint).port)) as there:
                    back = threading.Thread(target=self._pass, args=(there, self.request, fault == "cut"))
                    back.start()
                    self._pass(self.request, there, words=fault == "words")
                    back.join()

        def _pass(self, source: socket.socket, target: socket.socket, cut: bool = False, words: bool = False) -> None:
            with suppress(OSError):  # the other direction has ended this one
                left = 100_000
                while data := source.recv(2**14):
                    if words and data.startswith(b"GET"):
                        answer = b"HTTP/1.1 500 Error\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(WORDS)
                        source.sendall(answer + WORDS)
                        break
                    target.sendall(data[:left] if cut else data)
                    left -= len(data)
                    if cut and left <= 0:
                        for end in (source, target):
                            end.shutdown(socket.SHUT_RDWR)
                        break
                target.shutdown(socket.SHUT_WR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def shutdown_request(self, request: Any) -> None:
            request.close()  # without the orderly end that would come before a reset

    with Server(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
        proxy.shutdown()


def test_a_busy_or_broken_connection_is_tried_again(folder: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    file, array, direct = folder / "file", folder / "array", module.store_settings("s3").endpoint
    file.write_text("before")
    written(array)
    acts = {
        "read": lambda: file.read_text() == "before",
        "write": lambda: (folder / "new").write_text("after") or (folder / "new").read_text() == "after",
        "read an array": lambda: np.array_equal(voxels(array), VOXELS),
        "upload": lambda: written(folder / "again") or np.array_equal(voxels(folder / "again"), VOXELS),
    }
    for act, succeeds in acts.items():
        faults: list[str] = []
        with faulty(direct, faults) as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            assert folder.is_dir()  # the bucket is known: the faults fall on the act itself
            module._filesystem.cache_clear()  # and so is not an open connection
            reading._context.cache_clear()
            faults += ["503", "reset"]
            assert succeeds(), act
            assert not faults, act


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(b"before", "words", id="small and explained", marks=pytest.mark.slow),
        pytest.param(bytes(range(256)) * 2000, "words", id="large and explained", marks=pytest.mark.slow),
        pytest.param(bytes(range(256)) * 2000, "cut", id="large and cut"),
    ],
)
def test_a_broken_answer_is_asked_for_again(
    folder: RemotePath, content: bytes, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, direct, faults = folder / "file", module.store_settings("s3").endpoint, []
    file.write_bytes(content)
    for act in (
        lambda opened: opened.read(),
        lambda opened: opened.read_at(len(content), 0),
        lambda opened: opened.read(3) + opened.read_at(2, 3) + opened.read_at(len(content) - 5, 5),
    ):
        with faulty(direct, faults) as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            assert folder.is_dir()
            module._filesystem.cache_clear()
            faults += [fault, fault]
            with file.open() as opened:
                assert act(opened) == content
            assert not faults


def test_a_store_that_only_explains_itself_is_given_up(folder: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    file, direct, faults = folder / "file", module.store_settings("s3").endpoint, []
    file.write_text("before")
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with faulty(direct, faults) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert folder.is_dir()
        module._filesystem.cache_clear()
        faults += ["words"] * 10
        with pytest.raises(WorkspaceError, match="did not answer properly in 2 attempts"):
            file.read_text()


def test_a_restart_of_the_server_is_waited_for(folder: RemotePath, server: S3Server) -> None:
    (folder / "file").write_text("before")
    written(folder / "array")
    server.kill()
    with ThreadPoolExecutor() as pool:
        read = pool.submit((folder / "file").read_text)
        wrote = pool.submit((folder / "new").write_text, "after")
        array = pool.submit(voxels, folder / "array")
        time.sleep(0.3)
        assert not (read.done() or wrote.done() or array.done())
        server.start()
        assert read.result() == "before" and np.array_equal(array.result(), VOXELS)
        wrote.result()
    assert (folder / "new").read_text() == "after"


def test_of_two_that_write_at_once_one_does(folder: RemotePath) -> None:
    """The bucket's own conditional puts, which locks are made of: of what is not there, and what is."""
    path, begin = folder / ".archive.lock", threading.Barrier(2)

    def write(content: bytes) -> Version | None:
        version = read_version(path)
        begin.wait()
        return write_if(path, content, version)

    with ThreadPoolExecutor(2) as pool:
        for number in range(4):
            contents = [b"one %d" % number, b"other %d" % number]
            written = dict(zip(contents, pool.map(write, contents), strict=True))
            (content,) = (each for each in contents if written[each] is not None)
            assert read_version(path) == written[content] and path.read_bytes() == content
            if number % 2:
                assert write_if(path, b"", written[content]) is not None
                assert write_if(path, b"late", written[content]) is None and path.read_bytes() == b""
    with locked(folder / "archive"):
        assert json.loads(path.read_bytes())["process"] == os.getpid()
    assert path.read_bytes() == b""


ACTS = {
    "exists": lambda folder: (folder / "file").exists(),
    "read": lambda folder: (folder / "file").read_text(),
    "write": lambda folder: (folder / "file").write_text("x"),
    "list": lambda folder: list(folder.rglob("*")),
    "remove": lambda folder: folder.remove_tree(),
    "read an array": voxels,
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    ("bucket", "changes", "said"),
    [
        ("no-such-bucket", {}, "has no bucket no-such-bucket: make it, or correct the URL or AWS_ENDPOINT_URL"),
        (BUCKET, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "denies access: set AWS_ACCESS_KEY_ID and AWS_SECRET"),
        (BUCKET, {"AWS_ACCESS_KEY_ID": "nobody"}, "denies access: set AWS_ACCESS_KEY_ID and AWS_SECRET"),
        (BUCKET, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "did not answer properly in 2 attempts: check AWS_ENDPO"),
    ],
    ids=["bucket", "secret", "key", "down"],
)
def test_a_lasting_fault_is_one_sentence(
    folder: RemotePath, bucket: str, changes: dict[str, str], said: str, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    begin = time.monotonic()
    with pytest.raises(WorkspaceError) as refusal:
        ACTS[act](remote(f"s3://{bucket}/a"))
    assert time.monotonic() - begin < 10
    message = str(refusal.value)
    assert message.startswith(f"s3://{bucket}/a") and said in message and "\n" not in message


def test_what_a_store_fails_in_once_an_array_is_known_is_no_fault_of_the_array(
    folder: RemotePath, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    written(folder / "array")
    array = open_array(folder / "array")
    server.kill()
    try:
        for act in (array.read, lambda: open_array(folder / "other")):
            with pytest.raises(WorkspaceError, match="did not answer properly in 2 attempts") as refusal:
                act()
            assert "\n" not in str(refusal.value) and "tensorstore" not in str(refusal.value)
    finally:
        server.start()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-and-wrong")
    reading._context.cache_clear()
    with pytest.raises(WorkspaceError, match="denies access") as refusal:
        voxels(folder / "array")
    assert "\n" not in str(refusal.value) and "hidden" not in str(refusal.value)


def test_a_server_that_hangs_is_given_up(folder: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    monkeypatch.setattr(module, "STALL_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        with pytest.raises(WorkspaceError, match="did not answer properly in 1 attempts"):
            folder.exists()
        assert time.monotonic() - begin < 9
