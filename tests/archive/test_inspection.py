"""Looking into an archive: what it says is so, and no damage escapes `verify`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue
from raygenesis.archive.ingest import ingest
from raygenesis.archive.inspection import fault_of, info, mid_slice, show, verify
from raygenesis.archive.reading import open_array
from raygenesis.archive.store import volume_folder
from raygenesis.archive.writing import write_array
from raygenesis.cli import main
from raygenesis.errors import WorkspaceError
from raygenesis.settings import load_settings
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import write_table
from raygenesis.workspace.workspace import Workspace
from tests.support.nifti import grey, write_nifti

pytestmark = pytest.mark.usefixtures("ray_cluster")

SETTINGS = load_settings("cpu-small", ["archive.coarse_size=8", "archive.chunk=8", "archive.shard=16"])
AFFINE = np.diag([0.5, 1.5, 2.0, 1.0])


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("archive")
    for number in range(3):
        write_nifti(folder / "scans" / f"{number}.nii.gz", grey((20, 16, 12 + number), seed=number), AFFINE)
    unsized = {"sform_code": 0, "qform_code": 1, "pixdim": [1, 0, 0, 1, 0, 0, 0, 0]}
    write_nifti(folder / "scans" / "radiograph.nii", grey((30, 24, 1), np.uint8), **unsized)
    for number in range(2):
        (folder / "scans" / f"broken-{number}.nii").write_bytes(b"x" * (400 + number))
    workspace = Workspace.open(folder / "ws")
    ingest(folder / "scans", workspace, SETTINGS)
    return workspace


@pytest.fixture
def workspace(made: Workspace, tmp_path: Path) -> Workspace:
    """A copy to damage."""
    shutil.copytree(made.root, tmp_path / "ws")
    return Workspace.open(tmp_path / "ws")


def test_info_as_json(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["archive", "info", "--workspace", str(made.root), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["num_volumes"], facts["num_subjects"], facts["num_failures"]) == (4, 4, 2)
    axes = facts["dimensions"]["3"]["axes"]
    assert axes["z"] == {
        "voxels": {"least": 12, "median": 13, "most": 14},
        "spacing_mm": {"least": 2, "median": 2, "most": 2},
        "extent_mm": {"least": 24, "median": 26, "most": 28},
    }
    assert facts["dtypes"] == {"int16": 3, "uint8": 1} and sum(facts["num_channels"].values()) == 4


def test_info_counts(made: Workspace) -> None:
    lines = info(made)
    assert lines[0].startswith("4 volumes of 4 subjects, 2 failures; ")
    assert "3D: 3 volumes" in lines and "2D: 1 volumes" in lines
    assert "  z: 12 to 14 (median 13) voxels of 2 mm, 24 to 28 (median 26) mm" in lines
    assert "  x: 20 voxels of 0.5 mm, 10 mm" in lines
    assert "type: int16 3, uint8 1" in lines
    assert "assumed: 4 × no unit of length is stored: mm assumed" in lines
    assert "assumed: 1 × no voxel size along … of … axes: … mm assumed" in lines
    assert not any(line.startswith("corrected") for line in lines)
    (failed,) = (line for line in lines if line.startswith("failed: 2 × not readable as NIfTI"))
    assert failed.endswith("[broken-0.nii, …]")


def test_every_failure_is_listed_by_its_path_those_of_later_stages_too(workspace: Workspace) -> None:
    (row,) = (row for row in read_catalogue(workspace.catalog) if row["shape"] == [12, 16, 20])
    twice = [{"source": row["source"], "reason": reason} for reason in ("too small: 12 mm", "damaged")]
    workspace.embeddings.mkdir()
    write_table(workspace.embeddings / "failures.parquet", pa.Table.from_pylist(twice, FAILURES))
    lines = [line for line in info(workspace, list_failures=True) if line.startswith("failed")]
    unreadable = "not readable as NIfTI (its first number is neither 348 nor 540)"
    assert lines == [
        f"failed: {unreadable} [broken-0.nii]", f"failed: {unreadable} [broken-1.nii]",
        "failed in embeddings: damaged [0.nii.gz]", "failed in embeddings: too small: 12 mm [0.nii.gz]",
    ]  # fmt: skip


def test_a_damaged_table_of_failures_is_said(workspace: Workspace) -> None:
    (workspace.archive / "failures.parquet").write_bytes(b"PAR1")
    for list_failures in (False, True):
        with pytest.raises(WorkspaceError, match=r"failures\.parquet is missing or damaged: .* `raygenesis ingest`"):
            info(workspace, list_failures)


def test_a_whole_archive_is_whole(made: Workspace, capsys) -> None:
    assert verify(made) == 4
    assert "4 volumes are whole" in capsys.readouterr().out


def volume_with_levels(workspace: Workspace) -> tuple[Path, dict]:
    row = next(row for row in read_catalogue(workspace.catalog) if len(row["levels"]) > 1)
    return volume_folder(workspace.volumes, row["volume_id"]), row


def chunk_of(folder: Path, level: int) -> Path:
    return min((folder / str(level)).glob("c.*"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("place", [20, 200, -30, -1])
def test_one_bit_is_found(workspace: Workspace, level: int, place: int) -> None:
    folder, row = volume_with_levels(workspace)
    flip(chunk_of(folder, level), place)
    assert "is damaged" in fault_of(workspace.volumes, row)
    with pytest.raises(WorkspaceError, match=r"1 of 4 volumes in .* are damaged"):
        verify(workspace)


@pytest.mark.parametrize("level", [0, 1])
def test_a_missing_shard_is_found(workspace: Workspace, level: int) -> None:
    folder, row = volume_with_levels(workspace)
    chunk_of(folder, level).unlink()
    assert f"level {level} is damaged (shard c.0.0.0 is missing, or a chunk of it)" in fault_of(workspace.volumes, row)


def test_other_voxels_than_those_that_were_stored_are_found(workspace: Workspace) -> None:
    folder, row = volume_with_levels(workspace)
    for level, fault in ((1, "level 1 is not made from level 0"), (0, "its voxels are not those that were stored")):
        voxels = open_array(folder / str(level)).read() + 1
        shutil.rmtree(folder / str(level))
        write_array(folder / str(level), voxels, (8, 8, 8), (16, 16, 16), "zyx")
        assert fault_of(workspace.volumes, row) == fault


def test_a_missing_record_level_or_volume_is_found(workspace: Workspace) -> None:
    folder, row = volume_with_levels(workspace)
    (folder / "1" / "zarr.json").unlink()
    assert "cannot be opened" in fault_of(workspace.volumes, row)
    (folder / "zarr.json").write_text("{}")
    assert fault_of(workspace.volumes, row) == "its zarr.json is missing or damaged"
    shutil.rmtree(folder)
    assert fault_of(workspace.volumes, row) == "its zarr.json is missing or damaged"


def test_a_catalogue_that_says_something_else_is_found(workspace: Workspace) -> None:
    rows = read_catalogue(workspace.catalog)
    rows[0]["slope"] = 2.0
    write_table(workspace.catalog, pa.Table.from_pylist(rows, CATALOGUE))
    assert fault_of(workspace.volumes, rows[0]) == "its record and the catalogue differ in slope"


def test_what_the_sentence_advises_mends_it(workspace: Workspace, made: Workspace) -> None:
    folder, _ = volume_with_levels(workspace)
    flip(chunk_of(folder, 0), 20)
    shutil.rmtree(folder)
    ingest(made.root.parent / "scans", workspace, SETTINGS)
    assert verify(workspace) == 4


def test_the_contact_sheet_shows_every_volume(made: Workspace, workspace: Workspace, tmp_path: Path) -> None:
    assert show(made, tmp_path / "below" / "sheet.png") == 4
    picture = np.asarray(Image.open(tmp_path / "below" / "sheet.png"))
    assert picture.ndim == 2 and picture.max() > 200
    tiles = [picture[:128, :128], picture[:128, 144:272], picture[142:270, :128], picture[142:270, 144:272]]
    assert all(tile.std() > 10 for tile in tiles)
    captions = [picture[top : top + 14, left : left + 144] for top in (128, 270) for left in (0, 144)]
    assert all(caption.any() and not caption[:, -2:].any() for caption in captions)
    assert show(made, tmp_path / "one.png", num_volumes=1) == 1
    folder, _ = volume_with_levels(workspace)
    flip(chunk_of(folder, 0), 20)
    assert show(workspace, tmp_path / "damaged.png") == 4


def test_a_scan_whose_first_channel_is_empty_has_its_place_on_the_sheet(tmp_path: Path) -> None:
    colours = grey((8, 9, 10, 3), np.uint8)
    colours[..., 0] = 0
    write_nifti(tmp_path / "scans" / "a.nii", colours.view([(name, "u1") for name in "RGB"])[..., 0])
    workspace = Workspace.open(tmp_path / "ws")
    ingest(tmp_path / "scans", workspace, SETTINGS)
    assert show(workspace, tmp_path / "sheet.png") == 1


def test_a_mid_slice_is_displayed_front_up_and_right_on_the_left(tmp_path: Path) -> None:
    voxels = np.zeros((16, 24, 11), np.int16)  # x y z of a file
    voxels[10:, 16:, :] = 100  # right and anterior
    write_nifti(tmp_path / "scans" / "a.nii", voxels, np.diag([1, 2, 3, 1]))
    workspace = Workspace.open(tmp_path / "ws")
    ingest(tmp_path / "scans", workspace, SETTINGS)
    (row,) = read_catalogue(workspace.catalog)
    shown = mid_slice(workspace.volumes, row)
    height, width = shown.shape
    assert height == 128 and abs(width - 128 * 16 / 48) <= 1
    assert shown[: height // 4, : width // 4].min() == 255
    assert shown[height // 2 :].max() == shown[:, width // 2 + 4 :].max() == 0
