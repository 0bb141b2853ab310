"""The contact sheet of a pattern store: a row a class, tiles in their true proportions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raygenesis import cli
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.contact_sheet import show
from raygenesis.workspace.workspace import Workspace
from tests.support.stores import StorePlan, write_store


def shade(label: int, rank: int) -> float:
    return (label * 10 + rank + 20) / 120


def test_the_contact_sheet_has_a_row_a_class_and_a_column_a_neighbour(tmp_path: Path) -> None:
    plan = StorePlan(cube=lambda row, shape: np.full(shape, shade(row["label"], row["rank"]), np.float32))
    parts = plan.parts()
    parts[0] = [row for row in parts[0] if row["rank"] != 2]  # a volume that was damaged
    write_store(tmp_path / "ws" / "patterns", parts, plan)
    path = tmp_path / "below" / "sheet.png"
    assert show(Workspace.existing(tmp_path / "ws"), path, num_classes=3) == 3
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (14 + 3 * 130, 96 + 6 * 130)
    centres = sheet[14 + 64 :: 130, 96 + 64 :: 130]
    expected = [[shade(label, rank) * 255 if rank != 2 else 0 for rank in range(6)] for label in (0, 3, 7)]
    np.testing.assert_allclose(centres, expected, atol=1)
    assert sheet[:, :96].max() > 150 and sheet[:14].max() > 150  # captions


def test_a_tile_is_the_axial_mid_slice_front_up_and_right_on_the_left(tmp_path: Path) -> None:
    def cube(row: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
        voxels = np.zeros(shape, np.float32)
        voxels[shape[0] // 2, shape[1] // 2 :, shape[2] // 2 :] = 1  # front and right
        return voxels

    StorePlan(references=1, coordinates=1, neighbours=1, shape=(6, 12, 24), cube=cube).write(tmp_path / "patterns")
    assert show(Workspace.existing(tmp_path), tmp_path / "sheet.png") == 1
    tile = np.asarray(Image.open(tmp_path / "sheet.png"))[14:, 96:224]
    shown = np.flatnonzero(tile.max(1))
    assert (shown.min(), shown.max()) == pytest.approx((32, 64), abs=4)  # 12 mm of 24 high, in the middle; front half
    assert tile[32:58, :58].min() == 255
    assert tile[:, 70:].max() == 0


def test_show_at_the_command_line(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        path = tmp_path / "sheet.png"
        cli.main(["patterns", "show", "--workspace", str(workspace.root), "--output", str(path), "--classes", "5"])
    assert ended.value.code == 0
    assert Image.open(tmp_path / "sheet.png").height == 14 + 5 * 130
    (tmp_path / "folder").mkdir()
    with pytest.raises(SettingsError, match=r"--output .*folder cannot be written .*: give the name of a PNG"):
        show(workspace, tmp_path / "folder")


def test_the_contact_sheet_of_random_crops_has_a_row_a_scan(tmp_path: Path, monkeypatch) -> None:
    plan = StorePlan(
        references=0, coordinates=14, neighbours=5,
        cube=lambda row, shape: np.full(shape, shade(row["coordinate"], row["rank"]), np.float32),
    )  # fmt: skip
    parts = plan.parts()
    parts[0] = [row for row in parts[0] if row["rank"] != 2]  # a scan without a place for a crop
    write_store(tmp_path / "crops", parts, plan)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["patterns", "show", "--workspace", str(tmp_path), "--store", "crops", "--classes", "3"])
    assert ended.value.code == 0
    sheet = np.asarray(Image.open("crops.png"))
    assert sheet.shape == (14 + 3 * 130, 96 + 10 * 130)
    centres = sheet[14 + 64 :: 130, 96 + 64 :: 130]
    expected = [[shade(number, rank) * 255 if rank != 2 else 0 for number in range(10)] for rank in (0, 2, 4)]
    np.testing.assert_allclose(centres, np.clip(expected, 0, 255), atol=1)
    with pytest.raises(WorkspaceError, match="run `raygenesis discover` first"):
        show(Workspace.existing(tmp_path), tmp_path / "sheet.png")


def test_no_store_says_which_verb_makes_one(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="run `raygenesis discover` first"):
        show(Workspace.open(tmp_path), tmp_path / "sheet.png")
