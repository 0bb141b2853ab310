"""Which errors may pass, and that what may pass is tried again and never published."""

from __future__ import annotations

import errno
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygenesis.archive.intake import take_in as intake
from raygenesis.archive.intake.survey import ScanFile, read_headers
from raygenesis.archive.reading import Array, as_os_error
from raygenesis.archive.store import read_region
from raygenesis.discovery import encoders
from raygenesis.errors import PassingError, ScanError, WorkspaceError
from raygenesis.settings import ArchiveSettings, EmbeddingSettings, Settings
from raygenesis.transfer.cases import read_cases
from raygenesis.workspace import faults
from raygenesis.workspace.artifacts import RUNS
from raygenesis.workspace.faults import ATTEMPTS, is_of_machine, is_passing, lasting_reason, patiently
from raygenesis.workspace.files import read_table, write_json
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

STALE, DENIED = OSError(errno.ESTALE, "Stale file handle"), PermissionError(errno.EACCES, "Permission denied")


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The longest waits that were asked for, none of which is waited."""
    asked: list[float] = []
    monkeypatch.setattr(faults.random, "uniform", lambda low, high: asked.append(high) or 0.0)
    return asked


class Failing:
    """Fails so many times in an error, then returns a value."""

    def __init__(self, number: int, error: Exception) -> None:
        self.number, self.error, self.calls = number, error, 0

    def __call__(self, *arguments: object, **options: object) -> str:
        self.calls += 1
        if self.calls <= self.number:
            raise self.error
        return "value"


@pytest.mark.parametrize(
    ("error", "passing", "of_machine"),
    [
        (STALE, True, True), (OSError(errno.EIO, ""), True, True), (TimeoutError("timed out"), True, True),
        (ConnectionResetError(errno.ECONNRESET, ""), True, True), (OSError(errno.ENOMEM, ""), True, True),
        (PassingError("a store"), True, False), (MemoryError(), False, True),
        (DENIED, False, True), (FileNotFoundError(errno.ENOENT, ""), False, True),
        (OSError(errno.ENOSPC, ""), False, True), (OSError(errno.EINVAL, ""), False, False),
        (OSError("a library's own words"), False, False), (ScanError("cut short"), False, False),
        (EOFError(), False, False), (ValueError("Stale file handle"), False, False),
    ],
)  # fmt: skip
def test_every_error_is_of_one_kind(error: Exception, passing: bool, of_machine: bool) -> None:
    assert (is_passing(error), is_of_machine(error)) == (passing, of_machine)


def test_what_passes_is_tried_again_after_waits_that_grow(waits: list[float]) -> None:
    act = Failing(ATTEMPTS - 1, STALE)
    assert patiently(act, "a.nii") == "value" and act.calls == ATTEMPTS
    assert waits == [1, 2, 4, 8, 16, 20]


def test_what_stays_ends_the_job_in_a_sentence_and_what_lasts_is_not_tried_again() -> None:
    act = Failing(99, STALE)
    with pytest.raises(
        PassingError, match=r"^a\.nii cannot be reached in 7 attempts \(Stale file handle\): see to its"
    ):
        patiently(act, "a.nii")
    assert act.calls == ATTEMPTS and issubclass(PassingError, WorkspaceError)
    for lasting in (DENIED, ScanError("cut short"), OSError("words")):
        act = Failing(99, lasting)
        with pytest.raises(type(lasting)):
            patiently(act, "a.nii")
        assert act.calls == 1


def test_only_what_lasts_has_a_reason_and_it_names_no_path() -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "/home/jane_doe/a.nii")
    assert lasting_reason(missing) == "cannot be read (No such file or directory)"
    assert lasting_reason(ScanError("cut short")) == "cut short"
    for passing in (STALE, PassingError("a store")):
        with pytest.raises(PassingError):
            lasting_reason(passing, "a.nii")


def test_a_system_need_not_have_every_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """EREMOTEIO is Linux's alone."""
    linux_alone = errno.EREMOTEIO
    monkeypatch.delattr(errno, "EREMOTEIO")
    passing = runpy.run_path(faults.__file__)["PASSING"]
    assert passing == faults.PASSING - {linux_alone} and errno.ESTALE in passing


def test_a_file_that_identifies_an_artifact_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Stage(RUNS, tmp_path, {}, {})
    (tmp_path / RUNS.identifying[0]).write_bytes(b"weights")
    act = Failing(2, STALE)
    monkeypatch.setattr("raygenesis.workspace.stage.blake2b_of", act)
    assert made._identifying_bytes() == [[RUNS.identifying[0], "value"]] and act.calls == 3
    act.number = 99
    with pytest.raises(PassingError, match="cannot be reached in 7 attempts"):
        made._identifying_bytes()


def test_an_encoder_of_ones_own_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act = Failing(2, STALE)
    monkeypatch.setattr(encoders, "load_scan_encoder", lambda path, shape: SimpleNamespace(input_shape=(8, 8, 8)))
    monkeypatch.setattr(encoders, "blake2b_of", act)
    settings = Settings(embedding=EmbeddingSettings(encoder=str(tmp_path)))
    assert encoders.ready_encoder(Workspace(tmp_path), settings) == (tmp_path / "encoder.safetensors", "value")
    assert act.calls == 3


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_cannot_be_published_for_a_while_is_no_lasting_fault(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, Failing(99, STALE))
    with pytest.raises(PassingError, match=r"a\.json cannot be reached \(Stale file handle\): see to its disk"):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_read_again_and_one_that_cannot_be_reached_is_not_called_damaged(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"a": [1, 2]})
    pq.write_table(table, path)
    read, calls = pq.read_table, []

    def stale(*arguments: object, **options: object) -> pa.Table:
        calls.append(1)
        if len(calls) < limit:
            raise STALE
        return read(*arguments, **options)

    monkeypatch.setattr(pq, "read_table", stale)
    limit = 3
    assert read_table(path) == table
    limit = 99
    with pytest.raises(PassingError, match=r"a\.parquet cannot be reached"):
        read_table(path)


def test_a_scan_that_cannot_be_reached_ends_the_ingest_and_one_that_comes_back_is_stored(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"x" * 400)
    volumes = tmp_path / "archive" / "volumes"
    act = Failing(2, STALE)
    monkeypatch.setattr(intake, "scan_fingerprint", lambda paths: act() and "0" * 32)
    outcome = intake.take_in([path], volumes, ArchiveSettings())
    assert act.calls == 3 and "not readable as NIfTI" in outcome.reason and outcome.is_lasting
    act.number = 99
    with pytest.raises(PassingError, match="the files of a scan cannot be reached in 7 attempts"):
        intake.take_in([path], volumes, ArchiveSettings())


def test_what_a_decoder_makes_of_a_lost_file_is_no_damage_of_it(tmp_path, monkeypatch) -> None:
    """A library may say of any trouble that the file is damaged."""
    from raygenesis.archive.formats import readers

    path = tmp_path / "a.nii"
    path.write_bytes(b"x" * 400)
    monkeypatch.setattr(readers, "read_through", Failing(1, STALE))
    with pytest.raises(OSError, match="Stale file handle"):
        readers.read_scan([path])
    with pytest.raises(ScanError, match="not readable as NIfTI"):
        readers.read_scan([path])


def test_a_header_that_cannot_be_reached_is_no_reason(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("raygenesis.archive.intake.survey.read_header", Failing(99, STALE))
    with pytest.raises(PassingError):
        list(read_headers(tmp_path, [ScanFile("a.dcm", 1, 1)]))
    monkeypatch.setattr("raygenesis.archive.intake.survey.read_header", Failing(99, DENIED))
    assert list(read_headers(tmp_path, [ScanFile("a.dcm", 1, 1)])) == ["cannot be read (Permission denied)"]


class LostImage:
    paths = (Path("a.nii"),)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self) -> None:
        raise self.error


def test_an_example_is_left_out_for_what_lasts_alone(monkeypatch) -> None:
    from raygenesis.settings import IntensitySettings
    from raygenesis.transfer.cases import Form
    from raygenesis.transfer.examples import Example

    form = Form(False, (4, 4, 4), None, IntensitySettings())
    (problem,) = read_cases([Example("a", "s", LostImage(DENIED))], form)
    assert problem.reason == "cannot be read (Permission denied)"
    with pytest.raises(PassingError, match="the target's images cannot be reached in 7 attempts"):
        read_cases([Example("a", "s", LostImage(STALE))], form)


TENSORSTORE = (
    "UNKNOWN: Error reading \"/v/0/c.0.0.0\": Failed to read from file [os_error_code='{}'] [source locations='x.cc:1']"
)


class LostStore:
    """As tensorstore's arrays fail: so many times, then they give zeros."""

    rank, shape = 1, (4,)

    def __init__(self, number: int, code: int) -> None:
        self.reads = Failing(number, ValueError(TENSORSTORE.format(code)))

    def __getitem__(self, box: object) -> LostStore:
        return self

    def read(self, batch: object) -> LostStore:
        return self

    def result(self) -> str:
        return self.reads()


def test_voxels_that_cannot_be_reached_are_read_again_and_not_damaged(tmp_path) -> None:
    assert as_os_error(ValueError(TENSORSTORE.format(errno.ESTALE))).errno == errno.ESTALE
    store = LostStore(2, errno.ESTALE)
    assert Array(tmp_path, store).begin_reading([None])() == ["value"] and store.reads.calls == 3
    with pytest.raises(PassingError, match="cannot be reached in 7 attempts"):
        Array(tmp_path, LostStore(99, errno.ESTALE)).read()
    with pytest.raises(ScanError, match="cannot be read"):
        Array(tmp_path, LostStore(99, errno.EACCES)).read()


def test_a_volume_that_is_not_there_is_no_passing_fault(tmp_path, waits) -> None:
    with pytest.raises(ScanError, match="level 0 cannot be opened"):
        read_region(tmp_path / "a.ome.zarr", 0, [slice(0, 1)])
    assert waits == []
