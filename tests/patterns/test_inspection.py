"""Looking into a pattern store: what it says is so, no damage escapes `verify`, and the remedy it names mends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raygenesis import cli
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.cells import encode
from raygenesis.patterns.inspection import info, show, verify
from raygenesis.patterns.schema import PATTERN
from raygenesis.patterns.writer import checksum, part_path, write_part
from raygenesis.workspace.files import write_json
from raygenesis.workspace.workspace import Workspace
from tests.support.stores import StorePlan, write_store

PLAN = StorePlan()
SMALL = "{} mm is smaller than the largest crop, 60×60×60 mm (discovery.scales)"
FAILURES = [
    {"source": "a", "reason": "damaged when it was cropped"},
    {"source": "b", "reason": SMALL.format("20×30×30")},
    {"source": "c", "reason": SMALL.format("41×30×9")},
]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    PLAN.write(tmp_path / "ws" / "patterns", FAILURES)
    return Workspace.open(tmp_path / "ws")


def change_manifest(workspace: Workspace, change: Callable[[dict[str, Any]], object]) -> None:
    path = workspace.patterns / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    write_json(path, manifest)


def rewrite(workspace: Workspace, part: int, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of a part, and let the manifest have its checksum."""
    path = part_path(workspace.patterns, part)
    rows = pq.read_table(path).to_pylist()
    change(rows)
    write_part(workspace.patterns, part, pa.Table.from_pylist(rows, PATTERN))
    change_manifest(workspace, lambda manifest: manifest["parts"].__setitem__(part, checksum(path)))


def test_info_counts(workspace: Workspace) -> None:
    stored = sum(part_path(workspace.patterns, part).stat().st_size for part in range(3))
    raw = 128 * 4 * 6 * 8 * 2  # 8 classes × 2 scales × (6 + 2) patients, uint16
    change_manifest(workspace, lambda manifest: manifest.update(raw_bytes=raw))
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


def test_info_without_the_table_of_failures_says_so(workspace: Workspace) -> None:
    (workspace.patterns / "failures.parquet").unlink()
    with pytest.raises(WorkspaceError, match=r"failures.parquet is missing or damaged: remove manifest.json beside"):
        info(workspace)


def test_a_whole_store_is_whole(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(workspace) == 128
    assert "verify: 128 patterns in 3 parts are whole" in capsys.readouterr().out
    part_path(workspace.patterns, 7).write_bytes(b"")
    assert verify(workspace) == 128
    assert "part-000007.parquet is no part of the store" in capsys.readouterr().out


def flip_in_a_cell(path: Path) -> None:
    content = bytearray(path.read_bytes())
    cell = pq.read_table(path)["cube"][5].as_py()
    content[content.index(cell) + len(cell) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip_in_a_cell, r"its checksum is [0-9a-f]{16}, and [0-9a-f]{16} was written"),
        (cut_short, r"it has \d+ bytes, and \d+ were written"),
        (Path.unlink, "it is missing"),
    ],
)
def test_damage_is_named_and_the_remedy_mends_it(workspace: Workspace, capsys, damage, sentence: str) -> None:
    part, manifest = part_path(workspace.patterns, 1), workspace.patterns / "manifest.json"
    whole, record = part.read_bytes(), manifest.read_bytes()
    damage(part)
    with pytest.raises(WorkspaceError, match=rf"1 of 3 parts in .* are damaged, part-000001.parquet: {sentence}: rem"):
        verify(workspace)
    assert re.search(rf"verify: part-000001.parquet: {sentence}\n", capsys.readouterr().out)
    with pytest.raises(SystemExit) as ended:
        cli.main(["patterns", "verify", "--workspace", str(workspace.root)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith("remove the parts named above and manifest.json there, then run `raygenesis discover`\n")
    # What it advises; `discover` writes the same rows to the same bytes.
    part.unlink(missing_ok=True)
    manifest.unlink()
    part.write_bytes(whole)
    manifest.write_bytes(record)
    assert verify(workspace) == 128


def test_every_damaged_part_is_listed(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for part in (0, 2):
        cut_short(part_path(workspace.patterns, part))
    with pytest.raises(WorkspaceError, match="2 of 3 parts"):
        verify(workspace)
    said = capsys.readouterr().out
    assert "part-000000.parquet: it has" in said and "part-000002.parquet: it has" in said
    assert "part-000001.parquet" not in said


def wrong_label(rows: list[dict[str, Any]]) -> None:
    rows[9]["label"] += 1


def wrong_reference(rows: list[dict[str, Any]]) -> None:
    rows[9] |= {"reference": 2, "label": 2 * 4 + rows[9]["coordinate"]}


def wrong_shape(rows: list[dict[str, Any]]) -> None:
    rows[9]["cube"] = encode(np.zeros((4, 6, 7), np.float32))


def cell_cut_short(rows: list[dict[str, Any]]) -> None:
    rows[9]["cube"] = rows[9]["cube"][:-1]


def bad_payload(rows: list[dict[str, Any]]) -> None:
    cell = encode(np.zeros((4, 6, 8), np.float32))  # noise would be stored as it is, where any payload is one
    rows[9]["cube"] = cell[:16] + b"\xff" * (len(cell) - 16)


def wrong_split(rows: list[dict[str, Any]]) -> None:
    rows[9]["split"] = "test"


def same_id(rows: list[dict[str, Any]]) -> None:
    rows[9]["pattern_id"] = rows[8]["pattern_id"]


def id_of_an_earlier_part(rows: list[dict[str, Any]]) -> None:
    rows[9]["pattern_id"] = 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (wrong_label, r"pattern \d+ of reference 1 and coordinate 0 has the label 5"),
        (wrong_reference, r"pattern \d+ of reference 2 and coordinate 0 has the label 8"),
        (wrong_shape, r"pattern \d+: cell holds 336 bytes, not the 384 of shape \(4, 6, 8\)"),
        (cell_cut_short, r"pattern \d+: cell of \d+ bytes is cut short or damaged"),
        (bad_payload, r"pattern \d+: error during blosc decompression"),
        (wrong_split, r"split 'test' is unknown"),
        (same_id, "ids of its patterns are there twice"),
        (id_of_an_earlier_part, "ids of its patterns are there twice"),
    ],
)
def test_what_no_checksum_shows_is_found_too(workspace: Workspace, change, sentence: str) -> None:
    rewrite(workspace, 1, change)
    with pytest.raises(WorkspaceError, match=rf"1 of 3 parts in .* are damaged, part-000001.parquet: {sentence}"):
        verify(workspace)


def test_other_columns_are_found(workspace: Workspace) -> None:
    path = part_path(workspace.patterns, 0)
    pq.write_table(pq.read_table(path).drop_columns("extent_mm"), path)
    change_manifest(workspace, lambda manifest: manifest["parts"].__setitem__(0, checksum(path)))
    with pytest.raises(WorkspaceError, match="its columns are not those of a pattern store"):
        verify(workspace)


@pytest.mark.parametrize(("name", "held"), [("patterns", 128), ("validation", 32)])
def test_counts_that_do_not_match_are_found(workspace: Workspace, name: str, held: int) -> None:
    change_manifest(workspace, lambda manifest: manifest["counts"].update({name: 5}))
    with pytest.raises(WorkspaceError, match=rf"manifest.json counts 5 {name}, and its parts hold {held}: remove it"):
        verify(workspace)


def test_a_manifest_without_checksums_is_refused(workspace: Workspace) -> None:
    for change in (lambda manifest: manifest["parts"].pop(), lambda manifest: manifest.pop("parts")):
        change_manifest(workspace, change)
        with pytest.raises(WorkspaceError, match=r"does not hold a checksum of each of its 3 parts .* `raygenesis d"):
            verify(workspace)


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


CROPS = StorePlan(references=0, coordinates=5, neighbours=6)


def test_info_and_verify_of_random_crops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.open(tmp_path)
    CROPS.write(workspace.crops, FAILURES)
    lines = info(workspace, "crops")
    assert lines[:2] == [
        "40 patterns: 30 training, 10 validation",
        "no classes: 5 random crops a scan, 6 training scans",
    ]
    assert lines[4] == "8 volumes, 3 parts" and sum(line.startswith("failed: ") for line in lines) == 2
    assert verify(workspace, "crops") == 40
    assert "verify: 40 patterns in 3 parts are whole" in capsys.readouterr().out
    (workspace.crops / "failures.parquet").unlink()
    with pytest.raises(WorkspaceError, match=r"failures.parquet is missing .* run `raygenesis crop`"):
        info(workspace, "crops")


@pytest.mark.parametrize("change", [{"label": 0}, {"reference": 0}, {"coordinate": 5}])
def test_random_crops_with_a_label_or_beyond_their_number_are_found(tmp_path: Path, change: dict[str, int]) -> None:
    parts = CROPS.parts()
    parts[1][3] |= change
    write_store(tmp_path / "crops", parts, CROPS)
    sentence = r"part-000001\.parquet: pattern \d+ of reference -?\d and coordinate \d has the label -?\d: .* crop`"
    with pytest.raises(WorkspaceError, match=sentence):
        verify(Workspace.existing(tmp_path), "crops")


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


def test_show_and_info_of_no_store_say_which_verb_makes_one(tmp_path: Path) -> None:
    for look in (info, verify, lambda workspace: show(workspace, tmp_path / "sheet.png")):
        with pytest.raises(WorkspaceError, match="run `raygenesis discover` first"):
            look(Workspace.open(tmp_path))
    for look in (info, verify):
        with pytest.raises(WorkspaceError, match="run `raygenesis crop` first"):
            look(Workspace.open(tmp_path), "crops")
