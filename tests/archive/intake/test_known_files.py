"""The private tables: what an earlier ingest knew, unless another version of ours knew it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygenesis.archive.formats.dicom_header import Header
from raygenesis.archive.intake import known_files
from raygenesis.archive.intake.known_files import paths_of, read_known_files, read_known_headers, write_headers
from raygenesis.archive.intake.survey import ScanFile
from raygenesis.errors import WorkspaceError


def test_another_version_looks_into_headers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {ScanFile("a/1.dcm", 500, 7): Header("1.2.3", "Jane", "", False)}
    assert read_known_headers(tmp_path) == {}
    write_headers(tmp_path, known)
    assert read_known_headers(tmp_path) == known
    with monkeypatch.context() as another:
        another.setattr(known_files, "__version__", "99.0.0")
        assert read_known_headers(tmp_path) == {}
    monkeypatch.setattr(
        known_files, "HEADERS", known_files.HEADERS.remove(known_files.HEADERS.get_field_index("version"))
    )
    write_headers(tmp_path, known)  # as a version did that did not write which it was
    monkeypatch.undo()
    assert read_known_headers(tmp_path) == {}


def test_headers_that_do_not_say_which_stack_they_are_of_are_looked_into_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = known_files.HEADERS.get_field_index("stack")
    monkeypatch.setattr(known_files, "HEADERS", known_files.HEADERS.remove(index))
    write_headers(tmp_path, {ScanFile("a/1.dcm", 500, 7): Header("1.2.3", "Jane", "", False)})
    monkeypatch.undo()
    assert read_known_headers(tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"\xff\xfe"])
def test_a_damaged_table_of_sources_is_said_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    """Taken for an empty one it would be written over, and nobody would know whose volumes are whose."""
    (tmp_path / "sources.parquet").write_bytes(content)
    for read in (read_known_files, lambda folder: paths_of(folder, [{"source": "a", "reason": ""}])):
        with pytest.raises(WorkspaceError, match=r"sources\.parquet is damaged: put back a copy of it, or remove it"):
            read(tmp_path)
    assert (tmp_path / "sources.parquet").read_bytes() == content
    assert read_known_files(tmp_path / "nowhere") == {}


def test_damaged_headers_are_read_again_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "headers.parquet").write_bytes(b"")
    assert read_known_headers(tmp_path) == {}
    assert "headers.parquet is damaged: all headers are read again" in capsys.readouterr().out
    assert read_known_headers(tmp_path / "nowhere") == {} and capsys.readouterr().out == ""
