"""Every `raygenesis` line and Python snippet of README and documentation, run in the order of the pages."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from raygenesis.cli import main
from raygenesis.patterns.reader import read_patterns
from tests.support.data import HEADS, HIPPOCAMPI, RADIOGRAPHS, needs_hippocampi
from tests.support.main_job import NUM_HEADS, TINY, MainJob
from tests.support.pages import blocks, lines, pages

# The first test follows all lines; `.ci/run` runs them beside the quick tests.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

FASTER = [
    *TINY,
    "sweep.num_classification_epochs=1",
    "sweep.num_joint_epochs=1",
    "sweep.num_points=3",
    "finetune.num_steps=2",
    "finetune.num_test=2",
    "finetune.num_trials=2",
]
WITHOUT_SETTINGS = ("config", "doctor", "archive", "patterns", "pretexts", "weights", "--volume")


def follow(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command line, on the Ray that tests share: a start for each line would cost minutes."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(list(arguments))
        except SystemExit as ended:
            return int(ended.code or 0), output.getvalue()
    return 0, output.getvalue()


def shown(*languages: str) -> Iterator[str]:
    """The `raygenesis` lines of all pages in their order, each once."""
    found = (line for page in pages() for line in lines(page, *languages) if line.startswith("raygenesis "))
    return iter(dict.fromkeys(found))


@pytest.fixture(scope="module")
def desk(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which a reader works: what the pages name is there under its name."""
    if not HIPPOCAMPI.is_dir():
        pytest.skip(f"labelled hippocampi are not at {HIPPOCAMPI}")
    root = tmp_path_factory.mktemp("desk")
    (root / "SCANS").symlink_to(main_job.scans)
    shutil.copytree(main_job.workspace, root / "WORKSPACE")
    for name, folder in {"IMAGES": HIPPOCAMPI / "images", "LABELS": HIPPOCAMPI / "labels", "t1": HEADS}.items():
        (root / name).symlink_to(folder)
    shutil.copy(HEADS.parent / "subjects.csv", root)
    shutil.copy(sorted(HEADS.glob("*.nii.gz"))[NUM_HEADS], root / "NEW.nii.gz")
    (root / "RADIOGRAPHS").mkdir()
    for path in sorted(RADIOGRAPHS.glob("*.png"))[:: len(list(RADIOGRAPHS.glob("*.png"))) // 24]:
        shutil.copy(path, root / "RADIOGRAPHS")
    # As the pages have them, but for the size of the store and the length of training.
    smaller = {"high: 24": "high: 6", "20000": "20", "seeds: 3": "seeds: 2"}  # no more pretrainings than trials
    for page in pages():
        for block in blocks(page, "yaml"):
            if block.title:
                text = re.sub("|".join(smaller), lambda match: smaller[match[0]], block.text)
                (root / block.title).write_text(text)
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


@pytest.fixture(scope="module")
def followed(ray_cluster: None, desk: Path) -> dict[str, str]:
    """Output of each line."""
    volume_id = read_patterns(desk / "WORKSPACE" / "patterns", ["volume_id"])["volume_id"][0].as_py()
    assert follow("weights", "export", "WORKSPACE/runs/default", "--output", "genesis.pt")[0] == 0
    outputs = {"ID": volume_id}
    for line in shown("console"):
        arguments = [volume_id if word == "ID" else word for word in shlex.split(line)[1:]]
        takes_settings = not any(word in WITHOUT_SETTINGS for word in arguments)
        code, output = follow(*arguments, *(FASTER if takes_settings else []))
        assert code == 0, line + "\n" + output
        outputs[line] = output
    return outputs


@needs_hippocampi
def test_each_verb_is_shown_and_runs(followed: dict[str, str]) -> None:
    verbs = {line.split()[1] for line in followed if line.startswith("raygenesis ")}
    assert verbs == {
        "run", "ingest", "archive", "config", "embed", "neighbours", "discover", "patterns", "sweep", "finetune",
        "report", "crop", "pretrain", "pretexts", "weights", "compare", "plan", "status", "doctor",
    }  # fmt: skip


def test_the_sweep_ranks_eight_points_of_one_store_without_cropping(
    followed: dict[str, str], desk: Path, main_job: MainJob
) -> None:
    workspace = desk / "WORKSPACE"
    table = json.loads((workspace / "sweeps" / "default" / "manifest.json").read_text())["table"]
    assert {(row["lambda_cls"], row["num_neighbours"], row["num_coordinates"]) for row in table} == {
        (weight, k, c) for weight in (0.01, 0.1) for k in (3, 6) for c in (2, 4)
    }
    assert all(row["patterns"] == row["num_neighbours"] * row["num_coordinates"] for row in table)
    scores = [row["retrieval"] for row in table]
    assert scores == sorted(scores, reverse=True)
    for part in (main_job.workspace / "patterns").iterdir():
        assert (workspace / "patterns" / part.name).stat().st_mtime_ns == part.stat().st_mtime_ns
    searched = json.loads((workspace / "sweeps" / "wide" / "manifest.json").read_text())
    assert searched["counts"]["points"] == 3
    assert all(4 <= row["num_neighbours"] <= 6 and 1e-4 <= row["learning_rate"] <= 1e-2 for row in searched["table"])
    _, best = follow("config", "--preset", str(workspace / "sweeps" / "default" / "best.yaml"))
    assert f"num_neighbours: {table[0]['num_neighbours']}" in best


def test_finetuning_compares_random_with_pretrained_weights(followed: dict[str, str], desk: Path) -> None:
    manifest = json.loads((desk / "WORKSPACE" / "transfer" / "default" / "manifest.json").read_text())
    assert [row["initialisation"] for row in manifest["table"]] == ["random", "default"]
    assert all(0 <= row["mean"] <= 1 and row["trials"] == 2 for row in manifest["table"])


def test_a_table_of_sexes_is_learnt_from_three_initialisations_and_a_plan_compares_four(
    followed: dict[str, str], desk: Path
) -> None:
    workspace = desk / "WORKSPACE"
    manifest = json.loads((workspace / "transfer" / "sex" / "manifest.json").read_text())
    assert manifest["classes"] == ["F", "M"] and manifest["counts"]["left_out"] == 2
    assert [row["initialisation"] for row in manifest["table"]] == [
        "random", "random-batch-statistics", "default", "released",
    ]  # fmt: skip
    compared = json.loads((workspace / "comparisons" / "PLAN" / "manifest.json").read_text())
    names = ["random", "random-batch-statistics", "models-genesis", "semantic-genesis", "released"]
    assert [row["initialisation"] for row in compared["overview"]] == names
    assert {row["target"] for row in compared["semantics"]} == {"hippocampus", "sex"}


def test_the_patterns_of_a_scan_can_be_looked_through(followed: dict[str, str], desk: Path) -> None:
    assert f"Patterns of volume {followed['ID']}" in (desk / "patterns.html").read_text()


def test_the_page_tells_of_the_sweep_and_the_target(followed: dict[str, str], desk: Path) -> None:
    follow("report", "--workspace", "WORKSPACE")
    page = (desk / "WORKSPACE" / "report" / "index.html").read_text()
    assert "semantic-genesis" in page and "retrieval" in page


def test_the_python_snippets_run(followed: dict[str, str]) -> None:
    snippets = [block.text for page in pages() for block in blocks(page, "python")]
    assert len(snippets) >= 9
    for snippet in dict.fromkeys(snippets):
        exec(snippet, {})
