"""The epoch loop, in plain torch: the Ray worker, a sweep's trial and the benchmark call the same function."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raygenesis.training.checkpoints import State
from raygenesis.training.experiment import Experiment, Row, TrainingError, best_of
from raygenesis.training.feeding import Batch, Samples, cubes_of_epoch, ordered_batches, prefetch, training_batches
from raygenesis.training.workers import summed, synchronise
from raygenesis.workspace.files import Place, publish

# Where the scale of the loss falls below this, it is not for the scale that gradients are not finite.
LEAST_SCALE = 1.0
TIMES = ("seconds", "waited")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among those that share the work."""

    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"


ALONE = Workers()


@dataclass
class Progress:
    """Where training stands after a step: enough to go on from here as if it had never stopped.

    Everything random is drawn from the seed, the epoch and a sample's key, so there is no random state to keep.
    history: a row an epoch; step: steps done of the epoch that is running; sums: of its figures, name → sum and weight;
    best: weights of the best epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    best: dict[str, torch.Tensor]
    history: list[Row] = field(default_factory=list)
    step: int = 0
    steps_done: int = 0  # of all epochs
    sums: dict[str, list[float]] = field(default_factory=dict)

    @property
    def validated(self) -> nn.Module:
        """The model that is judged and kept."""
        return self.model if self.average is None else self.average.module

    def state(self) -> State:
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

    def load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best, self.history = dict(state["best"]), list(state["history"])
        self.step, self.steps_done = state["step"], state["steps_done"]
        self.sums = {name: list(sums) for name, sums in state["sums"].items()}


def run_epochs(
    experiment: Experiment,
    train: Samples,
    validation: Samples,
    *,
    workers: Workers = ALONE,
    state: Mapping[str, Any] | None = None,
    on_step: Callable[[Progress, Row], None] = lambda *_: None,
    on_epoch: Callable[[Progress], None] = lambda _: None,
    folder: Place | None = None,
) -> Progress:
    """Train to the end, from `state` when given, which may lie in the midst of an epoch.

    `on_step` is called after each step with its row of figures, `on_epoch` after each epoch. What is learnt does not
    depend on how many workers share the work, but for rounding. Raises TrainingError when there are fewer samples than
    workers, or when a loss or a gradient is not finite; the batch that did it is then kept in `folder`, if given.
    """
    num_shares = workers.world_size * experiment.tuning.num_pieces
    for kind, samples, least in (("training", train, num_shares), ("held-out", validation, workers.world_size)):
        if len(samples) < least:
            raise TrainingError(
                f"{experiment.name}: {len(samples)} {kind} samples are too few for {workers.world_size} worker(s) and "
                f"batches in {experiment.tuning.num_pieces} piece(s): add scans, or lower these numbers"
            )
    now = _begin(experiment, workers)
    if state is not None:
        now.load(state)
    while len(now.history) < experiment.num_epochs and not experiment.should_stop(now.history):
        row = _epoch(experiment, now, train, workers, on_step, folder)
        row.update(_validate(experiment, now.validated, validation, workers))
        if math.isnan(experiment.score(row)):
            raise TrainingError(
                f"{experiment.name}: the held-out loss became NaN after epoch {row['epoch'] + 1}: lower the learning "
                "rate or look for damaged scans"
            )
        now.history.append(row)
        now.step, now.sums = 0, {}
        if best_of(experiment, now.history) is row:
            # A new dictionary of new tensors: a checkpoint that is being written may still hold the old one.
            now.best = {name: value.detach().cpu().clone() for name, value in now.validated.state_dict().items()}
        on_epoch(now)
    return now


def _begin(experiment: Experiment, workers: Workers) -> Progress:
    model = experiment.build()
    if workers.world_size > 1:
        model = synchronise(model, workers.device)
    model = model.to(workers.device)
    decay = experiment.tuning.average_decay
    average = None
    if decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    scaler = torch.amp.GradScaler(torch.device(workers.device).type, enabled=experiment.tuning.scales_loss)
    return Progress(model, experiment.optimizer(model), scaler, average, copy.deepcopy(model.state_dict()))


def _epoch(
    experiment: Experiment, now: Progress, train: Samples, workers: Workers, on_step: Callable[[Progress, Row], None],
    folder: Place | None,
) -> Row:  # fmt: skip
    """The steps of an epoch that are not done yet; returns its row of means."""
    epoch, num_pieces = len(now.history), experiment.tuning.num_pieces
    phase = experiment.begin_epoch(now.model, epoch)
    now.model.train()
    network: nn.Module = now.model
    if workers.world_size > 1:  # anew in each epoch, as it may train other parameters
        network = DistributedDataParallel(now.model, broadcast_buffers=False)
    batches = training_batches(
        len(train), experiment.batch_size, experiment.seed, epoch, workers.rank, workers.world_size, num_pieces
    )
    num_cubes, _ = cubes_of_epoch(len(train), experiment.batch_size)
    on_gpu = torch.device(workers.device).type == "cuda"
    begin = time.perf_counter()
    with closing(prefetch(train, [piece for batch in batches[now.step :] for piece in batch], pin=on_gpu)) as feed:
        while now.step < len(batches):
            pieces = [next(feed) for _ in range(num_pieces)]
            waited = time.perf_counter() - begin
            rate = experiment.learning_rate(epoch, (now.step + 1) / len(batches))
            figures = _step(experiment, now, network, pieces, epoch, num_cubes, rate, workers, folder)
            seconds, begin = time.perf_counter() - begin, time.perf_counter()
            _add(now.sums, {**figures, "seconds": seconds, "waited": waited})
            row = {"step": now.steps_done, "epoch": epoch, "phase": phase, "learning_rate": rate, **figures}
            now.step, now.steps_done = now.step + 1, now.steps_done + 1
            row |= {"share": now.step / len(batches), "cubes": num_cubes, "seconds": seconds, "waited": waited}
            on_step(now, row)
    seconds, waited = (now.sums[name][0] for name in TIMES)
    return {
        "epoch": epoch,
        "phase": phase,
        "learning_rate": experiment.learning_rate(epoch, 1.0),
        # A gradient that was finite in no step has no mean.
        **{
            f"train_{name}": total / weight if weight else None
            for name, (total, weight) in now.sums.items()
            if name not in TIMES
        },
        "seconds": seconds,
        "cubes_per_s": num_cubes * len(batches) / seconds,
        "gap": waited / seconds,
    }


def _step(
    experiment: Experiment, now: Progress, network: nn.Module, pieces: Sequence[Batch], epoch: int, num_cubes: int,
    rate: float, workers: Workers, folder: Place | None,
) -> Row:  # fmt: skip
    """Change the weights by one global batch, of which `pieces` are this worker's; returns means over all workers."""
    for group in now.optimizer.param_groups:
        group["lr"] = rate
    now.optimizer.zero_grad(set_to_none=True)
    means: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(pieces, 1):
        share = len(batch.cubes) / num_cubes
        waits = number < len(pieces)
        with network.no_sync() if isinstance(network, DistributedDataParallel) and waits else nullcontext():
            losses = experiment.losses(network, _to(batch, workers.device), epoch)
            # Workers' gradients are averaged: with this factor to the mean over all samples, however these are shared.
            now.scaler.scale(losses["loss"] * (share * workers.world_size)).backward()
        for name, value in losses.items():
            means[name] = means.get(name, 0.0) + value.detach() * share
    now.scaler.unscale_(now.optimizer)
    parameters = [parameter for parameter in now.model.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    everywhere = {name: total.item() for name, total in summed(
        {**means, "gradient_norm": norm / workers.world_size}, workers.world_size
    ).items()}  # fmt: skip
    scaled = now.scaler.is_enabled() and now.scaler.get_scale() > LEAST_SCALE
    if not math.isfinite(everywhere["loss"]) or not (scaled or math.isfinite(everywhere["gradient_norm"])):
        _refuse(experiment, everywhere, means["loss"].item(), pieces, epoch, workers, folder)
    if experiment.tuning.clip_norm is not None:
        clip_grads_with_norm_(parameters, experiment.tuning.clip_norm, norm)
    now.scaler.step(now.optimizer)  # not where it finds that its scale was too large
    now.scaler.update()
    if now.average is not None:
        now.average.update_parameters(now.model)
    return everywhere


def _add(sums: dict[str, list[float]], figures: Mapping[str, float]) -> None:
    """Count figures; what is not finite, a gradient whose step was left out, has no weight."""
    for name, value in figures.items():
        total, weight = sums.get(name, (0.0, 0.0))
        sums[name] = [total + value, weight + 1.0] if math.isfinite(value) else [total, weight]


def _refuse(
    experiment: Experiment, figures: Mapping[str, float], own_loss: float, pieces: Sequence[Batch], epoch: int,
    workers: Workers, folder: Place | None,
) -> None:  # fmt: skip
    """Raise TrainingError, on all workers, for a loss or gradient that is not finite; those at fault keep the batch."""
    loss = figures["loss"]
    what = f"the loss became {loss}"
    if math.isfinite(loss):
        what = f"the gradient became {figures['gradient_norm']} (the loss was {loss:.3g})"
    kept = ""
    if folder is not None and not (math.isfinite(own_loss) and not math.isfinite(loss)):
        path = folder / f"bad-batch-{workers.rank}.safetensors"
        columns = {
            name: torch.cat([torch.from_numpy(piece.columns[name]) for piece in pieces])
            for name, column in pieces[0].columns.items() if column.dtype.kind in "iu"
        }  # fmt: skip
        tensors = {"cubes": torch.cat([piece.cubes for piece in pieces])} | columns
        facts = {"experiment": experiment.name, "epoch": str(epoch), "seed": str(experiment.seed), "what": what}
        publish(path, lambda aside: save_file(tensors, aside, facts))
        kept = f" (its cubes and their ids are kept in {path})"
    size = sum(len(piece.cubes) for piece in pieces)
    raise TrainingError(
        f"{experiment.name}: {what} in epoch {epoch + 1} with a batch of {size}{kept}: lower the learning rate or look "
        "for damaged scans"
    )


@torch.no_grad()
def _validate(experiment: Experiment, model: nn.Module, samples: Samples, workers: Workers) -> dict[str, float]:
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    batches = ordered_batches(len(samples), experiment.batch_size, workers.rank, workers.world_size)
    for batch in prefetch(samples, batches):
        for name, value in experiment.evaluate(model, _to(batch, workers.device)).items():
            sums[name] = sums.get(name, 0.0) + value.double()
    totals = summed(sums, workers.world_size)
    count = totals.pop("count")
    figures = experiment.figures({name: total / count for name, total in totals.items()})
    return {f"val_{name}": value for name, value in figures.items()}


def _to(batch: Batch, device: torch.device | str) -> Batch:
    return Batch(batch.cubes.to(device, non_blocking=True), batch.columns)
