"""The epoch loop, in plain torch, and the state that it goes on from.

The Ray worker, a sweep's trial and the benchmark call the same function.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, cast

import numpy as np
import torch
import torch.distributed
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from raygenesis.training.average import update_average
from raygenesis.training.devices import prefer_speed, steps_a_reading
from raygenesis.training.experiment import Experiment, TrainingError, best_of
from raygenesis.training.feeding import Samples, StoredBatch, Stream, prefetch
from raygenesis.training.order import (
    Batching,
    Ordered,
    Rows,
    cubes_of_epoch,
    epoch_order,
    held_out_batches,
    shares_of,
)
from raygenesis.training.records import EpochRow, StepRow, TrainingState
from raygenesis.training.workers import ALONE, Workers, sum_over_workers, synchronise
from raygenesis.workspace.files import Place, publish

# A scale of the loss below this is not the reason why gradients are not finite.
LEAST_SCALE = 1.0
OWN_LOSS, SCALE = "own_loss", "scale"
TIMES = ("seconds", "waited")


@dataclass
class Progress:
    """Where training stands after a step: enough to go on from here as if it had never stopped.

    Everything random is drawn from the seed, the epoch and a sample's key, so there is no random state to keep.

    Attributes:
        average: Moving average of the weights, if there is one.
        best: Weights of the best epoch so far.
        history: A row an epoch.
        step: Steps done of the epoch that is running.
        steps_done: Steps done of all epochs.
        sums: Figures of the epoch that is running, name → sum and weight.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    best: dict[str, torch.Tensor]
    history: list[EpochRow] = field(default_factory=list)
    step: int = 0
    steps_done: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and kept: the moving average, if there is one."""
        return self.model if self.average is None else self.average.module

    def state(self) -> TrainingState:
        """What a checkpoint holds; tensors are those of training, not copies."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
            "history": self.history,
            "step": self.step,
            "steps_done": self.steps_done,
            "sums": self.sums,
        }

    def load(self, state: TrainingState) -> None:
        """Go back to the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.best, self.history = dict(state["best"]), list(state["history"])
        self.step, self.steps_done = state["step"], state["steps_done"]
        self.sums = {name: list(sums) for name, sums in state["sums"].items()}


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the loop calls, and where it writes a batch at which training fails.

    Attributes:
        on_step: Called with the row of each step, in order: after the step, or where training runs on a GPU, after some
            more. What `Progress` then holds is of `steps_done` steps.
        on_epoch: Called after each epoch, which is then the last of the history.
        folder: Where a worker writes its part of a batch whose loss or gradient is not finite; nowhere when None.
    """

    on_step: Callable[[Progress, StepRow], None] = lambda *_: None
    on_epoch: Callable[[Progress], None] = lambda _: None
    folder: Place | None = None


NO_CALLBACKS = Callbacks()


@dataclass(frozen=True)
class _Run:
    """What stays the same from step to step."""

    experiment: Experiment
    workers: Workers
    callbacks: Callbacks


@dataclass(frozen=True)
class _Unread:
    """A step whose figures are still on the device: `_step`'s. row: all else of its row; keys: of its samples here."""

    row: dict[str, Any]
    keys: Rows
    figures: dict[str, torch.Tensor]


def run_epochs(
    experiment: Experiment,
    train: Samples,
    validation: Samples,
    *,
    workers: Workers = ALONE,
    state: TrainingState | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> Progress:
    """Train to the end.

    What is learnt does not depend on how many workers share the work, except for rounding.

    Args:
        experiment: What is trained.
        train: Samples to learn from.
        validation: Held-out samples, on which each epoch is evaluated.
        workers: This process among those that share the work.
        state: Where to go on from, which may lie in the midst of an epoch.
        callbacks: What is called after steps and epochs.

    Returns:
        Where training stands after the last epoch.

    Raises:
        TrainingError: There are fewer samples than workers, or a loss or a gradient is not finite.
    """
    num_shares = workers.world_size * experiment.tuning.num_pieces
    fewest = min(_num_samples(experiment, train, epoch) for epoch in range(experiment.num_epochs))
    for kind, number, least in (("training", fewest, num_shares), ("held-out", len(validation), workers.world_size)):
        if number < least:
            raise TrainingError(
                f"{experiment.name}: {number} {kind} samples are too few for {workers.world_size} worker(s) and "
                f"batches in {experiment.tuning.num_pieces} piece(s): add scans, or lower these numbers"
            )
    run, progress = _Run(experiment, workers, callbacks), _begin(experiment, workers)
    if state is not None:
        progress.load(state)
    with closing(_feed(run, progress, train)) as feed:
        while len(progress.history) < experiment.num_epochs and not experiment.should_stop(progress.history):
            trained = _train(run, progress, train, feed)
            row = cast(EpochRow, {**trained, **_evaluate(run, progress.evaluated_model, validation)})
            if math.isnan(experiment.score(row)):
                raise TrainingError(
                    f"{experiment.name}: the held-out loss became NaN after epoch {row['epoch'] + 1}: lower the "
                    "learning rate or look for damaged scans"
                )
            progress.history.append(row)
            progress.step, progress.sums = 0, {}
            if best_of(experiment, progress.history) is row:
                # A new dictionary of new tensors: a checkpoint that is being written may still hold the old one.
                weights = progress.evaluated_model.state_dict()
                progress.best = {name: value.detach().cpu().clone() for name, value in weights.items()}
            callbacks.on_epoch(progress)
    return progress


def _feed(run: _Run, progress: Progress, train: Samples) -> Stream:
    """The pieces of all batches that are still to come, of one epoch after the other."""

    first, num_done = len(progress.history), progress.step

    def pieces() -> Iterator[list[Rows]]:
        for epoch in range(first, run.experiment.num_epochs):
            batches = _batches(run, train, epoch)
            yield [piece for batch in batches[num_done if epoch == first else 0 :] for piece in batch]

    return prefetch(train.stream(pieces()), run.workers.device)


def _num_samples(experiment: Experiment, train: Samples, epoch: int) -> int:
    """How many samples an epoch learns from."""
    keep = experiment.learns_from(train.columns, epoch)
    return len(train) if keep is None else int(keep.sum())


def _begin(experiment: Experiment, workers: Workers) -> Progress:
    prefer_speed(workers.device)
    model = experiment.build()
    if workers.world_size > 1:
        model = synchronise(model, workers.device)
    model = model.to(workers.device)
    average = None if experiment.tuning.average_decay is None else AveragedModel(model, use_buffers=True)
    scaler = torch.amp.GradScaler(torch.device(workers.device).type, enabled=experiment.tuning.scales_loss)
    return Progress(model, experiment.optimizer(model), scaler, average, copy.deepcopy(model.state_dict()))


def _train(run: _Run, progress: Progress, train: Samples, feed: Stream) -> EpochRow:
    """Do the steps of an epoch that are not done yet; returns its row without held-out figures."""
    experiment, workers, epoch = run.experiment, run.workers, len(progress.history)
    phase = experiment.begin_epoch(progress.model, epoch)
    progress.model.train()
    network: nn.Module = progress.model
    if workers.world_size > 1:  # anew in each epoch, as it may train other parameters
        network = DistributedDataParallel(progress.model, broadcast_buffers=False)
    num_batches, num_cubes = _extent(run, train, epoch)
    unread: list[_Unread] = []
    begin = time.perf_counter()
    while progress.step < num_batches:
        pieces = [next(feed) for _ in range(experiment.tuning.num_pieces)]
        waited = time.perf_counter() - begin
        rate = experiment.learning_rate(epoch, (progress.step + 1) / num_batches)
        row = {"step": progress.steps_done, "epoch": epoch, "phase": phase, "learning_rate": rate}
        keys = np.concatenate([piece.columns[experiment.sample_key] for piece in pieces])
        unread.append(_Unread(row, keys, _step(run, progress, network, pieces, num_cubes, rate)))
        progress.step, progress.steps_done = progress.step + 1, progress.steps_done + 1
        row |= {"share": progress.step / num_batches, "cubes": num_cubes, "waited": waited}
        is_read = len(unread) == steps_a_reading(workers.device) or progress.step == num_batches
        figures = _read(run, unread, train) if is_read else []
        row["seconds"], begin = time.perf_counter() - begin, time.perf_counter()
        if is_read:
            _report(run, progress, unread, figures)
            unread = []
    seconds, waited = (progress.sums[name][0] for name in TIMES)
    means = {
        # A gradient that was finite in no step has no mean.
        f"train_{name}": total / weight if weight else None
        for name, (total, weight) in progress.sums.items()
        if name not in TIMES
    }
    return cast(EpochRow, {
        "epoch": epoch, "phase": phase, "learning_rate": experiment.learning_rate(epoch, 1.0), **means,
        "seconds": seconds, "cubes_per_s": num_cubes * num_batches / seconds, "gap": waited / seconds,
    })  # fmt: skip


def _batches(run: _Run, train: Samples, epoch: int) -> list[list[Rows]]:
    """This worker's share of each batch of an epoch, in pieces."""
    experiment = run.experiment
    keep = experiment.learns_from(train.columns, epoch)
    chosen = train if keep is None else train.select(keep)
    pairs = experiment.pairs(chosen.columns, epoch)
    ordered = epoch_order(len(chosen), experiment.seed, epoch, chosen.layout) if pairs is None else Ordered(pairs)
    if keep is not None:
        ordered = replace(ordered, units=np.flatnonzero(keep)[ordered.units])
    return shares_of(ordered, Batching(experiment.batch_size, experiment.tuning.num_pieces), run.workers)


def _extent(run: _Run, train: Samples, epoch: int) -> tuple[int, int]:
    """The batches of an epoch, and the cubes of each over all workers; the feed puts them together."""
    experiment, num_shares = run.experiment, run.workers.world_size * run.experiment.tuning.num_pieces
    keep = experiment.learns_from(train.columns, epoch)
    chosen = train if keep is None else train.select(keep)
    pairs = experiment.pairs(chosen.columns, epoch)
    if pairs is not None and len(pairs) < num_shares:
        raise TrainingError(
            f"{experiment.name}: {len(pairs)} pairs of samples of one class from two patients are too few for "
            f"{run.workers.world_size} worker(s) and batches in {experiment.tuning.num_pieces} piece(s): add scans, or "
            "lower these numbers"
        )
    number = len(chosen) if pairs is None else pairs.size
    of_batch, of_epoch = cubes_of_epoch(number, experiment.batch_size)
    return of_epoch // of_batch, of_batch


def _step(
    run: _Run, progress: Progress, network: nn.Module, pieces: Sequence[StoredBatch], num_cubes: int, rate: float
) -> dict[str, torch.Tensor]:
    """Change the weights by one global batch, of which `pieces` are this worker's, without waiting for the device.

    Returns means over all workers, OWN_LOSS of this one, and SCALE of the loss: scalars, float64, on the device.
    """
    experiment, workers, epoch = run.experiment, run.workers, len(progress.history)
    for group, factor in zip(progress.optimizer.param_groups, experiment.rate_factors(epoch), strict=True):
        group["lr"] = rate * factor
    progress.optimizer.zero_grad(set_to_none=True)
    teacher = None if progress.average is None else progress.average.module
    means: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(pieces, 1):
        share = len(batch.steps) / num_cubes
        accumulates = number < len(pieces)
        with network.no_sync() if isinstance(network, DistributedDataParallel) and accumulates else nullcontext():
            losses = experiment.losses(network, batch.on(workers.device), epoch, teacher)
            # Workers' gradients are averaged: with this factor to the mean over all samples, however these are shared.
            progress.scaler.scale(losses["loss"] * (share * workers.world_size)).backward()
        for name, value in losses.items():
            means[name] = means.get(name, 0.0) + value.detach() * share
    progress.scaler.unscale_(progress.optimizer)
    parameters = [parameter for parameter in progress.model.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    sums = sum_over_workers({**means, "gradient_norm": norm / workers.world_size}, workers.world_size)
    scale = progress.scaler.scale(torch.ones_like(norm))
    if experiment.tuning.clip_norm is not None:
        clip_grads_with_norm_(parameters, experiment.tuning.clip_norm, norm)
    progress.scaler.step(progress.optimizer)  # not where it finds that its scale was too large
    progress.scaler.update()
    if progress.average is not None and experiment.tuning.average_decay is not None:
        update_average(progress.average, progress.model, experiment.tuning.average_decay)
    return {**sums, OWN_LOSS: means["loss"].double(), SCALE: scale.double()}


def _read(run: _Run, unread: Sequence[_Unread], train: Samples) -> list[dict[str, float]]:
    """The figures of steps, for which the device is waited. Raises TrainingError if one of them is not finite."""
    values = torch.stack([torch.stack(list(step.figures.values())) for step in unread]).tolist()
    every = [dict(zip(step.figures, own, strict=True)) for step, own in zip(unread, values, strict=True)]
    for step, figures in zip(unread, every, strict=True):
        own_loss, is_scaled = figures.pop(OWN_LOSS), figures.pop(SCALE) > LEAST_SCALE
        if not math.isfinite(figures["loss"]) or not (is_scaled or math.isfinite(figures["gradient_norm"])):
            _fail(run, figures, own_loss, step, train)
    return every


def _report(run: _Run, progress: Progress, steps: Sequence[_Unread], every: Sequence[Mapping[str, float]]) -> None:
    """Add the figures of steps to those of their epoch, and call back with their rows."""
    rows = [{**step.row, **figures} for step, figures in zip(steps, every, strict=True)]
    for row, figures in zip(rows, every, strict=True):
        _add(progress.sums, {**figures, "seconds": row["seconds"], "waited": row["waited"]})
    for row in rows:
        run.callbacks.on_step(progress, cast(StepRow, row))


def _add(sums: dict[str, list[float]], figures: Mapping[str, float]) -> None:
    """Add figures to sums; what is not finite, a gradient whose step was left out, has no weight."""
    for name, value in figures.items():
        total, weight = sums.get(name, (0.0, 0.0))
        sums[name] = [total + value, weight + 1.0] if math.isfinite(value) else [total, weight]


def _fail(run: _Run, figures: Mapping[str, float], own_loss: float, step: _Unread, train: Samples) -> NoReturn:
    """Raise TrainingError, on all workers, for a loss or gradient that is not finite; those at fault keep the batch."""
    experiment, loss, epoch = run.experiment, figures["loss"], step.row["epoch"]
    what = f"the loss became {loss}"
    if math.isfinite(loss):
        what = f"the gradient became {figures['gradient_norm']} (the loss was {loss:.3g})"
    kept = ""
    if run.callbacks.folder is not None and not (math.isfinite(own_loss) and not math.isfinite(loss)):
        path = run.callbacks.folder / f"bad-batch-{run.workers.rank}.safetensors"
        rows: Rows = np.searchsorted(train.columns[experiment.sample_key], step.keys).astype(np.int64)
        batch = train.batch(rows)
        columns = {
            name: torch.from_numpy(column) for name, column in batch.columns.items() if column.dtype.kind in "iu"
        }
        facts = {"experiment": experiment.name, "epoch": str(epoch), "seed": str(experiment.seed), "what": what}
        publish(path, lambda aside: save_file({"cubes": batch.cubes, **columns}, aside, facts))
        kept = f" (its cubes and their ids are kept in {path})"
    raise TrainingError(
        f"{experiment.name}: {what} in epoch {epoch + 1} with a batch of {len(step.keys)}{kept}: lower the learning "
        "rate or look for damaged scans"
    )


@torch.no_grad()
def _evaluate(run: _Run, model: nn.Module, samples: Samples) -> dict[str, float]:
    """Held-out figures of an epoch's row."""
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    # No more at a time than a step has: it is what is known to fit.
    num_shares = run.experiment.tuning.num_pieces * run.workers.world_size
    size = math.ceil(run.experiment.batch_size / num_shares)
    batches = held_out_batches(len(samples), size, run.workers, samples.layout)
    with closing(prefetch(samples.stream([batches]), run.workers.device)) as feed:
        for batch in feed:
            for name, value in run.experiment.evaluate(model, batch.on(run.workers.device)).items():
                sums[name] = sums.get(name, 0.0) + value.double()
    totals = {name: total.cpu() for name, total in sum_over_workers(sums, run.workers.world_size).items()}
    count = totals.pop("count")
    figures = run.experiment.figures({name: total / count for name, total in totals.items()})
    return {f"val_{name}": value for name, value in figures.items()}
