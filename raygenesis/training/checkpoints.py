"""Checkpoints: the files that a state of training is written to, and how the newest whole one is found again.

A checkpoint is `step-<number>.pt` and, written after it, `step-<number>.json` with its checksum: without the second the
first is not whole. They are our own and not Ray Train's, because they are written in the midst of an epoch, by one
worker without waiting for the others, and because the one before must serve when the newest is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch.utils._pytree import tree_map_only

from raygenesis.errors import PassingError
from raygenesis.training.records import TrainingState
from raygenesis.workspace.faults import patiently
from raygenesis.workspace.files import Place, make_folder, on_disk, publish, read_json, write_json, xxh3_of

NUM_KEPT = 2
T = TypeVar("T")


class Checkpoint(NamedTuple):
    """step: number of steps done in all epochs."""

    step: int
    state: TrainingState


def save_checkpoint(folder: Place, step: int, state: TrainingState) -> None:
    """Publish a state under the number of steps done, and remove all other checkpoints except for the one before.

    Later ones are removed too: they are damaged, or training would have gone on from there.
    """
    make_folder(folder)
    path = _path(folder, step)
    record: dict[str, int | str] = {"step": step}
    path.with_suffix(".json").unlink(missing_ok=True)  # of the same step before a damage further back

    def write(aside: Path) -> None:
        torch.save(state, aside)
        record.update(bytes=aside.stat().st_size, xxh3=xxh3_of(aside))

    publish(path, write)
    write_json(path.with_suffix(".json"), record)
    there = steps_in(folder)
    for other in set(there) - set([number for number in there if number <= step][-NUM_KEPT:]):
        _path(folder, other).with_suffix(".json").unlink(missing_ok=True)
        _path(folder, other).unlink(missing_ok=True)


def newest_checkpoint(folder: Place, warn: Callable[[str], None] = lambda _: None) -> Checkpoint | None:
    """Read the newest whole checkpoint; None without any. `warn` is called with a sentence for each damaged one."""
    newest = _newest(folder, warn, lambda local: torch.load(local, map_location="cpu", weights_only=True))
    return newest and Checkpoint(*newest)


def newest_step(folder: Place) -> int | None:
    """Number of steps done at the newest whole checkpoint; None without any."""
    newest = _newest(folder, lambda _: None, lambda _: None)
    return newest and newest[0]


def _newest(folder: Place, warn: Callable[[str], None], read: Callable[[Path], T]) -> tuple[int, T] | None:
    for step in reversed(steps_in(folder)):
        path = _path(folder, step)
        try:
            record = read_json(path.with_suffix(".json"))
            if record is None:
                raise ValueError("it was not finished")
            if not path.is_file():
                raise ValueError("its weights are missing")
            with on_disk(path) as local:
                if patiently(partial(xxh3_of, local), path) != record.get("xxh3"):
                    raise ValueError("its bytes are not those that were written")
                return step, read(local)
        except PassingError:
            raise
        except (OSError, ValueError) as error:
            warn(f"checkpoint {path} is damaged ({error}): going on from the one before")
    return None


def steps_in(folder: Place) -> list[int]:
    """Numbers of steps done at which there are checkpoints, whole or not, rising."""
    names = (re.fullmatch(r"step-(\d+)\.(pt|json)", path.name) for path in folder.glob("step-*"))
    return sorted({int(match[1]) for match in names if match})


def copy_state(state: TrainingState) -> TrainingState:
    """Copy a state and its tensors, to the CPU, so that training may go on while it is written."""
    return tree_map_only(torch.Tensor, lambda value: value.detach().to("cpu", copy=True), state)


def _path(folder: Place, step: int) -> Place:
    return folder / f"step-{step:09d}.pt"
