"""A whole plan: refused before any work where it is at fault, alike for every initialisation, and going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raygenesis.cluster.work import Announce, unannounced
from raygenesis.errors import RaygenesisError, SettingsError
from raygenesis.settings import Settings, settings_from
from raygenesis.studies import study as module
from raygenesis.studies.compare import compare
from raygenesis.studies.plan import read_plan
from raygenesis.studies.study import Study, epochs_by_phase, pretrain_initialisation
from raygenesis.transfer.results import results_in
from raygenesis.workspace.artifacts import RUNS, TRANSFER
from raygenesis.workspace.workspace import Workspace
from tests.support.cases import write_run
from tests.support.stores import StorePlan
from tests.support.targets import SHAPE, write_boxes, write_catalogue, write_sizes

TARGETS = {
    "boxes": {"task": "segmentation", "images": "boxes/images", "labels": "boxes/labels"},
    "sizes": {
        "task": "classification", "images": "sizes/images", "labels": "sizes/values.csv", "value_column": "size",
        "settings": {"num_labelled": [2, 4]},
    },
}  # fmt: skip
PLAN = {
    "initialisations": [
        "random", {"pretext": "semantic-genesis", "seeds": 2},
        {"name": "strong", "pretext": "semantic-genesis", "settings": {"lambda_cls": 1}},
        {"name": "given", "weights": "given/encoder.safetensors"},
    ],
    "cubes": 40,
    "targets": TARGETS,
}  # fmt: skip


def settings() -> Settings:
    tree = settings_from({}).model_dump(mode="json")
    tree["discovery"] |= {"cube_shape": SHAPE, "scales": [{"extent_mm": SHAPE}], "num_neighbours": 6}
    tree["autoencoder"] |= {"input_shape": SHAPE}
    tree["pretraining"] |= {
        "base_width": 2, "batch_size": 4, "num_classification_epochs": 1, "num_joint_epochs": 1, "trackers": [],
    }  # fmt: skip
    tree["finetune"] |= {"num_labelled": [2], "num_test": 3, "num_trials": 2, "num_steps": 3, "batch_size": 2}
    return settings_from(tree)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "workspace")
    StorePlan(references=1, coordinates=2, neighbours=6, held_out=3, scales=1, shape=SHAPE).write(made.patterns)
    write_boxes(tmp_path / "boxes", 8)
    write_sizes(tmp_path / "sizes", 10)
    write_catalogue(made, {f"a{n}": tmp_path / "boxes" / "images" / f"sub-{n}.nii.gz" for n in range(3)})
    write_run(tmp_path / "given")
    return made


def plan_file(folder: Path, **changes: Any) -> Path:
    path = folder / "heads.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}))
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_every_initialisation_sees_as_many_cubes_and_every_target_and_an_interrupted_plan_goes_on(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = compare(plan_file(tmp_path), workspace, settings())
    names = ["random", "semantic-genesis", "strong", "given"]
    assert [row["initialisation"] for row in manifest.overview] == names
    assert len(manifest.overview[0]) == 1 + 3  # boxes with two labelled, sizes with two and with four
    names_of_runs = ("semantic-genesis-0", "semantic-genesis-1", "strong-0")
    runs = {name.rpartition("-")[0]: RUNS.require(workspace.run(f"heads-{name}")) for name in names_of_runs}
    assert {run.counts.epochs for run in runs.values()} == {3}  # of 12 patterns each: 36 cubes of 40
    assert runs["strong"].settings["pretraining"]["lambda_cls"] == 1
    assert runs["semantic-genesis"].settings["seed"] == 0  # who is held out is the same for all
    assert runs["semantic-genesis"].settings["pretraining"]["seed"] == 1 and manifest.cubes["semantic-genesis"] == 36
    sizes = TRANSFER.require(workspace.transfer("heads-sizes"))
    assert sizes.command == manifest.command == ("compare", "heads.yaml")
    results = results_in(workspace.transfer("heads-sizes"), sizes.extent)
    assert set(results) == {2, 4} and all(
        list(starts) == names or set(starts) == set(names) for starts in results.values()
    )
    folder = workspace.comparison("heads")
    for file in ("table.csv", "table.md", "table.tex", "figures/sizes-in-heads-auc-by-labelled-subjects.svg"):
        assert "semantic-genesis" in (folder / file).read_text()
    assert "](figures/sizes-in-heads-auc-by-labelled-subjects.svg)" in (folder / "table.md").read_text()
    assert sizes.runs["semantic-genesis"] == "heads-semantic-genesis-0,heads-semantic-genesis-1"

    capsys.readouterr()
    assert compare(plan_file(tmp_path), workspace, settings()) == manifest
    assert "nothing to do: the tables are in" in capsys.readouterr().out

    # As if killed while the second target was learnt.
    lost = workspace.transfer("heads-sizes") / "trial-given-4-1.json"
    kept = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("trial-*.json") if path != lost}
    for path in (lost, lost.parent / "manifest.json"):
        path.unlink()
    again = compare(plan_file(tmp_path), workspace, settings())
    assert again.overview == manifest.overview
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    # Tables are made anew when something is added to the plan.
    fewer = compare(plan_file(tmp_path, initialisations=PLAN["initialisations"][:3]), workspace, settings())
    assert [row["initialisation"] for row in fewer.overview] == names[:3]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"initialisations": ["random"]}, "initialisations"),
        ({"initialisations": ["random", {"pretext": "nothing"}]}, "pretext 'nothing' is unknown"),
        ({"initialisations": ["random", "random"]}, "two are called 'random'"),
        ({"initialisations": ["random", {"weights": "a.pt", "settings": {"lambda_cls": 1}}]}, "is not pretrained here"),
        ({"initialisations": ["random", "models-genesys"]}, "(did you mean models-genesis?), nor a finished"),
        ({"initialisations": ["random", "boxes/nothing.pt"]}, "boxes/nothing.pt does not exist"),
        ({"initialisations": ["random", "rubiks-cube"]}, "too small for the pretext task rubiks-cube"),
        (
            {"initialisations": ["random", {"pretext": "semantic-genesis", "settings": {"num_neighbours": 7}}]},
            "pretraining.num_neighbours=7 is more than the 6 in the store",
        ),
        (
            {"initialisations": ["random", {"pretext": "semantic-genesis", "seeds": 3}]},
            "finetune.num_trials=2 is fewer than the 3 pretrainings of semantic-genesis",
        ),
        ({"cubes": 0}, "cubes=0"),
        ({"epochs": 3}, "unknown setting 'epochs'"),
        ({"targets": {"boxes": "nothing.yaml"}}, "nothing.yaml cannot be read"),
        ({"targets": {"boxes": {**TARGETS["boxes"], "labels": "nothing"}}}, "does not exist"),
        ({"targets": {"a/b": TARGETS["boxes"]}}, "a/b"),
    ],
)
def test_a_fault_of_the_plan_is_one_sentence_before_any_work(
    workspace: Workspace, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RaygenesisError) as error:
        compare(plan_file(tmp_path, **changes), workspace, settings())
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (workspace.root / "runs").exists() and not (workspace.root / "transfer").exists()


def test_a_run_of_other_images_than_those_of_the_plan_is_refused_before_any_work(
    workspace: Workspace, tmp_path: Path
) -> None:
    tree = settings().model_dump(mode="json") | {"intensity": {"window": [0, 1000]}}
    (tmp_path / "given" / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(
        SettingsError, match=r"^intensity\.window would be \[0\.0, 1000\.0\] as given was .* and null as s"
    ):
        compare(plan_file(tmp_path), workspace, settings())
    assert not (workspace.root / "runs").exists()


def test_a_store_of_less_than_a_batch_is_an_epoch_of_all_it_holds(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def pretrain(workspace: Workspace, settings: Settings, run: str, announce: Announce) -> None:
        trained.append(settings.pretraining)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "pretrain", pretrain)
    tree = settings().model_dump(mode="json")
    tree["pretraining"] |= {"batch_size": 64}
    with pytest.raises(KeyboardInterrupt):
        compare(plan_file(tmp_path, cubes=36), workspace, settings_from(tree))
    (chosen,) = trained  # of 12 patterns
    assert chosen.num_classification_epochs + chosen.num_joint_epochs == 3


def test_seeds_of_a_pretraining_count_on_from_the_settings_and_more_of_them_leave_the_others(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int, int | None]] = []

    def pretrain(workspace: Workspace, settings: Settings, run: str, announce: Announce) -> None:
        trained.append((run, settings.seed, settings.pretraining.seed))

    monkeypatch.setattr(module, "pretrain", pretrain)
    first = {"pretext": "in-painting+semantics", "seeds": 3}
    second = {"name": "other", "pretext": "semantic-genesis", "seeds": 2, "settings": {"seed": 7}}
    plan, targets = read_plan(plan_file(tmp_path, initialisations=[first, second]))
    tree = settings().model_dump(mode="json") | {"seed": 4}
    study = Study("heads", plan, targets, workspace, settings_from(tree), unannounced)
    for planned in plan.initialisations:
        ready = pretrain_initialisation(study, planned)
        assert ready.source.split(",") == [run for run, *_ in trained[-planned.seeds :]]
    assert trained == [
        ("heads-in-painting-semantics-0", 4, None), ("heads-in-painting-semantics-1", 4, 5),
        ("heads-in-painting-semantics-2", 4, 6), ("heads-other-0", 4, 7), ("heads-other-1", 4, 8),
    ]  # fmt: skip


def test_epochs_are_shared_out_in_the_settings_proportion() -> None:
    def of(pretext: str, epochs: int) -> tuple[int, int]:
        tree = settings_from(
            {"pretraining": {"pretext": pretext, "num_classification_epochs": 20, "num_joint_epochs": 60}}
        )
        shared = epochs_by_phase(tree.pretraining, epochs)
        return shared["num_classification_epochs"], shared["num_joint_epochs"]

    assert of("semantic-genesis", 8) == (2, 6) and of("semantic-genesis", 1) == (0, 1)
    assert of("models-genesis", 8) == (0, 8) and of("self-classification", 8) == (0, 8)
