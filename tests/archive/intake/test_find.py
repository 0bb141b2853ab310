"""Finding the scans of a folder: headers are read once, and in tasks alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygenesis.archive.intake import find as finding
from raygenesis.archive.intake import survey as formats
from raygenesis.archive.intake.find import find
from raygenesis.archive.intake.known_files import write_headers
from raygenesis.archive.intake.survey import survey
from raygenesis.workspace.workspace import Workspace
from tests.support import dicom_series


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A DICOM series, and two files that begin like DICOM and cannot be read."""
    dicom_series.write_all(tmp_path / "scans", dicom_series.series())
    for name in ("0-cut.dcm", "9-cut.dcm"):
        (tmp_path / "scans" / name).write_bytes(bytes(128) + b"DICM")
    return tmp_path / "scans"


@pytest.mark.usefixtures("ray_cluster")
def test_headers_of_many_files_are_read_in_tasks_and_are_the_same(scans, tmp_path, monkeypatch) -> None:
    expected = survey(scans)
    assert len(expected.scans) == 1 and len(expected.aside) == 2 and len(expected.headers) == dicom_series.SLICES
    monkeypatch.setattr(finding, "HEADERS_PER_TASK", 2)
    monkeypatch.setattr(formats, "read_header", None)  # not in this process
    assert find(scans, Workspace.open(tmp_path / "workspace")) == expected


@pytest.mark.usefixtures("ray_cluster")
def test_headers_that_are_known_are_not_read_again(scans, tmp_path, monkeypatch) -> None:
    workspace = Workspace.open(tmp_path / "workspace")
    expected = find(scans, workspace)
    workspace.private.mkdir()
    write_headers(workspace.private, expected.headers)
    asked = []
    monkeypatch.setattr(finding, "_read_headers", lambda root, files: asked.extend(files) or ("gone",) * len(files))
    found = find(scans, workspace)
    assert (found.scans, found.headers) == (expected.scans, expected.headers)
    assert [file.path for file in asked] == ["0-cut.dcm", "9-cut.dcm"]
