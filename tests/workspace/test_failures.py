"""Failures of one cause are told together, whatever their numbers."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.artifacts import CROPS, EMBEDDINGS
from raygenesis.workspace.failures import FAILURES, FAILURES_TABLE, every_failure, grouped, read_failures
from raygenesis.workspace.files import write_table
from raygenesis.workspace.workspace import Workspace


def test_reasons_that_differ_in_numbers_or_hashes_alone_are_one_cause() -> None:
    reasons = {
        "a": "20×30×30 mm is smaller than the largest crop, 60×60×60 mm",
        "b": "same voxels as 0123456789abcdef",
        "c": "41×30×9.5 mm is smaller than the largest crop, 60×60×60 mm",
        "d": "damaged",
        "e": "same voxels as fedcba9876543210",
        "f": "1,234×30×1 mm is smaller than the largest crop, 60×60×60 mm",
        "g": "20×30×30 mm is smaller than the largest crop",
    }
    assert grouped({"source": source, "reason": reason} for source, reason in reasons.items()) == [
        ("…×30×… mm is smaller than the largest crop, 60×60×60 mm", ["a", "c", "f"]),
        ("same voxels as …", ["b", "e"]),
        ("damaged", ["d"]),
        (reasons["g"], ["g"]),
    ]
    assert grouped([]) == []


def test_failures_are_those_of_the_stages_that_left_a_table(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert every_failure(workspace) == {}
    rows = [{"source": "a.nii", "reason": "cut short"}]
    for artifact, failures in ((CROPS, []), (EMBEDDINGS, rows)):
        folder = workspace.folder(artifact)
        folder.mkdir()
        write_table(folder / FAILURES_TABLE, pa.Table.from_pylist(failures, FAILURES))
    assert list(every_failure(workspace).items()) == [("embeddings", rows), ("crops", [])]


def test_a_table_that_is_gone_names_the_verb_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"failures\.parquet is missing or damaged: .* run `raygenesis crop`"):
        read_failures(tmp_path / "crops")
