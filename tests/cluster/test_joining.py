"""Tasks, one an item: all results, mistakes as themselves, and a worker that dies is run again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from raygenesis.cluster import capacity, fan_out, joining
from raygenesis.errors import ClusterError, SettingsError


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


def halved_once(item: int) -> int:
    return item // 2


def in_its_environment(item: int) -> tuple[int, str, float]:
    return item, os.environ["TRIAL"], ray.get_runtime_context().get_assigned_resources()["CPU"]


def with_a_block(item: int) -> Any:
    return np.full(2, item), item


def writing_for_long(item: int, folder: Path) -> int:
    deadline = time.monotonic() + 10  # where it is busy, Ray may miss that a task is cancelled
    while item and time.monotonic() < deadline:
        (folder / str(item)).write_text(str(time.monotonic()))
        time.sleep(0.05)
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


def test_every_item_comes_with_its_result_or_its_error(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = {outcome.item: outcome for outcome in fan_out.outcomes(refusing, range(6))}
    assert sorted(ended) == list(range(6)) and type(ended[3].error) is SettingsError
    assert [outcome.result() for item, outcome in sorted(ended.items()) if item != 3] == [0, 1, 2, 4, 5]
    monkeypatch.setattr(fan_out, "MAX_RETRIES", 0)
    lost = {outcome.item: outcome.error for outcome in fan_out.outcomes(dying_once, range(3), tmp_path)}
    assert lost[0] is lost[1] is None and isinstance(lost[2], ClusterError)
    with pytest.raises(KeyError):
        next(fan_out.outcomes(failing, [1])).result()


def test_an_iterator_may_choose_the_next_item_by_the_results_before(ray_cluster: None) -> None:
    results = [7]

    def halves() -> Iterator[int]:
        while results[-1] > 1:
            yield results[-1]

    options = fan_out.TaskOptions(max_tasks=lambda: 1)
    for halved in fan_out.each(halved_once, halves(), options=options):
        results.append(halved)
    assert results == [7, 3, 1]


def test_no_more_tasks_wait_than_are_asked_for_and_each_has_its_environment(ray_cluster: None) -> None:
    taken, most = 0, 1

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 10:
            taken += 1
            yield taken

    options = fan_out.TaskOptions(num_cpus=2, runtime_env={"env_vars": {"TRIAL": "one"}}, max_tasks=lambda: most)
    results = fan_out.each(in_its_environment, items(), options=options)
    assert next(results) == (1, "one", 2.0) and taken == 1
    most = 3  # as when nodes have come
    assert next(results)[1:] == ("one", 2.0) and taken == 4
    assert len(list(results)) == 8


def test_the_first_of_a_pair_can_stay_in_the_object_store(ray_cluster: None) -> None:
    options = fan_out.TaskOptions(stores_first=True)
    found = sorted(fan_out.each(with_a_block, range(3), options=options), key=lambda pair: pair[1])
    assert [item for _, item in found] == [0, 1, 2]
    assert [block.tolist() for block in ray.get([block for block, _ in found])] == [[0, 0], [1, 1], [2, 2]]


def test_no_task_is_running_any_more_when_the_caller_has_gone(ray_cluster: None, tmp_path: Path) -> None:
    results = fan_out.each(writing_for_long, range(4), tmp_path)
    assert next(results) == 0
    results.close()
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    time.sleep(0.3)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == written


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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray's folder is to be, in place of /tmp."""
    monkeypatch.setattr(joining, "Path", lambda path: tmp_path / Path(path).name)
    return tmp_path / f"rg-{joining.os.getuid()}"


def test_a_local_ray_has_a_folder_that_is_its_owner_s_alone(folder: Path) -> None:
    mask = joining.os.umask(0)
    try:
        assert joining.own_folder() == folder == joining.own_folder()
    finally:
        joining.os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_others_may_have_prepared_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    if kind == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.write_text("")
    with pytest.raises(
        ClusterError, match=r"is not a folder that is yours alone, .*: remove it, or name another one in"
    ):
        joining.own_folder()


def test_a_folder_of_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joining.own_folder()
    found = folder.lstat()
    theirs = joining.os.stat_result((found.st_mode, *found[1:4], found.st_uid + 1, *found[5:]))
    monkeypatch.setattr(type(folder), "lstat", lambda path: theirs)
    with pytest.raises(ClusterError, match="yours alone"):
        joining.own_folder()
