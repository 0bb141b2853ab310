"""Where figures go besides the run's own tables: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from raygenesis.errors import SettingsError
from raygenesis.training.experiment import Row


class Tracker(Protocol):
    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], first_step: int) -> None:
        from tensorboardX import SummaryWriter

        # What was written of later steps before an interruption is not shown.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None, flush_secs=10)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment `raygenesis`, at MLFLOW_TRACKING_URI, through Ray's own integration."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], first_step: int) -> None:
        from ray.air.integrations.mlflow import setup_mlflow

        self._mlflow = setup_mlflow(
            dict(config), experiment_name="raygenesis", run_name=name, create_experiment_if_not_exists=True
        )

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class WandB:
    """A run of the project `raygenesis`, with WANDB_API_KEY or WANDB_MODE=offline, through Ray's own integration."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], first_step: int) -> None:
        from ray.air.integrations.wandb import setup_wandb

        # The same run goes on after an interruption, and one that is made anew is another.
        path = folder / "wandb-id"
        if not path.is_file():
            path.write_text(uuid.uuid4().hex)
        self._run = setup_wandb(
            dict(config), project="raygenesis", name=name, id=path.read_text(), group=None, dir=str(folder),
            resume="allow",
        )  # fmt: skip

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
MODULES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise SettingsError if the library of one is not installed."""
    for name in names:
        if find_spec(MODULES[name]) is None:
            raise SettingsError(
                f"pretraining.trackers names {name} and the package {MODULES[name]} is not installed: install "
                "raygenesis[trackers], on all machines of the cluster, or leave it out"
            )


def finite(row: Row, prefix: str = "") -> dict[str, float]:
    """The figures of a row that can be drawn."""
    return {
        prefix + name: value for name, value in row.items() if isinstance(value, float) and math.isfinite(value)
    }
