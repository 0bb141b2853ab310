"""What the doctor finds on this machine, and on one where something is wrong."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raygenesis.cli import app
from raygenesis.cluster import doctor, machine


def verdicts(workspace: str | None = None) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine(workspace)}


@pytest.fixture(autouse=True)
def _a_good_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "shared_memory_bytes", lambda: 2**34)
    monkeypatch.setattr(doctor, "LEAST_FREE_GIB", 0)


def test_a_good_machine_has_no_faults(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["doctor", "--workspace", str(tmp_path / "new")])
    assert found.exit_code == 0, found.output
    assert {line.split()[0] for line in found.output.splitlines()} >= {"raygenesis", "packages", "memory", "workspace"}
    assert "fault" not in found.output


@pytest.mark.parametrize(
    ("subject", "words", "change"),
    [
        ("Ray", "such as nowhere:6379", lambda patch: patch.setenv("RAY_ADDRESS", "nowhere")),
        ("packages", "none-such not installed", lambda patch: patch.setattr(doctor, "PACKAGES", ("none-such",))),
        ("open files", "raise the limit", lambda patch: patch.setattr(resource, "getrlimit", lambda kind: (256, 256))),
        ("Ray's files", "set RAY_TMPDIR", lambda patch: patch.setattr(machine, "FALLBACK", Path("/proc"))),
    ],
)  # fmt: skip
def test_a_fault_has_its_remedy_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, subject: str, words: str, change
) -> None:
    change(monkeypatch)
    finding = verdicts()[subject]
    assert finding.verdict == "fault" and words in finding.remedy
    found = CliRunner().invoke(app, ["doctor"])
    assert found.exit_code == 2
    assert f"fault: {subject}: {finding.remedy}" in found.output.splitlines()


def test_code_for_another_processor_is_a_fault_and_not_the_doctors_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "IMPORTS", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    finding = verdicts()["compiled code"]
    assert finding.verdict == "fault" and finding.found == "it ended by signal 4"


@pytest.mark.parametrize(
    ("subject", "words", "change"),
    [
        ("shared memory", "--shm-size", lambda patch: patch.setattr(machine, "shared_memory_bytes", lambda: 2**26)),
        ("memory", "less than 1000 GiB", lambda patch: patch.setattr(doctor, "LEAST_MEMORY_GIB", 1000)),
        ("encoding", "PYTHONUTF8=1", lambda patch: patch.setattr("locale.getpreferredencoding", lambda _: "latin-1")),
        ("Ray's files", "make room", lambda patch: patch.setattr(doctor, "LEAST_FREE_GIB", 10**6)),
    ],
)  # fmt: skip
def test_what_only_slows_a_job_is_a_warning(monkeypatch: pytest.MonkeyPatch, subject: str, words: str, change) -> None:
    change(monkeypatch)
    finding = verdicts()[subject]
    assert finding.verdict == "warning" and words in finding.remedy
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_a_workspace_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = verdicts(str(tmp_path / "file" / "workspace"))["workspace"]
    assert finding.verdict == "fault" and "choose a folder that you may write" in finding.remedy
