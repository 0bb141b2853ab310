"""Plans of comparisons: what is begun with, on which targets, and every mistake in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raygenesis.errors import SettingsError
from raygenesis.studies.plan import PlannedInitialisation, StudyPlan, read_plan

BOXES = {"task": "segmentation", "images": "i", "labels": "l"}
WHOLE = {"initialisations": ["random", "semantic-genesis"], "cubes": 100, "targets": {"boxes": BOXES}}


def plan(folder: Path, **changed: Any) -> StudyPlan:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(WHOLE | changed))
    return read_plan(path)[0]


def starts(folder: Path, *initialisations: Any) -> list[tuple[str, str | None, str | None]]:
    found = plan(folder, initialisations=list(initialisations)).initialisations
    return [(start.title, start.pretext, start.weights) for start in found]


def test_a_word_is_a_pretext_task_random_a_run_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert starts(
        tmp_path, "random", "in-painting+semantics", "my-run.2", "w/Genesis Chest.pt", "/abs/b.safetensors", "~/c.pth"
    ) == [
        ("random", None, "random"), ("in-painting+semantics", "in-painting+semantics", None),
        ("my-run.2", None, "my-run.2"), ("Genesis-Chest", None, f"{tmp_path}/w/Genesis Chest.pt"),
        ("b", None, "/abs/b.safetensors"), ("c", None, "/home/me/c.pth"),
    ]  # fmt: skip


def test_initialisations_may_have_names(tmp_path: Path) -> None:
    longer = {"name": "longer", "pretext": "semantic-genesis", "settings": {"num_joint_epochs": 9}}
    assert starts(tmp_path, longer, "mine=run-1", {"name": "theirs", "weights": "a.pt"}, "short=rotation") == [
        ("longer", "semantic-genesis", None), ("mine", None, "run-1"), ("theirs", None, f"{tmp_path}/a.pt"),
        ("short", "rotation", None),
    ]  # fmt: skip


def test_weights_may_be_several_and_paths_among_them_are_relative(tmp_path: Path) -> None:
    assert starts(tmp_path, "random", "ours=run-1,w/x.pt") == [
        ("random", None, "random"), ("ours", None, f"run-1,{tmp_path}/w/x.pt"),
    ]  # fmt: skip


def test_targets_are_described_here_or_in_files(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/target.yaml").write_text(yaml.safe_dump(BOXES))
    (tmp_path / "plan.yaml").write_text(
        yaml.safe_dump({**WHOLE, "targets": {"here": BOXES, "there": "more/target.yaml"}})
    )
    found, targets = read_plan(tmp_path / "plan.yaml")
    assert found.cubes == 100 and list(targets) == ["here", "there"]
    assert (targets["here"].images, targets["there"].images) == (tmp_path / "i", tmp_path / "more/i")


@pytest.mark.parametrize(("changed", "said"), [
    ({"initialisations": ["random"]}, "initialisations=['random'] is not allowed: tuple should have at least 2 items"),
    ({"initialisations": ["random", "random"]}, "two are called 'random': give one of them another `name`"),
    ({"initialisations": ["a/x.pt", "b/x.pt"]}, "two are called 'x': give one of them another `name`"),
    ({"initialisations": ["random", {"name": "x"}]}, "give each either a `pretext` or `weights`"),
    ({"initialisations": ["random", {"pretext": "rotation", "weights": "r"}]}, "either a `pretext` or `weights`"),
    ({"initialisations": ["random", {"pretext": "rotations"}]}, "'rotations' is unknown: choose one of semantic-genes"),
    ({"initialisations": ["random", {"weights": "r", "settings": {"norm": "group"}}]},
     "r is not pretrained here: `settings` belong to a `pretext`"),
    ({"initialisations": ["random", {"weights": "r", "seeds": 2}]},
     "r is not pretrained here: `seeds: 2` belongs to a `pretext`"),
    ({"initialisations": ["random", {"pretext": "rotation", "seeds": 0}]}, "seeds=0 is not allowed"),
    ({"initialisations": ["random", {"pretex": "rotation"}]}, "did you mean 'initialisations.1.pretext'?"),
    ({"initialisations": ["random", {"name": "a b", "weights": "r"}]}, "name='a b' is not allowed"),
    ({"cubes": 0}, "cubes=0 is not allowed"), ({"targets": {}}, "targets={} is not allowed"),
    ({"cube": 3}, "unknown setting 'cube': did you mean 'cubes'?"),
    ({"targets": {"boxes": {**BOXES, "image": "x"}}},
     "target boxes: unknown setting 'image': did you mean 'images'?"),
    ({"targets": {"boxes": "no.yaml"}}, "no.yaml cannot be read: No such file"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        plan(tmp_path, **changed)
    assert said in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(("text", "said"), [
    ("a: [", "is not valid YAML"), ("", "must hold a mapping that describes a plan, and holds nothing"),
    ("- a", "must hold a mapping that describes a plan, and holds a list"), ("{}", "initialisations is missing"),
])  # fmt: skip
def test_a_file_that_is_no_plan_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(SettingsError, match=said) as error:
        read_plan(tmp_path / "plan.yaml")
    assert str(error.value).startswith(f"{tmp_path}/plan.yaml") and "\n" not in str(error.value)
    with pytest.raises(SettingsError, match=r"plan .*none\.yaml cannot be read: No such file"):
        read_plan(tmp_path / "none.yaml")


def test_a_start_is_called_as_what_it_is_unless_it_has_a_name() -> None:
    assert (
        PlannedInitialisation(weights="a/b.nii.pt").title == "b"
        and PlannedInitialisation(pretext="rotation").title == "rotation"
    )
    assert PlannedInitialisation(name="x", pretext="rotation").title == "x"
