"""A private folder with a short path, and enough open files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from raygenesis.cluster import machine
from raygenesis.errors import ClusterError


@pytest.fixture(autouse=True)
def _base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(machine, "FALLBACK", tmp_path)


def test_nobody_else_enters_where_rays_folder_is(tmp_path: Path) -> None:
    own = machine.ray_folder().parent
    assert own.parent == tmp_path and own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)
    assert machine.ray_folder().parent == own and own.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_somebody_else_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    expected = tmp_path / f"raygenesis-{os.getuid()}"
    expected.symlink_to(elsewhere)
    first = machine.ray_folder().parent
    expected.unlink()
    expected.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    expected.rename(tmp_path / f"raygenesis-{os.getuid()}")
    second = machine.ray_folder().parent
    for own in (first, second):
        assert own.parent == tmp_path and own.name.startswith("rg-") and own.stat().st_mode & 0o777 == 0o700
    assert first != second and not list(elsewhere.iterdir())


def test_the_paths_of_sockets_are_short_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = Path("/var/tmp"), tmp_path / ("x" * 80)
    long.mkdir()
    for value, expected in ((short, short), (long, tmp_path), (tmp_path / "missing", tmp_path)):
        monkeypatch.setenv("TMPDIR", str(value))
        assert machine.temporary_base() == expected
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert machine.temporary_base() == Path("/tmp")
    longest = f"{machine.temporary_base()}/raygenesis-{os.getuid()}{machine.LONGEST_SOCKET}"
    assert len(longest) <= machine.SOCKET_PATH


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(machine, "FALLBACK", tmp_path / "file")
    with pytest.raises(ClusterError, match="set RAY_TMPDIR to a folder that can be written"):
        machine.ray_folder()


def limited(soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    code = (
        "import resource; from raygenesis.cluster.machine import raise_open_files as do; do();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )  # fmt: skip


def test_open_files_are_raised_as_far_as_the_system_allows() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < machine.WANTED_FILES:
        pytest.skip(f"this shell allows {hard} open files")
    assert limited(256, 4096).stdout.strip() == "(4096, 4096)"
    assert limited(2048, hard).stdout.strip() == f"(8192, {hard})"
    assert "this shell allows 300 open files (`ulimit -Hn`) and Ray needs 1024" in limited(256, 300).stderr
