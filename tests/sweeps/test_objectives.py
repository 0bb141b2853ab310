"""Objectives on encoders whose answers are known, and why some cannot rank some spaces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from raygenesis.errors import SettingsError
from raygenesis.pretraining.task import PretextTask
from raygenesis.sweeps.measures import measures_of
from raygenesis.sweeps.objectives import OBJECTIVES, check_objective
from raygenesis.sweeps.records import SweepTrial
from raygenesis.sweeps.space import Range, Space
from raygenesis.sweeps.trial import seeds_of, select_patterns
from raygenesis.training.feeding import Samples
from tests.support.planar import SHAPE, ramp, settings_of
from tests.support.stores import StorePlan

PLAN = StorePlan(references=1, coordinates=4, neighbours=6, held_out=3, scales=1, shape=SHAPE, cube=ramp)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("store") / "patterns"
    PLAN.write(made)
    return made


class Known(nn.Module):
    """Embeds each cube by a function of it."""

    def __init__(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.embed, self.weight = embed, nn.Parameter(torch.zeros(1))


def task_of(num_neighbours: int | None, num_coordinates: int) -> PretextTask:
    settings = settings_of(num_neighbours=num_neighbours)
    return PretextTask(settings.pretraining, 0, SHAPE, 1, num_coordinates)


def test_k_and_c_select_what_is_learnt_from_and_never_the_probe(folder: Path) -> None:
    small, whole = select_patterns(folder, task_of(2, 1)), select_patterns(folder, task_of(None, 4))
    assert (len(small.train), len(small.validation), len(small.probe)) == (2 * 1, 3 * 1, 3 * 4)
    assert (len(whole.train), len(whole.validation), len(whole.probe)) == (6 * 4, 3 * 4, 3 * 4)
    assert small.probe.columns["pattern_id"].tolist() == whole.probe.columns["pattern_id"].tolist()
    ids = {row["pattern_id"]: row["split"] for part in PLAN.parts() for row in part}
    assert {ids[number] for number in small.train.columns["pattern_id"]} == {"training"}
    assert {ids[number] for number in small.probe.columns["pattern_id"]} == {"validation"}


def test_measures_of_encoders_whose_answers_are_known(folder: Path) -> None:
    """The ramps of odd coordinates rise along the last axis, of even ones along the first: two kinds of places."""
    probe: Samples = select_patterns(folder, task_of(None, 4)).probe
    probe.columns["label"] = probe.columns["coordinate"] % 2

    def direction(cubes: torch.Tensor) -> torch.Tensor:
        down = (cubes[:, 0, -1] - cubes[:, 0, 0]).mean(1)
        across = (cubes[:, 0, :, -1] - cubes[:, 0, :, 0]).mean(1)
        return nn.functional.one_hot((down < across).long(), 2).float()

    knows = measures_of(Known(direction), probe)
    assert knows.retrieval == 1.0
    assert knows.rankme == pytest.approx(2.0, abs=1e-6)  # two orthogonal vectors, equally often
    says_one = measures_of(Known(lambda cubes: torch.ones(len(cubes), 3)), probe)
    assert says_one.rankme == pytest.approx(1.0, abs=1e-5) and says_one.retrieval < 0.8


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("lambda_cls", "λ weighs its parts"), ("lambda_rec", "λ weighs its parts"),
        ("num_coordinates", "C is the number of classes"), ("corruption", "harder or easier"),
    ],
)  # fmt: skip
def test_the_joint_loss_cannot_rank_points_that_change_what_it_is(tmp_path: Path, key: str, reason: str) -> None:
    PLAN.write(tmp_path)
    with pytest.raises(SettingsError, match=f"cannot rank points of different pretraining.{key}: .*{reason}"):
        check_objective("loss", Space({key: (0.1, 0.2)}), tmp_path)
    with pytest.raises(SettingsError, match=f"pretraining.{key}"):
        check_objective("loss", Space({key: Range(0.1, 0.2)}), tmp_path)
    check_objective("loss", Space({key: (0.1,), "learning_rate": (1e-3, 1e-2), "num_neighbours": (2, 4)}), tmp_path)
    check_objective("retrieval", Space({key: (0.1, 0.2)}), tmp_path)


def test_retrieval_needs_two_held_out_scans(tmp_path: Path) -> None:
    StorePlan(references=1, coordinates=4, neighbours=6, held_out=1, scales=1, shape=SHAPE, cube=ramp).write(tmp_path)
    with pytest.raises(SettingsError, match=r"of 1: discover with discovery.num_validation_neighbours=2 or"):
        check_objective("retrieval", Space({"learning_rate": (1e-3, 1e-2)}), tmp_path)
    check_objective("rankme", Space({"learning_rate": (1e-3, 1e-2)}), tmp_path)


def test_directions_belong_to_the_objectives() -> None:
    assert {name: objective.mode for name, objective in OBJECTIVES.items()} == {
        "retrieval": "max", "rankme": "max", "target": "max", "loss": "min",
    }  # fmt: skip


def test_trials_are_named_by_point_and_seed(tmp_path: Path) -> None:
    seeds = seeds_of(0, 4)
    assert seeds_of(0, 1) == [0] and len(set(seeds)) == 4
    assert seeds[0] == 0 and seeds_of(0, 4) == seeds
    names = {SweepTrial(point, seed).path(tmp_path).name for point in ({"a": 1}, {"a": 2}) for seed in seeds}
    assert len(names) == 8 and SweepTrial({"a": 1, "b": 2}, 0).key == SweepTrial({"b": 2, "a": 1}, 0).key
