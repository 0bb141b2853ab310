"""The main job: what settings cannot fit is said before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raygenesis.cluster import environment
from raygenesis.errors import RaygenesisError, ScanError, SettingsError
from raygenesis.pipeline import Extras, run
from raygenesis.settings import load_settings
from raygenesis.workspace.workspace import Workspace
from tests.support.nifti import grey, write_nifti

CROPS = "pretraining.pretext=models-genesis"
FEW = ["discovery.num_neighbours=1", "discovery.num_validation_neighbours=1"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.mark.parametrize("overrides", [[], [CROPS]])
def test_a_folder_of_files_set_aside_is_said_to_hold_nothing_readable(tmp_path, workspace, overrides) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.dcm").write_bytes(b"no scan")
    with pytest.raises(ScanError, match=r"none of the 1 scans in .* can be read; the first: a\.dcm: not DICOM"):
        run(tmp_path / "scans", workspace, load_settings("cpu-small", overrides))
    assert not workspace.archive.exists()


@pytest.mark.parametrize("overrides", [FEW, [CROPS]])
@pytest.mark.parametrize(("preset", "shape", "asked"), [("cpu-small", (90, 80), 3), ("cpu-small-2d", (9, 8, 7), 2)])
def test_scans_of_other_dimensions_than_the_preset_s_are_refused(
    tmp_path, workspace, overrides, preset, shape, asked
) -> None:
    for number in range(4):
        write_nifti(tmp_path / "scans" / f"sub-{number}.nii", grey(shape, np.uint8, number))
    with pytest.raises(SettingsError, match=rf"asks for {asked}D, and of the 4 scans .* none is: choose a preset"):
        run(tmp_path / "scans", workspace, load_settings(preset, overrides))
    assert not workspace.archive.exists()


@pytest.mark.parametrize("is_joined", [False, True])
def test_a_cluster_s_log_names_no_scan(tmp_path: Path, workspace: Workspace, monkeypatch, is_joined: bool) -> None:
    monkeypatch.setattr(environment, "is_joined", lambda: is_joined)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "Jane.dcm").write_bytes(b"no scan")
    with pytest.raises(ScanError, match=r"can be read; the first: .*: not DICOM") as nothing:
        run(tmp_path / "scans", workspace, load_settings("cpu-small"))
    for number in range(4):
        write_nifti(tmp_path / "scans" / f"Jane-{number}.nii", grey((9, 8, 7), np.uint8, number))
    with pytest.raises(SettingsError, match=r"the largest, .*, is 7.*×8.*×9.* mm") as small:
        run(tmp_path / "scans", workspace, load_settings("cpu-small", FEW))
    assert ["Jane" in str(error.value) for error in (nothing, small)] == [not is_joined] * 2


@pytest.mark.parametrize(
    ("target", "overrides", "told"),
    [
        (
            None,
            [CROPS],
            r"--sweep: pretraining\.pretext=models-genesis learns from random crops, .*: leave --sweep out",
        ),
        (None, ["sweep.objective=target", "sweep.target={folder}/t.yaml"], r"images folder .*nowhere does not exist"),
        (None, ["sweep.objective=target", "sweep.target={folder}/u.yaml"], r"u\.yaml cannot be read"),
        ("t.yaml", [], r"images folder .*nowhere does not exist"),
    ],
)
def test_what_a_sweep_or_a_target_would_be_refused_for_is_said_before_any_work(
    tmp_path: Path, workspace: Workspace, target: str | None, overrides: list[str], told: str
) -> None:
    (tmp_path / "t.yaml").write_text("task: segmentation\nimages: nowhere\nlabels: nowhere\n")
    for number in range(4):
        write_nifti(tmp_path / "scans" / f"sub-{number}.nii", grey((90, 80, 70), np.uint8, number))
    chosen = load_settings("cpu-small", [*FEW, *(each.format(folder=tmp_path) for each in overrides)])
    with pytest.raises(RaygenesisError, match=told):
        run(tmp_path / "scans", workspace, chosen, extras=Extras(target is None, target and tmp_path / target))
    assert not workspace.archive.exists()
