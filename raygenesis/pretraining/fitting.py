"""Whether a step of pretraining fits into the memory of its GPU, and what would make it fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from raygenesis.cluster import capacity
from raygenesis.cluster.progress import say
from raygenesis.errors import SettingsError
from raygenesis.pretraining.step_memory import step_memory
from raygenesis.pretraining.task import PretextTask
from raygenesis.text.amounts import size

SHARE = 0.92  # of a GPU's memory: the rest is CUDA's own, its libraries' and lost between blocks


def check_memory(task: PretextTask, has_begun: bool = False) -> None:
    """Raise SettingsError if a step does not fit into a GPU of the cluster, with the least change that would.

    A run that has begun has its settings, and did fit: it is only warned.
    """
    there, num_workers = capacity.on_gpu("pretraining.use_gpu=true", _gpu_bytes), task.settings.fewest_workers
    wanted = step_memory(task, num_workers).total
    if wanted <= SHARE * there:
        return
    words = (
        f"pretraining.batch_size={task.batch_size}: a step takes {size(wanted)} of a GPU of {size(there)}, of which "
        f"{size(SHARE * there)} can be used"
    )
    if has_begun:
        say(task.name, f"warning: {words}")
        return
    fitting = (change for change in _smaller(task) if step_memory(change.task, num_workers).total <= SHARE * there)
    found = next((change.words for change in fitting), "")
    advice = f"give {found}" if found else "lower pretraining.base_width, or make the store again with smaller cubes"
    raise SettingsError(f"{words}: {advice}")


class _Change(NamedTuple):
    """The same task by other settings, and these as they are given."""

    words: str
    task: PretextTask


def _smaller(task: PretextTask) -> Iterator[_Change]:
    """Ways to take less memory, those of the fewest settings first."""
    settings, most = task.settings, 0
    share = settings.most_workers * (
        2 if task.pretext.learns_from_pairs else 1
    )  # samples that a piece has at the least
    while settings.num_pieces * 2 ** (most + 1) * share <= settings.batch_size:
        most += 1
    ways: list[dict[str, object]] = []
    for is_bf16, is_checkpointed, doublings in itertools.product((False, True), (False, True), range(most + 1)):
        change: dict[str, object] = {"num_pieces": settings.num_pieces * 2**doublings} if doublings else {}
        if is_checkpointed and not settings.gradient_checkpointing:
            change["gradient_checkpointing"] = True
        if is_bf16 and settings.precision == "fp32":
            change["precision"] = "bf16"
        if change and change not in ways:
            ways.append(change)
    for change in sorted(ways, key=lambda way: (len(way), "num_pieces" in way, "gradient_checkpointing" in way)):
        words = " ".join(f"pretraining.{key}={str(value).lower()}" for key, value in change.items())
        yield _Change(words, replace(task, settings=settings.model_copy(update=change)))


def _gpu_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory
