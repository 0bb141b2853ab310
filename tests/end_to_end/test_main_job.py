"""The main job on real heads, bad files among them, through the command line."""

from __future__ import annotations

import html
import json
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import raygenesis as package
from raygenesis.cli import main
from raygenesis.workspace.workspace import IGNORE_FILES
from tests.support.main_job import BAD_SCANS, NUM_HEADS, TINY, MainJob, raygenesis


def snapshot(folder: Path) -> dict[str, int]:
    """Modification time of every file, the report's and the records of jobs aside."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not {"report", "jobs"} & set(path.parts)
    }


def paths_of(workspace: Path) -> dict[str, str]:
    """What the archive calls a scan, and its path: the private table alone knows."""
    rows = pq.read_table(workspace / "private" / "sources.parquet").to_pylist()
    return {row["source"]: row["path"] for row in rows}


def test_every_stage_leaves_its_artifact(main_job: MainJob) -> None:
    for name in ("archive", "autoencoder", "embeddings", "index", "neighbours", "patterns", "runs/default"):
        manifest = json.loads((main_job.workspace / name / "manifest.json").read_text())
        assert manifest["seconds"] > 0
    assert (main_job.workspace / "report" / "index.html").stat().st_size > 10_000


def test_bad_scans_are_listed_with_their_reasons_and_the_run_goes_on(main_job: MainJob) -> None:
    failures = pq.read_table(main_job.workspace / "archive" / "failures.parquet").to_pylist()
    paths = paths_of(main_job.workspace)
    reasons = {paths[row["source"]]: row["reason"] for row in failures}
    assert reasons.keys() == BAD_SCANS.keys()
    for source, reason in BAD_SCANS.items():
        assert reason in reasons[source]
    archived = json.loads((main_job.workspace / "archive" / "manifest.json").read_text())["counts"]
    assert archived["volumes"] == NUM_HEADS + 1


def test_a_scan_smaller_than_a_crop_is_left_out_of_discovery(main_job: MainJob) -> None:
    failures = pq.read_table(main_job.workspace / "patterns" / "failures.parquet").to_pylist()
    assert [paths_of(main_job.workspace)[row["source"]] for row in failures] == ["tiny.nii.gz"]
    assert "smaller than the largest crop" in failures[0]["reason"]


def test_a_small_archive_is_searched_exactly_and_says_so(main_job: MainJob) -> None:
    assert "exact search among 13 volumes is cheaper (recall 1)" in main_job.output
    index = json.loads((main_job.workspace / "index" / "manifest.json").read_text())
    assert (index["method"], index["recall"], index["shards"]) == ("exact", 1.0, [])


def test_whether_discovery_found_anatomy_is_said_and_recorded(main_job: MainJob) -> None:
    assert "patterns of one class correlate with the reference's by" in main_job.output
    quality = json.loads((main_job.workspace / "patterns" / "manifest.json").read_text())["quality"]
    near, random = quality["neighbours"], quality["random"]
    assert near["num_patients"] == 5 and random["num_patients"] == 3
    assert near["within"] > random["within"] > near["between"]


def test_validation_subjects_are_never_training_subjects(main_job: MainJob) -> None:
    parts = sorted((main_job.workspace / "patterns").glob("part-*.parquet"))
    rows = [row for path in parts for row in pq.read_table(path, columns=["split", "volume_id"]).to_pylist()]
    training = {row["volume_id"] for row in rows if row["split"] == "training"}
    validation = {row["volume_id"] for row in rows if row["split"] == "validation"}
    assert len(training) == 6 and len(validation) == 2
    assert not training & validation


def test_the_encoder_opens_without_ray(main_job: MainJob) -> None:
    script = (
        "import sys, torch, raygenesis\n"
        f"encoder = raygenesis.load_encoder({str(main_job.workspace / 'runs' / 'default')!r})\n"
        "print(tuple(encoder.embed(torch.rand(2, 1, 32, 32, 32)).shape), 'ray' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 32) False"


def test_the_pretrained_network_is_the_best_epochs(main_job: MainJob) -> None:
    run = main_job.workspace / "runs" / "default"
    manifest = json.loads((run / "manifest.json").read_text())
    rows = pq.read_table(run / "metrics.parquet").to_pylist()
    assert [row["phase"] for row in rows] == ["classification", "joint", "joint"]
    best = min((row for row in rows if row["phase"] == "joint"), key=lambda row: row["val_loss"])
    assert manifest["epoch"] == best["epoch"]
    assert manifest["restoration_mse"] == best["val_restoration"]
    assert all(torch.isfinite(value).all() for value in package.load_network(run).state_dict().values())


def test_rays_own_words_do_not_reach_the_user(main_job: MainJob) -> None:
    words = ("logging.cc", "worker.py", "services.py", "authentication_token", "RAY_")
    assert not [line for line in main_job.errors.splitlines() if any(word in line for word in words)]


@pytest.mark.slow
def test_a_second_run_does_nothing_and_says_so(main_job: MainJob) -> None:
    before = snapshot(main_job.workspace)
    done = raygenesis("run", "--scans", main_job.scans, "--workspace", main_job.workspace, *TINY)
    assert done.returncode == 0, done.stderr
    for stage in ("ingest", "auto-encoder", "embed", "discover", "pretrain"):
        assert f"{stage}: nothing to do" in done.stdout
    assert snapshot(main_job.workspace) == before


def test_the_commands_of_the_report_make_what_there_is(main_job: MainJob, capsys: pytest.CaptureFixture[str]) -> None:
    page = (main_job.workspace / "report" / "index.html").read_text()
    listed = page.partition("<h3>Commands</h3>")[2].partition("</pre>")[0].partition(">")[2]
    commands = [shlex.split(line) for line in html.unescape(listed).splitlines()]
    assert [command[1] for command in commands] == ["ingest", "embed", "neighbours", "discover", "pretrain"]
    for command in commands:
        with pytest.raises(SystemExit) as done:
            main([str(main_job.scans) if word == "SCANS" else word for word in command[1:]])
        assert done.value.code == 0 and f"{command[1]}: nothing to do" in capsys.readouterr().out


def test_other_settings_are_refused_with_the_keys_that_differ(main_job: MainJob) -> None:
    done = raygenesis("discover", "--workspace", main_job.workspace, *TINY, "discovery.num_coordinates=3")
    assert done.returncode == 2
    assert "discovery.num_coordinates was 4 and is now 3" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["discovery.num_neighbors=3"], "did you mean 'discovery.num_neighbours'?"),
        (["discovery.num_neighbours=many"], "discovery.num_neighbours='many'"),
        (["discovery.num_neighbours=40"], "more than the 14 training subjects"),
        (["discovery.cube_shape=[30,32,32]"], "multiple of 8"),
        ([*TINY, "discovery.num_coordinates=5000"], "does not fit in the smallest scan"),
        (["pretraining.corruption=magic"], "choose one of models-genesis"),
    ],
)
def test_an_impossible_setting_is_one_sentence_before_any_work(
    main_job: MainJob,
    tmp_path: Path,
    settings: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--scans", str(main_job.scans), "--workspace", str(tmp_path / "workspace"), *settings])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    # At most the job's record, which says why, and what keeps the workspace out of a job's code.
    left = [path for path in (tmp_path / "workspace").rglob("*") if path.is_file() and path.name not in IGNORE_FILES]
    assert {path.parent for path in left} <= {tmp_path / "workspace" / "private" / "jobs"}


def test_an_empty_folder_and_a_folder_without_a_readable_scan(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "scan.nii").write_text("nothing")
    (tmp_path / "empty").mkdir()
    for verb, folder, sentences in (
        ("run", "empty", ["no scan found in"]),
        ("ingest", "bad", ["none of the 1 scans", "scan.nii: not readable as NIfTI"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--scans", str(tmp_path / folder), "--workspace", str(tmp_path / "workspace")])
        said = capsys.readouterr().err
        assert stopped.value.code == 2
        assert all(sentence in said for sentence in sentences) and "Traceback" not in said


def test_an_unwritable_workspace_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "a.nii")
    done = raygenesis("ingest", "--scans", tmp_path, "--workspace", tmp_path / "file" / "workspace")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr and done.stderr.count("\n") == 1
