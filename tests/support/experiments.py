"""A tiny experiment to which something may happen, and what tells two runs apart."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from raygenesis.discovery.autoencoder_training import IdentityMapping
from raygenesis.settings import AutoencoderSettings
from raygenesis.training.loop import Callbacks, Progress, run_epochs
from raygenesis.training.records import EpochRow, StepRow
from raygenesis.workspace.files import Place, read_table
from tests.support.synthetic import pattern_table, samples

TIMINGS = {"seconds", "waited", "cubes_per_s", "gap"}
TRAIN, HELD_OUT = pattern_table(42), pattern_table(11, first=100)


def settings(**chosen: Any) -> AutoencoderSettings:
    given = {
        "input_shape": (8, 8, 8), "base_width": 2, "latent_size": 4, "batch_size": 8, "num_epochs": 4,
        "precision": "fp32", **chosen,
    }  # fmt: skip
    return AutoencoderSettings(**given)


@dataclass(frozen=True)
class Experiment(IdentityMapping):
    """The auto-encoder of tiny scans.

    kills: a worker of this rank dies when it has computed this many losses since it was started, unless the file
    `killed-<number>` is there, which it leaves.
    """

    settings: AutoencoderSettings = field(default_factory=settings)
    seed: int = 0
    sample_key: str = "pattern_id"
    nan_in_epoch: int | None = None  # on the last worker
    nan_when_held_out: bool = False
    errors: tuple[float, ...] = ()  # what the epochs' held-out errors shall be
    kills: tuple[tuple[int, int], ...] = ()
    markers: Path | None = None
    seconds_a_step: float = 0.0

    def losses(self, model, batch, epoch, teacher=None):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        self._maybe_die(rank)
        time.sleep(self.seconds_a_step)
        losses = super().losses(model, batch, epoch)
        last = not torch.distributed.is_initialized() or rank > 0
        return {"loss": losses["loss"] * (float("nan") if epoch == self.nan_in_epoch and last else 1)}

    def _maybe_die(self, rank: int) -> None:
        computed = _COMPUTED[os.getpid()] = _COMPUTED.get(os.getpid(), 0) + 1
        for number, (victim, after) in enumerate(self.kills):
            marker = None if self.markers is None else self.markers / f"killed-{number}"
            if marker is not None and not marker.exists():
                if (rank, computed) == (victim, after):
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return  # one after the other

    def evaluate(self, model, batch):
        sums = super().evaluate(model, batch)
        return {**sums, "mse": sums["mse"] * (float("nan") if self.nan_when_held_out else 1)}

    def score(self, row):
        return self.errors[row["epoch"]] if self.errors else super().score(row)


_COMPUTED: dict[int, int] = {}  # losses of a process: this is copied to workers as it is


def read_steps(folder: Place) -> list[StepRow]:
    """Rows of a run's `steps/`, one a step, up to the newest checkpoint."""
    paths = sorted((folder / "steps").glob("part-*.parquet"))
    tables = [read_table(path) for path in paths]
    return pa.concat_tables(tables, promote_options="default").to_pylist() if tables else []


def without_timings(rows: Sequence[StepRow] | Sequence[EpochRow]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run(
    experiment: Any, shape: tuple[int, ...] = (8, 8, 8), train: pa.Table = TRAIN, state: Any = None, **callbacks: Any
) -> Progress:
    """Train on the tables here; callbacks: fields of `Callbacks`."""
    return run_epochs(
        experiment, samples(train, shape), samples(HELD_OUT, shape), state=state, callbacks=Callbacks(**callbacks)
    )
