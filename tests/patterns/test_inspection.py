"""What is said of a pattern store is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygenesis.errors import WorkspaceError
from raygenesis.patterns.inspection import info, store_facts
from raygenesis.patterns.writer import part_path
from raygenesis.workspace.artifacts import CROPS, PATTERNS
from raygenesis.workspace.workspace import Workspace
from tests.support.stores import SOME_FAILURES, StorePlan, change_manifest

CROPPED = StorePlan(references=0, coordinates=5, neighbours=6)


def test_info_counts(workspace: Workspace) -> None:
    stored = sum(part_path(workspace.patterns, part).stat().st_size for part in range(3))
    raw = 128 * 4 * 6 * 8 * 2  # 8 classes × 2 scales × (6 + 2) patients, uint16
    change_manifest(workspace.patterns, lambda manifest: manifest.update(raw_bytes=raw))
    assert info(workspace) == [
        "128 patterns: 96 training, 32 validation",
        "8 classes: 2 references × 4 coordinates; 6 neighbours",
        "2 scales: 4×6×8 mm, 4×6×8 mm",
        "cubes of 4×6×8, <u2 in 4095 steps",
        "8 volumes, 3 parts",
        f"{raw / 2**10:.1f} KiB raw, {stored / 2**10:.1f} KiB on disk, {raw / stored:.2f} to 1",
        "2.0 s: 64.0 patterns/s, 24.0 KiB/s raw",
        "3 failures",
        "failed: 2 × …×30×… mm is smaller than the largest crop, 60×60×60 mm (discovery.scales) [b, …]",
        "failed: 1 × damaged when it was cropped [a]",
    ]


def test_facts_are_those_of_the_lines(workspace: Workspace) -> None:
    facts = store_facts(workspace)
    assert (facts.counts.patterns, facts.counts.validation, facts.cube_shape) == (128, 32, (4, 6, 8))
    assert facts.extents_mm == ((4, 6, 8), (4, 6, 8)) and list(facts.failures.values()) == [1, 1, 1]


def test_info_without_the_table_of_failures_says_so(workspace: Workspace) -> None:
    (workspace.patterns / "failures.parquet").unlink()
    with pytest.raises(WorkspaceError, match=r"failures.parquet is missing or damaged: remove manifest.json beside"):
        info(workspace)


def test_info_of_random_crops(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    CROPPED.write(workspace.crops, SOME_FAILURES)
    lines = info(workspace, CROPS)
    assert lines[:2] == [
        "40 patterns: 30 training, 10 validation",
        "no classes: 5 random crops a scan, 6 training scans",
    ]
    assert lines[4] == "8 volumes, 3 parts" and sum(line.startswith("failed: ") for line in lines) == 2
    (workspace.crops / "failures.parquet").unlink()
    with pytest.raises(WorkspaceError, match=r"failures.parquet is missing .* run `raygenesis crop`"):
        info(workspace, CROPS)


def test_info_of_no_store_says_which_verb_makes_one(tmp_path: Path) -> None:
    for store, verb in ((PATTERNS, "discover"), (CROPS, "crop")):
        with pytest.raises(WorkspaceError, match=f"run `raygenesis {verb}` first"):
            info(Workspace.open(tmp_path), store)
