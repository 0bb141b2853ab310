"""Tasks, one an item: all results, mistakes as themselves, and a worker that dies is run again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from raygenesis import cluster
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
    found = list(cluster.each(scaled, range(40), 10, np.ones(5)))
    assert sorted(found) == [10 * item + 5 for item in range(40)]
    assert list(cluster.each(scaled, [], 1, np.ones(1))) == []


def test_items_are_taken_as_tasks_end_and_not_all_at_once(ray_cluster: None) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(200):
            taken.append(item)
            yield item

    results = cluster.each(scaled, items(), 1, np.zeros(1))
    next(results)
    assert len(taken) <= 4 * int(ray.cluster_resources()["CPU"]) + 1
    assert len(list(results)) == 199 and len(taken) == 200


def test_a_users_mistake_is_raised_as_itself(ray_cluster: None) -> None:
    with pytest.raises(SettingsError, match=r"^discovery\.scales: lower extent_mm$") as refused:
        list(cluster.each(refusing, range(6)))
    assert type(refused.value) is SettingsError
    with pytest.raises(KeyError):
        list(cluster.each(failing, range(3)))


def test_a_task_whose_worker_dies_is_run_again(ray_cluster: None, tmp_path: Path) -> None:
    assert sorted(cluster.each(dying_once, range(5), tmp_path)) == list(range(5))
