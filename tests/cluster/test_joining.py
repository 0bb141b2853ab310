"""Tasks, one an item: all results, mistakes as themselves, and a worker that dies is run again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from raygenesis.cluster import capacity, fan_out
from raygenesis.errors import SettingsError


def scaled(item: int, by: int, more: np.ndarray) -> int:
    return item * by + int(more.sum())


def refusing(item: int) -> int:
    if item == 3:
        raise SettingsError("discovery.scales: lower extent_mm")
    return item


def failing(item: int) -> int:
    raise KeyError(item)


def dying_once(item: int, folder: Path) -> int:
    mark = folder / str(item)
    if item == 2 and not mark.exists():
        mark.touch()
        os._exit(1)
    return item


def test_every_item_gives_its_result_once(ray_cluster: None) -> None:
    found = list(fan_out.each(scaled, range(40), 10, np.ones(5)))
    assert sorted(found) == [10 * item + 5 for item in range(40)]
    assert list(fan_out.each(scaled, [], 1, np.ones(1))) == []


def test_items_are_taken_as_tasks_end_and_not_all_at_once(ray_cluster: None) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(200):
            taken.append(item)
            yield item

    results = fan_out.each(scaled, items(), 1, np.zeros(1))
    next(results)
    assert len(taken) <= 4 * int(ray.cluster_resources()["CPU"]) + 1
    assert len(list(results)) == 199 and len(taken) == 200


def test_a_users_mistake_is_raised_as_itself(ray_cluster: None) -> None:
    with pytest.raises(SettingsError, match=r"^discovery\.scales: lower extent_mm$") as refused:
        list(fan_out.each(refusing, range(6)))
    assert type(refused.value) is SettingsError
    with pytest.raises(KeyError):
        list(fan_out.each(failing, range(3)))


def test_a_task_whose_worker_dies_is_run_again(ray_cluster: None, tmp_path: Path) -> None:
    assert sorted(fan_out.each(dying_once, range(5), tmp_path)) == list(range(5))


# --- what a cluster can never give ----------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster")
def test_what_the_cluster_has_is_not_refused() -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    capacity.require("pretraining.num_workers=1", cpus)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("num_tasks", "num_cpus", "num_gpus", "lacks"),
    [(1, 1, 1.0, "GPU"), (10_000, 1, 0.0, "CPU"), (1, 10_000, 0.5, "CPU")],
)
def test_what_the_cluster_never_has_is_refused_naming_setting_and_resource(
    num_tasks: int, num_cpus: int, num_gpus: float, lacks: str
) -> None:
    if num_gpus == 1.0 and ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    said = rf"^pretraining\.use_gpu=true needs .* will never have the {lacks}s: it has"
    with pytest.raises(SettingsError, match=said):
        capacity.require("pretraining.use_gpu=true", num_tasks, num_cpus, num_gpus)
