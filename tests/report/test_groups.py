"""The section of groups, duplicates and outliers, from a table of which everything is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygenesis.discovery.scan_table import SCANS_FILE
from raygenesis.report.artifact import Contents
from raygenesis.report.groups import groups_section
from raygenesis.report.report import report
from raygenesis.workspace.artifacts import NEIGHBOURS
from raygenesis.workspace.workspace import Workspace
from tests.support.workspaces import make_archive, make_discovery, settings_of


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.open(tmp_path)
    make_archive(made)
    make_discovery(made, settings_of(3))
    return made


def test_members_pairs_and_outliers_are_shown(workspace: Workspace) -> None:
    section = groups_section(workspace, Contents.of(workspace)[NEIGHBOURS], settings_of(3).intensity)
    ids = [f"{number:016x}" for number in range(6)]
    assert section.groups.gallery.names == ["group 0\n4 scans", "group 1\n1 scans"]
    shown = [[picture.note for picture in row] for row in section.groups.gallery.rows]
    assert shown == [ids[:4], [ids[4]]]
    (pair,) = section.copies.gallery.rows
    assert [picture.note for picture in pair] == [f"scan: {ids[0]}", f"its copy: {ids[1]}"]
    (outliers,) = section.outliers.gallery.rows
    assert [picture.note for picture in outliers] == [ids[5]]


def test_the_page_says_how_many_there_are_and_writes_the_figures(workspace: Workspace) -> None:
    page = report(workspace, settings_of(3)).read_text()
    assert "6 scans fall into 2 groups; 1 scan of them copies of others" in " ".join(page.split())
    assert "Duplicates, each beside the scan that counts" in page and "Outliers, those that stand most alone" in page
    assert {"groups.png", "duplicates.png", "outliers.png"} <= {
        p.name for p in (workspace.report / "figures").iterdir()
    }


def test_without_the_table_the_page_says_what_is_missing(workspace: Workspace) -> None:
    (workspace.neighbours / SCANS_FILE).unlink()
    page = report(workspace, settings_of(3)).read_text()
    assert "scans.parquet is missing: remove manifest.json beside it, then run `raygenesis neighbours`" in page
