"""The epoch loop, and Ray Train around it.

The loop is plain torch: the Ray worker, a sweep's trial and the benchmark call the same function.
"""

from __future__ import annotations

import copy
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
import torch
import torch.distributed
from ray.data import Dataset
from ray.train import Checkpoint, CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from raygenesis.cluster import TRAINING_ENVIRONMENT, threads_per_worker
from raygenesis.errors import RaygenesisError
from raygenesis.feeding import Batch, Samples, ordered_batches, prefetch, training_batches
from raygenesis.progress import progress, say
from raygenesis.workspace import publish, write_table

STATE_FILE = "state.pt"
MAX_FAILURES = 3


class TrainingError(RaygenesisError):
    """Training cannot go on; the message says why."""


class Experiment(Protocol):
    """What is trained: everything that the epoch loop does not know. Must be picklable."""

    name: str
    seed: int
    batch_size: int
    num_epochs: int
    sample_key: str
    sample_shape: tuple[int, ...]

    def build(self) -> nn.Module:
        """The model, seeded."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer: ...

    def begin_epoch(self, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> str:
        """Set what changes between epochs (learning rate, trained parameters); returns the phase's name."""

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> dict[str, torch.Tensor]:
        """Means over the batch; `loss` is minimised."""

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sums over the batch, of any shape; `count` is the number of samples."""

    def figures(self, means: dict[str, torch.Tensor]) -> dict[str, float]:
        """What a row tells of the means over all held-out samples, float64 on the CPU."""

    def score(self, row: Mapping[str, Any]) -> float:
        """What the best epoch has least of."""

    def should_stop(self, history: list[dict[str, Any]]) -> bool: ...

    def warnings(self, history: list[dict[str, Any]]) -> dict[str, str]:
        """What goes wrong, in sentences, by kind; each kind is told once."""


@dataclass
class Progress:
    """Where training stands after an epoch: enough to go on from here as if it had never stopped."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    history: list[dict[str, Any]]
    best: dict[str, torch.Tensor]

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": self.best,
        }


def run_epochs(
    experiment: Experiment,
    train: Samples,
    validation: Samples,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    state: Mapping[str, Any] | None = None,
    on_epoch: Callable[[Progress], None] = lambda _: None,
    folder: Path | None = None,
) -> Progress:
    """Train to the end, from `state` when given; `on_epoch` is called after each epoch.

    Raises TrainingError when there are fewer samples than workers, or when a loss or a gradient is not finite; the
    batch that did it is then kept in `folder`, if one is given.
    """
    for kind, samples in (("training", train), ("held-out", validation)):
        if len(samples) < world_size:
            raise TrainingError(
                f"{experiment.name}: {len(samples)} {kind} samples are too few for {world_size} worker(s): add scans, "
                "or lower num_workers"
            )
    model = experiment.build().to(device)
    optimizer = experiment.optimizer(model)
    now = Progress(model, optimizer, [], copy.deepcopy(model.state_dict()))
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        now = Progress(model, optimizer, list(state["history"]), dict(state["best"]))
    while len(now.history) < experiment.num_epochs and not experiment.should_stop(now.history):
        row = _epoch(experiment, now, train, device, rank, world_size, folder)
        row.update(_validate(experiment, model, validation, device, rank, world_size))
        if math.isnan(experiment.score(row)):
            raise TrainingError(
                f"{experiment.name}: the held-out loss became NaN after epoch {row['epoch'] + 1}: lower the learning "
                "rate or look for damaged scans"
            )
        now.history.append(row)
        if experiment.score(row) <= min(experiment.score(past) for past in now.history):
            now.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        on_epoch(now)
    return now


def _epoch(
    experiment: Experiment, now: Progress, train: Samples, device: torch.device | str, rank: int, world_size: int,
    folder: Path | None,
) -> dict[str, Any]:  # fmt: skip
    epoch = len(now.history)
    phase = experiment.begin_epoch(now.model, now.optimizer, epoch)
    now.model.train()
    model = DistributedDataParallel(now.model) if world_size > 1 else now.model
    batches = training_batches(len(train), experiment.batch_size, experiment.seed, epoch, rank, world_size)
    sums: dict[str, torch.Tensor] = {}
    num_cubes = 0
    waited = 0.0
    begin = mark = time.perf_counter()
    for batch in prefetch(train, batches):
        waited += time.perf_counter() - mark
        losses = experiment.losses(model, _to(batch, device), epoch)
        now.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        losses["gradient_norm"] = get_total_norm([p.grad for p in now.model.parameters() if p.grad is not None])
        _check_finite(experiment, losses, batch, epoch, rank, world_size, folder)
        now.optimizer.step()
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach() * len(batch.cubes)
        num_cubes += len(batch.cubes)
        mark = time.perf_counter()
    if world_size > 1:
        # Each worker's batch norm counted its own share last; all are judged by the one that is saved.
        for buffer in now.model.buffers():
            torch.distributed.broadcast(buffer, 0)
    seconds = time.perf_counter() - begin
    sums["count"] = torch.tensor(float(num_cubes), device=device)
    means = _means(sums, world_size)
    return {
        "epoch": epoch,
        "phase": phase,
        "learning_rate": now.optimizer.param_groups[0]["lr"],
        **{f"train_{name}": value.item() for name, value in means.items()},
        "seconds": seconds,
        "cubes_per_s": num_cubes * world_size / seconds,
        "gap": waited / seconds,
    }


def _check_finite(
    experiment: Experiment, losses: Mapping[str, torch.Tensor], batch: Batch, epoch: int, rank: int, world_size: int,
    folder: Path | None,
) -> None:  # fmt: skip
    """Raise TrainingError on all workers if the loss or the gradient of any is not finite; those at fault keep it."""
    values = torch.stack([losses["loss"].detach(), losses["gradient_norm"]]).float()
    total = values.clone()
    if world_size > 1:
        torch.distributed.all_reduce(total)  # so that all workers stop, or none
    if torch.isfinite(total).all():
        return
    what = f"the loss became {total[0].item()}"
    if torch.isfinite(total[0]):
        what = f"the gradient became {total[1].item()} (the loss was {values[0].item():.3g})"
    kept = ""
    if folder is not None and not (world_size > 1 and torch.isfinite(values[0]) and not torch.isfinite(total[0])):
        path = folder / f"bad-batch-{rank}.safetensors"
        numbers = {name: column for name, column in batch.columns.items() if column.dtype.kind in "iu"}
        tensors = {"cubes": batch.cubes} | {name: torch.from_numpy(column) for name, column in numbers.items()}
        facts = {"experiment": experiment.name, "epoch": str(epoch), "seed": str(experiment.seed), "what": what}
        publish(path, lambda aside: save_file(tensors, aside, facts))
        kept = f" (its cubes and their ids are kept in {path})"
    raise TrainingError(
        f"{experiment.name}: {what} in epoch {epoch + 1} with a batch of {len(batch.cubes)}{kept}: lower the learning "
        "rate or look for damaged scans"
    )


@torch.no_grad()
def _validate(
    experiment: Experiment, model: nn.Module, samples: Samples, device: torch.device | str, rank: int, world_size: int
) -> dict[str, float]:
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    for batch in prefetch(samples, ordered_batches(len(samples), experiment.batch_size, rank, world_size)):
        for name, value in experiment.evaluate(model, _to(batch, device)).items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
    return {f"val_{name}": value for name, value in experiment.figures(_means(sums, world_size)).items()}


def _means(sums: dict[str, torch.Tensor], world_size: int) -> dict[str, torch.Tensor]:
    """Means over the samples of all workers, float64 on the CPU, from each worker's sums and `count`."""
    names = sorted(sums)
    totals = torch.cat([sums[name].double().flatten() for name in names])
    if world_size > 1:
        torch.distributed.all_reduce(totals)
    parts = totals.cpu().split([sums[name].numel() for name in names])
    means = {name: part.view(sums[name].shape) for name, part in zip(names, parts, strict=True)}
    count = means.pop("count")
    return {name: total / count for name, total in means.items()}


def _to(batch: Batch, device: torch.device | str) -> Batch:
    return Batch(batch.cubes.to(device, non_blocking=True), batch.columns)


def fit_with_ray(
    experiment: Experiment,
    datasets: Mapping[str, Dataset],
    folder: Path,
    *,
    num_workers: int = 1,
    use_gpu: bool = False,
) -> tuple[dict[str, Any], int]:
    """Train under Ray Train; returns the final state and the number of epochs this call ran.

    `datasets` holds `train` and `validation`, each with a `cube` cell a row. `folder` receives Ray's checkpoints (an
    interrupted run goes on from the newest) and `metrics.parquet`, one row an epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = len(read_metrics(folder))
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"experiment": experiment, "folder": folder, "num_workers": num_workers},
        datasets=dict(datasets),
        dataset_config=DataConfig(datasets_to_split=[]),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            storage_path=str(folder),
            name="checkpoints",
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=1),
            worker_runtime_env=TRAINING_ENVIRONMENT,
        ),
    )
    with _epochs_shown(experiment, folder, before):
        result = trainer.fit()
    if isinstance(result.return_value, RaygenesisError):
        raise result.return_value
    state = load_state(Path(result.checkpoint.path))
    return state, len(state["history"]) - before


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The state in a checkpoint folder."""
    return torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.parquet`, one an epoch; none when training has not ended its first epoch."""
    path = folder / "metrics.parquet"
    return pq.read_table(path).to_pylist() if path.is_file() else []


def _as_table(history: list[dict[str, Any]]) -> pa.Table:
    """One row an epoch; a figure that only some epochs have is null in the others."""
    names = dict.fromkeys(name for row in history for name in row)
    return pa.table({name: [row.get(name) for row in history] for name in names})


def _train_worker(config: dict[str, Any]) -> RaygenesisError | None:
    """One Ray Train worker.

    An error that trying again cannot mend is returned, for Ray would start the workers anew for one that is raised.
    """
    experiment: Experiment = config["experiment"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(threads_per_worker(config["num_workers"]))
    train, validation = (samples_of(ray.train.get_dataset_shard(name), experiment) for name in ("train", "validation"))
    checkpoint = ray.train.get_checkpoint()

    def report(now: Progress) -> None:
        metrics = {name: value for name, value in now.history[-1].items() if not isinstance(value, str)}
        if rank:
            ray.train.report(metrics)
            return
        write_table(config["folder"] / "metrics.parquet", _as_table(now.history))
        with tempfile.TemporaryDirectory() as aside:
            torch.save(now.state(), Path(aside, STATE_FILE))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(aside))

    try:
        run_epochs(
            experiment,
            train,
            validation,
            device=ray.train.torch.get_device(),
            rank=rank,
            world_size=context.get_world_size(),
            state=load_state(Path(checkpoint.path)) if checkpoint else None,
            on_epoch=report,
            folder=config["folder"],
        )
    except RaygenesisError as error:
        return error
    return None


def samples_of(shard: Any, experiment: Experiment) -> Samples:
    """All rows of a Ray Data iterator or dataset, left in Ray's shared memory."""
    tables = list(shard.iter_batches(batch_size=None, batch_format="pyarrow"))
    return Samples(tables, experiment.sample_key, experiment.sample_shape)


@contextmanager
def _epochs_shown(experiment: Experiment, folder: Path, before: int) -> Iterator[None]:
    """Show epochs as they appear in the metrics table, which rank 0 writes."""
    stopped = threading.Event()

    def watch() -> None:
        shown = before
        told = set(experiment.warnings(read_metrics(folder)))
        with progress(experiment.name, experiment.num_epochs, "epochs") as ticker:
            ticker.advance(before)
            last = False
            while not last:
                last = stopped.wait(1.0)
                rows = read_metrics(folder)
                if len(rows) > shown:
                    ticker.advance(len(rows) - shown, note=_note(rows))
                    shown = len(rows)
                for kind, sentence in experiment.warnings(rows).items():
                    if kind not in told:
                        told.add(kind)
                        say(experiment.name, f"warning after epoch {len(rows)}: {sentence}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _note(rows: Sequence[Mapping[str, Any]]) -> str:
    """The newest epoch in a line, without what does not change from epoch to epoch."""
    row, before = rows[-1], rows[-2] if len(rows) > 1 else {}
    names = [name for name in row if name.startswith("val_") and row[name] not in (None, before.get(name))]
    figures = [f"{name[4:].replace('_', ' ')} {row[name]:.4g}" for name in names]
    return f"[{row['phase']}] held out: {', '.join(figures)}; {row['cubes_per_s']:.0f} cubes/s, gap {row['gap']:.0%}"
