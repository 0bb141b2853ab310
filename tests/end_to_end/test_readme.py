"""Every `raygenesis` line and the Python snippet of the README, run in their order on a small workspace."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from raygenesis.cli import main
from raygenesis.patterns.reader import read_patterns
from tests.support.data import HEADS, HIPPOCAMPI, RADIOGRAPHS, needs_hippocampi
from tests.support.main_job import TINY, MainJob

# The first test follows all lines; `.ci/run` runs them beside the quick tests.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
FASTER = [
    *TINY,
    "sweep.num_classification_epochs=1",
    "sweep.num_joint_epochs=1",
    "sweep.num_points=3",
    "finetune.num_steps=2",
    "finetune.num_test=2",
    "finetune.num_trials=2",
]


WITHOUT_SETTINGS = ("config", "archive", "patterns", "pretexts", "weights")


def console_lines(start: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(start)]


def follow(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command line, on the Ray that tests share: a start for each line would cost minutes."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(list(arguments))
        except SystemExit as ended:
            return int(ended.code or 0), output.getvalue()
    return 0, output.getvalue()


@pytest.fixture(scope="module")
def followed(ray_cluster: None, main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Output of each README line; `WORKSPACE` is a copy of the main job's, or another where other settings make it."""
    root = tmp_path_factory.mktemp("readme")
    shutil.copytree(main_job.workspace, root / "workspace")
    if not HIPPOCAMPI.is_dir():
        pytest.skip(f"labelled hippocampi are not at {HIPPOCAMPI}")
    radiographs = root / "radiographs"
    radiographs.mkdir()
    for path in sorted(RADIOGRAPHS.glob("*.png"))[:: len(list(RADIOGRAPHS.glob("*.png"))) // 24]:
        shutil.copy(path, radiographs)
    # As the README has them, but for the size of the store, the length of training and places here.
    space, target, plan = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (root / "space.yaml").write_text(space.replace("high: 24", "high: 6"))
    target = target.replace(": t1", f": {HEADS}").replace("subjects.csv", f"{HEADS.parent}/subjects.csv")
    (root / "TARGET.yaml").write_text(target)
    plan = plan.replace("IMAGES", f"{HIPPOCAMPI}/images").replace("LABELS", f"{HIPPOCAMPI}/labels")
    plan = plan.replace("20000", "20").replace("seeds: 3", "seeds: 2")  # no more pretrainings than trials
    (root / "PLAN.yaml").write_text(plan)
    volume_id = read_patterns(main_job.workspace / "patterns", ["volume_id"])["volume_id"][0].as_py()
    outputs = {"ID": volume_id, "patterns.html": str(root / "patterns.html")}
    for line in console_lines("raygenesis "):
        workspace = root / ("other" if "subject_pattern" in line else "workspace")
        places = {
            "SCANS": main_job.scans, "WORKSPACE": workspace, "IMAGES": HIPPOCAMPI / "images",
            "LABELS": HIPPOCAMPI / "labels", "archive.png": root / "archive.png", "EMBEDDINGS": root / "embeddings",
            "patterns.png": root / "patterns.png", "patterns.html": root / "patterns.html", "ID": volume_id,
                "nearest.html": root / "nearest.html",
            "WORKSPACE/runs/default": workspace / "runs" / "default",
            "WORKSPACE/runs/rotation": workspace / "runs" / "rotation", "genesis.pt": root / "genesis.pt",
            "SPACE.yaml": root / "space.yaml", "TARGET.yaml": root / "TARGET.yaml", "PLAN.yaml": root / "PLAN.yaml",
            "released=genesis.pt": f"released={root / 'genesis.pt'}",
            "WORKSPACE/sweeps/default/best.yaml": workspace / "sweeps" / "default" / "best.yaml",
            "RADIOGRAPHS": radiographs, "WORKSPACE-2D": root / "flat",
        }  # fmt: skip
        arguments = [str(places.get(word, word)) for word in shlex.split(line)[1:]]
        code, output = follow(*arguments, *([] if arguments[0] in WITHOUT_SETTINGS else FASTER))
        assert code == 0, line + "\n" + output
        outputs[line] = output
    outputs["workspace"] = str(root / "workspace")
    return outputs


@needs_hippocampi
def test_each_verb_that_the_readme_shows_runs(followed: dict[str, str]) -> None:
    verbs = {line.split()[1] for line in followed if line.startswith("raygenesis ")}
    assert verbs == {
        "run", "ingest", "archive", "config", "embed", "neighbours", "patterns", "sweep", "finetune", "report", "crop",
        "pretrain", "pretexts", "weights", "compare", "plan", "status",
    }  # fmt: skip


def test_the_sweep_ranks_eight_points_of_one_store_without_cropping(
    followed: dict[str, str], main_job: MainJob
) -> None:
    workspace = Path(followed["workspace"])
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


def test_finetuning_compares_random_with_pretrained_weights(followed: dict[str, str]) -> None:
    manifest = json.loads((Path(followed["workspace"]) / "transfer" / "default" / "manifest.json").read_text())
    assert [row["initialisation"] for row in manifest["table"]] == ["random", "default"]
    assert all(0 <= row["mean"] <= 1 and row["trials"] == 2 for row in manifest["table"])


def test_a_table_of_sexes_is_learnt_from_three_initialisations_and_a_plan_compares_four(
    followed: dict[str, str],
) -> None:
    workspace = Path(followed["workspace"])
    manifest = json.loads((workspace / "transfer" / "sex" / "manifest.json").read_text())
    assert manifest["classes"] == ["F", "M"] and manifest["counts"]["left_out"] == 2
    assert [row["initialisation"] for row in manifest["table"]] == [
        "random", "random-batch-statistics", "default", "released",
    ]  # fmt: skip
    compared = json.loads((workspace / "comparisons" / "PLAN" / "manifest.json").read_text())
    names = ["random", "random-batch-statistics", "models-genesis", "semantic-genesis", "released"]
    assert [row["initialisation"] for row in compared["overview"]] == names
    assert {row["target"] for row in compared["semantics"]} == {"hippocampus", "sex"}


def test_the_patterns_of_a_scan_can_be_looked_through(followed: dict[str, str]) -> None:
    assert f"Patterns of volume {followed['ID']}" in Path(followed["patterns.html"]).read_text()


def test_the_page_tells_of_the_sweep_and_the_target(followed: dict[str, str]) -> None:
    page = (Path(followed["workspace"]) / "report" / "index.html").read_text()
    assert "semantic-genesis" in page and "retrieval" in page


def test_the_python_snippets_run(followed: dict[str, str]) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 4
    for snippet in snippets:
        exec(snippet.replace("WORKSPACE", followed["workspace"]), {})


def test_the_readme_claims_no_verb_that_is_missing() -> None:
    named = set(re.findall(r"`(ingest|embed|neighbours|discover|crop|pretrain|sweep|finetune|compare|report)`", README))
    for verb in named:
        assert follow(verb, "--help")[0] == 0
    submitted = re.findall(r"-- python (jobs/\w+\.py)", README)
    assert submitted and all((Path(__file__).resolve().parents[2] / script).is_file() for script in submitted)
