"""Where figures go besides the run's own tables: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import math
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from raygenesis.errors import SettingsError
from raygenesis.training.records import EpochRow, StepRow
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import Tree
from raygenesis.workspace.object_store import RemotePath

UPLOAD_SECONDS = 60.0


class Tracker(Protocol):
    """Takes figures of a step, by name."""

    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder; in an object store once a minute and at the end."""

    def __init__(self, folder: Place, name: str, config: Tree, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._folder, self._uploaded = folder / "tensorboard", time.monotonic()
        # A file cannot grow in an object store.
        self._scratch = tempfile.TemporaryDirectory() if isinstance(folder, RemotePath) else None
        local = self._folder if self._scratch is None else self._scratch.name
        # What was written of later steps before an interruption is not shown.
        self._writer = SummaryWriter(str(local), purge_step=first_step or None, flush_secs=10)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        if self._scratch is not None and time.monotonic() - self._uploaded >= UPLOAD_SECONDS:
            self._writer.flush()
            self._upload(self._scratch.name)

    def close(self) -> None:
        self._writer.close()
        if self._scratch is not None:
            self._upload(self._scratch.name)
            self._scratch.cleanup()

    def _upload(self, scratch: str) -> None:
        self._uploaded = time.monotonic()
        assert isinstance(self._folder, RemotePath)
        self._folder.upload(Path(scratch))


class MLflow:
    """A run of the experiment `raygenesis`, at MLFLOW_TRACKING_URI, through Ray's own integration."""

    def __init__(self, folder: Place, name: str, config: Tree, first_step: int) -> None:
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

    def __init__(self, folder: Place, name: str, config: Tree, first_step: int) -> None:
        from ray.air.integrations.wandb import setup_wandb

        # The same run goes on after an interruption, and one that is made anew is another.
        path = folder / "wandb-id"
        if not path.is_file():
            path.write_text(uuid.uuid4().hex)
        self._run = setup_wandb(
            dict(config), project="raygenesis", name=name, id=path.read_text(), group=None,
            dir=str(folder) if isinstance(folder, Path) else None, resume="allow",
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


def finite_figures(row: StepRow | EpochRow, prefix: str) -> dict[str, float]:
    """The finite floating-point figures of a row, their names with a prefix."""
    return {prefix + name: value for name, value in row.items() if isinstance(value, float) and math.isfinite(value)}
