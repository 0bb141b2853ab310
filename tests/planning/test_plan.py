"""The verb `plan`, and what a workspace's own stages teach it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raygenesis.archive.work import START_S as INGEST_START_S
from raygenesis.archive.work import archive_size, ingest_work
from raygenesis.cluster.work import ArchiveSize
from raygenesis.errors import SettingsError
from raygenesis.planning.announce import announce
from raygenesis.planning.estimate import Estimate
from raygenesis.planning.history import as_made, factors_of
from raygenesis.planning.plan import Plan, lines_of, plan
from raygenesis.settings import load_settings
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.hardware import Hardware
from raygenesis.workspace.workspace import Workspace
from tests.support.main_job import raygenesis
from tests.support.measured import HARDWARE, SMALL, measured_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """1,000 scans of 2 MiB of voxels in files of 1 MiB; stages took twice as long as the shipped rates say."""
    return measured_workspace(tmp_path)


def test_a_workspaces_scans_are_counted_and_measured(workspace: Workspace) -> None:
    scans = archive_size(ARCHIVE.require(workspace.archive))
    assert (scans.num_scans, scans.voxel_mib, scans.source_mib) == (1000, 2.0, 1.0)


def by_stage(made: Plan) -> dict[str, Estimate]:
    return {one.work.stage: one for one in made.estimates}


def test_stages_that_took_twice_as_long_will_again(workspace: Workspace) -> None:
    factors = factors_of(workspace, SMALL)
    # A sweep, and fine-tuning, train the same network.
    assert factors.keys() == {"ingest", "auto-encoder", "discover", "pretrain", "sweep", "finetune"}
    for stage, factor in factors.items():
        assert factor.seconds == pytest.approx(2.0, rel=1e-6), stage
    assert factors["ingest"].stored == pytest.approx(10 / 1500)
    told = by_stage(plan(2000, Hardware(8), SMALL, workspace, mib_per_s=1e9))
    shipped = by_stage(plan(2000, Hardware(8), SMALL, scan_mib=2.0, mib_per_s=1e9))
    for stage in factors:
        start_s = shipped[stage].work.start_s
        variable = shipped[stage].seconds - start_s
        assert told[stage].seconds == pytest.approx(start_s + 2 * variable, rel=0.01), stage
    assert shipped["ingest"].work.start_s == INGEST_START_S


def test_a_stray_folder_among_the_runs_stops_nobody(workspace: Workspace) -> None:
    before = factors_of(workspace, SMALL), as_made(workspace, SMALL)
    (workspace.root / "runs" / "my run").mkdir()
    assert (factors_of(workspace, SMALL), as_made(workspace, SMALL)) == before


def test_manifests_that_do_not_say_on_what_they_were_made_teach_nothing(workspace: Workspace) -> None:
    for path in workspace.root.rglob("manifest.json"):
        told = json.loads(path.read_text())
        del told["hardware"]
        path.write_text(json.dumps(told))
    assert factors_of(workspace, SMALL) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told["settings"].update({"autoencoder": {"of_another_version": 1}}),
        lambda told: told["hardware"].pop("num_cores"),
        lambda told: told["hardware"].update(num_cores=0),
        lambda told: told.pop("counts"),
    ],
)
def test_a_manifest_of_another_version_teaches_nothing_and_stops_nobody(workspace: Workspace, damage) -> None:
    path = workspace.autoencoder / "manifest.json"
    told = json.loads(path.read_text())
    damage(told)
    path.write_text(json.dumps(told))
    assert factors_of(workspace, SMALL).keys() == {"ingest", "discover", "pretrain", "sweep", "finetune"}


def test_without_gpus_a_preset_that_wants_them_is_planned_on_cores() -> None:
    made = plan(1000, Hardware(64), load_settings("paper-3d"))
    pretraining = by_stage(made)["pretrain"]
    assert pretraining.num_gpus == 0 and pretraining.limit == "64 cores"
    assert "with pretraining.use_gpu=false pretraining.num_workers=1, as there are no GPUs" in list(lines_of(made))


def test_pretraining_takes_all_gpus_unless_it_is_said_how_it_runs() -> None:
    made = plan(1000, Hardware(64, 8, 2), load_settings("paper-3d"))
    assert by_stage(made)["pretrain"].num_gpus == 8
    assert any("with pretraining.use_gpu=true pretraining.num_workers=8" in line for line in lines_of(made))
    given = load_settings("paper-3d", ["pretraining.use_gpu=true"])
    told = by_stage(plan(1000, Hardware(64, 8, 2), given))
    assert told["pretrain"].num_gpus == 1


@pytest.mark.parametrize(
    ("number", "hardware", "overrides", "said"),
    [
        (10, Hardware(2), [], r"discovery\.num_neighbours=24 is more than the 8 training subjects of 10 scans"),
        (1000, Hardware(2, 0, 5), [], "--nodes 5 is more than --cpus 2"),
        (1000, Hardware(2), ["pretraining.use_gpu=true"], "needs GPUs: give --gpus"),
    ],
)
def test_what_the_stages_would_refuse_is_refused(
    number: int, hardware: Hardware, overrides: list[str], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        plan(number, hardware, load_settings("cpu-small", overrides))


def test_next_to_nothing_teaches_no_rate(workspace: Workspace) -> None:
    path = workspace.patterns / "manifest.json"
    told = json.loads(path.read_text())
    told["counts"]["patterns"] = 100
    path.write_text(json.dumps(told))
    assert "discover" not in factors_of(workspace, SMALL)


def test_a_plan_needs_a_number_of_scans(tmp_path: Path) -> None:
    for workspace in (None, Workspace.open(tmp_path)):
        with pytest.raises(SettingsError, match=r"give --volumes, or --workspace with an archive"):
            plan(None, HARDWARE, SMALL, workspace)


def test_the_command_line(tmp_path: Path) -> None:
    done = raygenesis(
        "plan", "--volumes", "100000", "--cpus", "64", "--gpus", "8", "--nodes", "4", "--preset", "paper-3d",
        "prices.cpu_hour=0.05", "prices.gpu_hour=2.5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for stage in ("ingest", "auto-encoder", "embed", "neighbours", "discover", "pretrain", "sweep", "finetune", "all"):
        assert f"plan: {stage} " in done.stdout
    assert "cost" in done.stdout and "assumed and not measured" in done.stdout
    done = raygenesis("plan", "--volumes", "1000", "--json", "prices.cpu_hour=0.05")
    made = json.loads(done.stdout)
    assert made["scans"]["num_scans"] == 1000 and made["estimates"][0]["work"]["stage"] == "ingest"
    assert all(one["seconds"] > 0 and one["cost"] >= 0 for one in made["estimates"])
    refused = raygenesis("plan", "--volumes", "0")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr


# --- before a stage starts ------------------------------------------------------------------------


def test_a_stage_says_what_it_takes_and_warns(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    announce([ingest_work(ArchiveSize(10**9, 1000, 600))], workspace, SMALL)
    said = capsys.readouterr().out
    assert "ingest: 1,000,000,000 scans: about " in said and "at the rates of this workspace" in said
    assert "ingest: warning: only " in said
    announce([], workspace, SMALL)
    assert capsys.readouterr().out == ""
