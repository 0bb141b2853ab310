"""Checkpoints: the newest whole one is found, whatever happened to it or while it was written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from raygenesis.training import checkpoints
from raygenesis.training.checkpoints import copy_state, newest_checkpoint, save_checkpoint, steps_in


def state_of(step: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((50, 50), float(step))}, "history": [{"loss": 0.5}], "steps_done": step}


def saved(folder: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(folder, step, state_of(step))
    return folder


def found(folder: Path) -> tuple[int | None, list[str]]:
    told: list[str] = []
    newest = newest_checkpoint(folder, told.append)
    if newest is not None:
        assert newest[1]["steps_done"] == newest[0]
        assert newest[1]["model"]["weight"].unique().tolist() == [newest[0]]
    return newest and newest[0], told


def test_the_newest_is_found_and_only_two_are_kept(tmp_path):
    assert found(tmp_path) == (None, [])
    assert found(saved(tmp_path, 3, 20, 100)) == (100, [])
    assert steps_in(tmp_path) == [20, 100]
    assert len(list(tmp_path.iterdir())) == 4


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_a_damaged_newest_gives_way_to_the_one_before_with_a_warning(tmp_path, damage, suffix):
    saved(tmp_path, 10, 20)
    path = tmp_path / f"step-000000020{suffix}"
    if suffix == ".json" and damage is flip:  # another checksum
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "xxh3": "0" * 32}))
    else:
        damage(path)
    step, (warning,) = found(tmp_path)
    assert step == 10
    assert "step-000000020.pt is damaged" in warning and "the one before" in warning
    # Training that comes by again writes over it.
    assert found(saved(tmp_path, 20)) == (20, [])


def test_a_damaged_one_does_not_take_the_place_of_a_whole_one(tmp_path):
    cut(saved(tmp_path, 10, 20) / "step-000000020.pt")
    assert found(saved(tmp_path, 15)) == (15, []) and steps_in(tmp_path) == [10, 15]


def test_all_damaged_are_no_checkpoint(tmp_path):
    saved(tmp_path, 10, 20)
    for path in tmp_path.glob("*.pt"):
        cut(path)
    step, told = found(tmp_path)
    assert step is None and len(told) == 2


def test_a_kill_while_one_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    saved(tmp_path, 10)

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("write_json", "publish"):  # between the two files, and before the first is published
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(checkpoints, name, killed)
            save_checkpoint(tmp_path, 20, state_of(20))
        assert found(tmp_path)[0] == 10
    assert found(saved(tmp_path, 20)) == (20, [])


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    saved(tmp_path, 10, 20)

    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "step-000000020.pt"
    torch.save({"model": Harmful()}, path)
    record = {"xxh3": checkpoints.xxh3_of(path)}
    path.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(pickle.UnpicklingError):
        newest_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_copied_state_does_not_change_with_training(tmp_path):
    weight, history = torch.zeros(3), [{"epoch": 0}]
    state = copy_state({"model": {"weight": weight}, "history": history, "none": None})
    weight += 1
    history.append({"epoch": 1})
    history[0]["epoch"] = 7
    assert state["model"]["weight"].tolist() == [0, 0, 0]
    assert state["history"] == [{"epoch": 0}] and state["none"] is None
