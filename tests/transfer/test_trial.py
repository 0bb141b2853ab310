"""One trial, whatever the task and the mode: the same by its seed, and paired with the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from raygenesis.errors import SettingsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.weights.native import save_network
from raygenesis.settings import FinetuneSettings, settings_from
from raygenesis.transfer import stored_cases
from raygenesis.transfer.cases import Case, TrialCases
from raygenesis.transfer.examples import Target
from raygenesis.transfer.initialisations import Initialisation
from raygenesis.transfer.metrics import PRIMARY, figures
from raygenesis.transfer.resolved import form_for
from raygenesis.transfer.results import read_result, result_path
from raygenesis.transfer.setup import TrialSetup
from raygenesis.transfer.split import Trial
from raygenesis.transfer.stored_cases import StoredCases, StoredTrialCases
from raygenesis.transfer.trial import TrialTask, fine_tune, run_trial
from tests.support.cases import box_case, example, form, grey_case, write_run

SEGMENTATION, CLASSES = "segmentation", 3
NUM_CLASSES = {SEGMENTATION: CLASSES, "classification": 2, "multilabel": 2, "regression": 0}
MODES = ("full", "encoder", "frozen", "probe", "knn")
TASKS_AND_MODES = [(task, mode) for task in NUM_CLASSES for mode in MODES if (task, mode) != (SEGMENTATION, "knn")]
SEED = 3


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Initialisation]:
    folder = tmp_path_factory.mktemp("runs") / "ours"
    architecture = write_run(folder).architecture
    flat = Architecture(ndim=2, base_width=2)
    return {
        "random": Initialisation("random", None, architecture, ""), "ours": Initialisation("ours", folder,
        architecture, ""), "flat": Initialisation("flat", None, flat, ""),
    }  # fmt: skip


def setup(task: str, mode: str = "full", **settings: Any) -> TrialSetup:
    few = FinetuneSettings(**{"num_steps": 2, "batch_size": 2, "mode": mode, "k": 2, **settings})
    return TrialSetup(task, NUM_CLASSES[task], form(is_segmentation=task == SEGMENTATION), few)


def trial(seed: int = SEED, number: int = 0) -> Trial:
    return Trial(number, seed, "10%", 2, (example("s0"), example("s1")))


def cases(task: str, numbers: range) -> list[Case]:
    if task == SEGMENTATION:
        return [box_case(number, (10, 9, 8)) for number in numbers]
    values = {"classification": lambda n: n % 2, "multilabel": lambda n: (n % 2, (n // 2) % 2)}
    tell = values.get(task, lambda n: 10.0 + n)
    return [grey_case(number, tell(number), 0.2 + 0.6 * (number % 2)) for number in numbers]


def tuned(task: str, start: Initialisation, mode: str = "full", seed: int = SEED, **settings: Any) -> Any:
    parts = [cases(task, numbers) for numbers in (range(4), range(20, 24), range(10, 14))]
    return fine_tune(setup(task, mode, **settings), start, trial(seed), TrialCases(*parts))


@pytest.mark.parametrize(("task", "mode"), TASKS_AND_MODES)
def test_a_trial_tells_each_test_case_and_repeats_itself(
    starts: dict[str, Initialisation], task: str, mode: str
) -> None:
    learnt, rows = tuned(task, starts["ours"], mode)
    assert [row.name for row in rows] == [case.name for case in cases(task, range(10, 14))]
    assert all(np.isfinite(value) for value in figures(task, rows).values())
    again, same = tuned(task, starts["ours"], mode)
    assert rows == same
    trains = mode not in ("probe", "knn") and (task == SEGMENTATION or mode != "frozen")
    assert (learnt is not None) == trains
    if trains:
        assert learnt.losses == again.losses and len(learnt.losses) == 2


@pytest.mark.parametrize("task", NUM_CLASSES)
def test_the_seed_and_the_initialisation_count(starts: dict[str, Initialisation], task: str) -> None:
    ours, random = (tuned(task, starts[name])[0].losses for name in ("ours", "random"))
    other = tuned(task, starts["ours"], seed=4)[0].losses
    assert ours[0] != random[0] and ours[0] != other[0]


def test_nothing_but_the_encoder_counts_in_mode_encoder(starts: dict[str, Initialisation], tmp_path: Path) -> None:
    folder = tmp_path / "same-encoder"
    network = write_run(folder)
    with torch.no_grad():
        for weight in network.decoder.parameters():
            weight.add_(1.0)
    save_network(network, folder, {})
    other = Initialisation("other", folder, network.architecture, "")
    same, full = (
        [tuned(SEGMENTATION, start, mode)[0].losses for start in (starts["ours"], other)] for mode in ("encoder",
        "full")
    )  # fmt: skip
    assert same[0] == same[1] and full[0] != full[1]


@pytest.mark.parametrize(("task", "mode"), TASKS_AND_MODES)
def test_a_2d_network_takes_3d_images(starts: dict[str, Initialisation], task: str, mode: str) -> None:
    _, rows = tuned(task, starts["flat"], mode, num_steps=1)
    assert len(rows) == 4


def test_answers_of_a_regression_are_in_its_own_unit(starts: dict[str, Initialisation]) -> None:
    """Steps too small to learn anything: about the labelled mean."""
    _, rows = tuned("regression", starts["random"], learning_rate=1e-9)
    assert all(abs(row.answer - np.mean([10, 11, 12, 13])) < 2 for row in rows)


def test_a_segmentations_predictions_are_written_once(starts: dict[str, Initialisation], tmp_path: Path) -> None:
    test = cases(SEGMENTATION, range(10, 12))
    learnt = cases(SEGMENTATION, range(2))
    _, rows = fine_tune(setup(SEGMENTATION), starts["ours"], trial(), TrialCases(learnt, [], test), tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "example-ours-10percent.npz", "predictions/ours-10%/case-10.nii.gz", "predictions/ours-10%/case-11.nii.gz",
    ]  # fmt: skip
    for case, row in zip(test, rows, strict=True):
        predicted = np.asarray(nibabel.load(tmp_path / "predictions/ours-10%" / case.name).dataobj).T
        assert [int((predicted == number).sum()) for number in (1, 2)] == row.voxels_predicted


def test_neighbours_cannot_segment() -> None:
    knn = settings_from({"finetune": {"mode": "knn"}})
    with pytest.raises(SettingsError, match=r"finetune\.mode=knn .*: give full, encoder, frozen or probe to segment"):
        form_for(Target(SEGMENTATION, 3, ("a",), (example("s0"),)), knn.finetune, knn.intensity, (8, 8, 8))
    assert not form_for(
        Target("classification", 3, ("a", "b"), (example("s0"),)), knn.finetune, knn.intensity, (8, 8, 8)
    ).is_segmentation


class Here(list):
    """Cases that lie here rather than in Ray's object store."""

    def read(self) -> list[Case]:
        return list(self)


@pytest.mark.parametrize(("task", "mode"), [(SEGMENTATION, "full"), ("classification", "full"), ("regression", "knn")])
def test_a_trial_leaves_all_that_is_to_be_known(
    starts: dict[str, Initialisation], tmp_path: Path, task: str, mode: str
) -> None:
    parts = [Here(cases(task, numbers)) for numbers in (range(4), range(0), range(10, 14))]
    run = TrialTask(starts["ours"], trial(number=1), "a key", StoredTrialCases(*parts))
    said = run_trial(run, setup(task, mode), tmp_path)
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]  # predictions are the first trial's
    assert path == result_path(tmp_path, "ours", "10%", 1) == tmp_path / "trial-ours-10percent-1.json"
    found = json.loads(path.read_text())
    assert (found["key"], found["initialisation"], found["labelled"], found["trial"], found["seed"]) == (
        "a key", "ours", "10%", 1, SEED,
    )  # fmt: skip
    assert found["subjects"] == 2 and found["learnt_from"] == [case.name for case in parts[0]]
    assert found["figures"] == pytest.approx(figures(task, read_result(path).test))
    primary = PRIMARY[task]
    assert said == f"ours {primary.title} {found['figures'][primary.name]:.3f}"
    if mode == "knn":
        assert (found["steps"], found["loss"], found["epochs_to_converge"]) == (0, None, None)
    else:
        assert found["curve"] == [] and found["rate"] is None  # without validation, and of one rate
        assert found["steps"] == 2 and found["epochs_to_converge"] in (2 / 4, 2 * 2 / 4)


def test_the_curve_of_a_regression_is_of_its_errors_as_they_are_reported(
    starts: dict[str, Initialisation], tmp_path: Path
) -> None:
    parts = [Here(cases("regression", numbers)) for numbers in (range(4), range(20, 24), range(20, 24))]
    run = TrialTask(starts["random"], trial(number=1), "a key", StoredTrialCases(*parts), 0.002, tunes=True)
    run_trial(run, setup("regression", learning_rate=[0.002, 0.01]), tmp_path)
    (path,) = tmp_path.iterdir()
    found = read_result(path)
    assert path.name == "tuning-random-10percent-0.002-1.json" and found.rate == 0.002
    assert [step for step, _ in found.curve] == [1, 2]
    assert min(error for _, error in found.curve) == pytest.approx(found.figures["mae"])  # of the weights that are kept


def test_a_trial_gets_only_the_blocks_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = ("block 0", "block 1", "block 2")
    stored = StoredCases(blocks, {"a": (0, 0), "b": (2, 1), "c": (2, 0), "d": (1, 0)})
    some = stored.select([example("s", name=name) for name in ("c", "a", "b")])
    assert some.blocks == ("block 0", "block 2")
    content = {"block 0": ["case a"], "block 2": ["case c", "case b"]}
    monkeypatch.setattr(stored_cases.ray, "get", lambda references: [content[reference] for reference in references])
    assert some.read() == ["case c", "case a", "case b"]


def test_a_setup_knows_its_device() -> None:
    assert setup("regression").device == "cpu"
    assert TrialSetup("regression", 0, form(), FinetuneSettings(), num_gpus=0.5).device == "cuda"
