"""Where training stands, on disk: the newest whole state is found again, whatever was going on when it stopped.

A checkpoint is `step-<number>.pt` and, written after it, `step-<number>.json` with its checksum: without the second the
first is not whole. They are our own and not Ray Train's, because they are written in the midst of an epoch, by one
worker without waiting for the others, and because the one before must serve when the newest is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from raygenesis.workspace import publish, read_json, write_json, xxh3_of

KEPT = 2
State = dict[str, Any]


def save_checkpoint(folder: Path, step: int, state: State) -> None:
    """Publish a state under the number of steps done, and remove all others but the one before.

    Also later ones: they are damaged, or training would have gone on from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, step)
    path.with_suffix(".json").unlink(missing_ok=True)  # of the same step before a damage further back
    publish(path, lambda aside: torch.save(state, aside))
    write_json(path.with_suffix(".json"), {"step": step, "bytes": path.stat().st_size, "xxh3": xxh3_of(path)})
    there = steps_in(folder)
    for other in set(there) - set([number for number in there if number <= step][-KEPT:]):
        _path(folder, other).with_suffix(".json").unlink(missing_ok=True)
        _path(folder, other).unlink(missing_ok=True)


def newest_checkpoint(folder: Path, warn: Callable[[str], None] = lambda _: None) -> tuple[int, State] | None:
    """The number of steps done and the state of the newest whole checkpoint; None without any.

    `warn` is told of each that is damaged.
    """
    step = newest_step(folder, warn)
    return None if step is None else (step, torch.load(_path(folder, step), map_location="cpu", weights_only=True))


def newest_step(folder: Path, warn: Callable[[str], None] = lambda _: None) -> int | None:
    """The number of steps done at the newest whole checkpoint; None without any."""
    for step in reversed(steps_in(folder)):
        try:
            _check(_path(folder, step))
        except (OSError, ValueError) as error:
            warn(f"checkpoint {_path(folder, step)} is damaged ({error}): going on from the one before")
        else:
            return step
    return None


def steps_in(folder: Path) -> list[int]:
    """Numbers of the steps after which there is a checkpoint, rising."""
    names = (re.fullmatch(r"step-(\d+)\.(pt|json)", path.name) for path in folder.glob("step-*"))
    return sorted({int(match[1]) for match in names if match})


def copied(state: State) -> State:
    """The state with its tensors copied to memory of their own, so that training may go on."""
    return tree_map_only(torch.Tensor, lambda value: value.detach().to("cpu", copy=True), state)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.pt"


def _check(path: Path) -> None:
    """Raises ValueError or OSError if the checkpoint is not whole."""
    record = read_json(path.with_suffix(".json"))
    if record is None:
        raise ValueError("it was not finished")
    if not path.is_file():
        raise ValueError("its weights are missing")
    if xxh3_of(path) != record.get("xxh3"):
        raise ValueError("its bytes are not those that were written")
