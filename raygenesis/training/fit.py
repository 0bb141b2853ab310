"""Ray Train around the epoch loop: workers that may die, and be more or fewer when they start again."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import ray
import ray.train
import torch
from ray.data import Dataset
from ray.exceptions import RayActorError
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from raygenesis.cluster.capacity import threads_per_worker
from raygenesis.cluster.fan_out import TRAINING_ENVIRONMENT
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.progress import progress, say
from raygenesis.errors import RaygenesisError, SettingsError, WorkspaceError, reason_of
from raygenesis.training.checkpoints import newest_checkpoint, newest_step
from raygenesis.training.experiment import Experiment, TrainingError
from raygenesis.training.feeding import Samples
from raygenesis.training.loop import Callbacks, Progress, run_epochs
from raygenesis.training.metrics import forget_steps, read_metrics, write_metrics
from raygenesis.training.recorder import CHECKPOINTS, STATUS_FILE, Recorder
from raygenesis.training.records import EpochRow, TrainingState, TrainingStatus
from raygenesis.training.trackers import TRACKERS, Tracker
from raygenesis.training.workers import Workers
from raygenesis.workspace.files import Place, read_json, remove_tree, write_json
from raygenesis.workspace.manifest import Tree

MAX_FAILURES = 3  # of workers, without getting any further
MAX_WAITS = 30  # of a minute each, for machines that are being started
SHOWN_SECONDS = 1.0
REFUSED_FILE = "refused.json"  # why a worker that is not alone cannot go on


class SampleStore(Protocol):
    """Samples that each worker opens for itself."""

    def open(self, key: str, shape: Sequence[int]) -> Samples: ...


Feed = Dataset | SampleStore


@dataclass(frozen=True, kw_only=True)
class Resources:
    """How training is run; what is learnt does not depend on it.

    Attributes:
        num_workers: How many, or the fewest and the most.
        use_gpu: Whether each worker has a GPU.
        checkpoint_seconds: Seconds between checkpoints: so much is computed again, at the most, after a kill.
        trackers: Names of trackers, of `TRACKERS`.
        config: Settings that trackers record with the run.
    """

    num_workers: int | tuple[int, int] = 1
    use_gpu: bool = False
    checkpoint_seconds: float = 60.0
    trackers: tuple[str, ...] = ()
    config: Tree = field(default_factory=dict)


ONE_WORKER = Resources()


@dataclass(frozen=True)
class _Job:
    """What every worker gets."""

    experiment: Experiment
    folder: Place
    resources: Resources
    stores: Mapping[str, SampleStore]


class Fitted(NamedTuple):
    """The final state of training, and the number of epochs that the call has trained."""

    state: TrainingState
    num_epochs: int


def fit_with_ray(
    experiment: Experiment, feeds: Mapping[str, Feed], folder: Place, resources: Resources = ONE_WORKER
) -> Fitted:
    """Train under Ray Train.

    An interrupted training goes on at the batch after its newest checkpoint. Workers that die are started again from
    the newest checkpoint as long as there is progress in between.

    Args:
        experiment: What is trained.
        feeds: Samples of `train` and `validation`: Ray datasets with a `cube` cell a row, or sample stores.
        folder: Receives checkpoints, `metrics.parquet` (a row an epoch), `steps/` (a row a step) and `progress.json`.
        resources: How training is run.

    Raises:
        TrainingError: Workers died again and again without progress, or the loop raised it.
        WorkspaceError: Workers write to another file system.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    before = _go_back(experiment, folder)
    stores = {name: feed for name, feed in feeds.items() if not isinstance(feed, Dataset)}
    datasets = {name: feed for name, feed in feeds.items() if isinstance(feed, Dataset)}
    with _shown(experiment, folder):
        _fit_to_the_end(_Job(experiment, folder, resources, stores), datasets)
    (folder / STATUS_FILE).unlink(missing_ok=True)
    last = newest_checkpoint(folder / CHECKPOINTS)
    if last is None:
        raise WorkspaceError(
            f"{folder / CHECKPOINTS} holds no checkpoint after training: workers on other machines must write to the "
            "same file system"
        )
    return Fitted(last.state, len(last.state["history"]) - before)


def _remove_leftovers(folder: Place) -> None:
    """What a call that was killed was writing, and what its workers could not go on with."""
    for path in (*(folder / CHECKPOINTS).glob(".step-*"), folder / REFUSED_FILE):
        remove_tree(path)


def _go_back(experiment: Experiment, folder: Place) -> int:
    """Take the tables back to the newest checkpoint, where training goes on; returns how many epochs have ended."""
    newest = newest_checkpoint(folder / CHECKPOINTS, lambda text: say(experiment.name, f"warning: {text}"))
    forget_steps(folder, newest.step if newest else 0)
    if newest is None:
        (folder / "metrics.parquet").unlink(missing_ok=True)
        return 0
    state = newest.state
    write_metrics(folder, state["history"])
    if state["step"]:
        say(experiment.name, f"going on in epoch {len(state['history']) + 1}, after {state['step']} of its steps")
    return len(state["history"])


def _fit_to_the_end(job: _Job, datasets: Mapping[str, Dataset]) -> None:
    """Start workers until they end by themselves; those that die without getting further end it."""
    while True:
        reached = newest_step(job.folder / CHECKPOINTS) or 0
        try:
            with tempfile.TemporaryDirectory() as scratch:  # of Ray's controller, on this machine
                result = _trainer(job, datasets, scratch).fit()
        except ControllerError as error:
            raise TrainingError(
                f"{job.experiment.name}: there was no room for its {job.resources.num_workers} worker(s) within "
                f"{MAX_WAITS} min: run the same command again when the cluster has it"
            ) from error
        except RayActorError as error:  # its workers may still be there: nothing is started beside them
            raise TrainingError(
                f"{job.experiment.name}: Ray lost the process that watches over the workers ({reason_of(error)}): run "
                f"the same command again, which goes on from step {newest_step(job.folder / CHECKPOINTS) or 0}"
            ) from error
        except TrainingFailedError as error:
            newest = newest_step(job.folder / CHECKPOINTS) or 0
            if newest <= reached:
                reason = str(error).strip().splitlines()[-1]
                raise TrainingError(
                    f"{job.experiment.name}: workers died {MAX_FAILURES + 1} times and training came no further than "
                    f"step {newest}: {reason}"
                ) from error
            say(job.experiment.name, f"workers died {MAX_FAILURES + 1} times; going on from step {newest}")
        else:
            returned = result.return_value  # type: ignore[attr-defined]
            if isinstance(returned, RaygenesisError):
                raise returned
            return


def _trainer(job: _Job, datasets: Mapping[str, Dataset], scratch: str) -> TorchTrainer:
    # Ray's types are those of the Train that was before.
    return TorchTrainer(
        _train_worker,  # type: ignore[arg-type]
        train_loop_config={"job": job},
        datasets=dict(datasets),
        dataset_config=DataConfig(datasets_to_split=[]),
        scaling_config=ScalingConfig(
            num_workers=job.resources.num_workers,  # type: ignore[arg-type]
            use_gpu=job.resources.use_gpu,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            storage_path=scratch,
            name="train",
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=MAX_FAILURES, controller_failure_limit=MAX_WAITS
            ),
            worker_runtime_env=TRAINING_ENVIRONMENT,
        ),
    )


def _train_worker(config: Mapping[str, _Job]) -> RaygenesisError | None:
    """One Ray Train worker.

    An error that trying again cannot mend is returned, for Ray would start the workers anew for one that is raised.
    One that this worker alone may have seen is raised and kept in a file, from which the workers that Ray starts anew
    return it: only Ray can end the others, which wait for this one.
    """
    job = config["job"]
    refused = read_json(job.folder / REFUSED_FILE)
    if refused is not None:
        return TrainingError(refused["reason"])
    context = ray.train.get_context()
    torch.set_num_threads(threads_per_worker(context.get_local_world_size()))
    workers = Workers(
        rank=context.get_world_rank(), world_size=context.get_world_size(), device=ray.train.torch.get_device()
    )
    state = _agreed_state(job.folder, workers)
    recorder = None
    try:
        train, validation = (
            samples_from(job.stores.get(name) or ray.train.get_dataset_shard(name), job.experiment)
            for name in ("train", "validation")
        )
        if workers.rank == 0:
            step = state["steps_done"] if state else 0
            forget_steps(job.folder, step)
            recorder = Recorder(job.folder, job.resources.checkpoint_seconds, _trackers(job, step))
        callbacks = Callbacks(folder=job.folder)
        if recorder is not None:
            callbacks = Callbacks(on_step=recorder.on_step, on_epoch=recorder.on_epoch, folder=job.folder)
        last = run_epochs(job.experiment, train, validation, workers=workers, state=state, callbacks=callbacks)
        _close(recorder, last)
    except RaygenesisError as error:
        _close(recorder, None)
        if workers.world_size > 1 and not isinstance(error, TrainingError):  # those the loop raises on all workers
            write_json(job.folder / REFUSED_FILE, {"reason": str(error)})
            raise
        return error
    return None


def _trackers(job: _Job, step: int) -> list[Tracker]:
    trackers = []
    for name in job.resources.trackers:
        try:
            trackers.append(TRACKERS[name](job.folder, job.folder.name, job.resources.config, step))
        except Exception as error:
            raise SettingsError(
                f"pretraining.trackers: {name} cannot be started ({reason_of(error)}): put that right, or leave it out"
            ) from error
    return trackers


def _close(recorder: Recorder | None, last: Progress | None) -> None:
    if recorder is not None:
        recorder.close(last)


def _agreed_state(folder: Place, workers: Workers) -> TrainingState | None:
    """The newest whole checkpoint.

    Raises RuntimeError, at which Ray starts the workers anew, if they see different ones: another machine may see a
    file later than the one that wrote it.
    """
    found = newest_checkpoint(folder / CHECKPOINTS)
    if workers.world_size > 1:
        steps: list[int | None] = [None] * workers.world_size
        torch.distributed.all_gather_object(steps, found.step if found else None)
        if len(set(steps)) > 1:
            raise RuntimeError(f"workers see different newest checkpoints in {folder}, after steps {steps}")
    return found.state if found else None


def samples_from(feed: Any, experiment: Experiment) -> Samples:
    """All samples of a Ray dataset or its iterator, left in Ray's shared memory, or of a sample store."""
    key, shape = experiment.sample_key, experiment.sample_shape
    if hasattr(feed, "iter_batches"):
        return Samples(list(feed.iter_batches(batch_size=None, batch_format="pyarrow")), key, shape)
    return feed.open(key, shape)


@contextmanager
def _shown(experiment: Experiment, folder: Place) -> Iterator[None]:
    """Show what the first worker writes into `progress.json` and the epochs' table, and say what goes wrong."""
    stopped = threading.Event()
    (folder / STATUS_FILE).unlink(missing_ok=True)

    def watch() -> None:
        rows = read_metrics(folder)
        status: TrainingStatus | None = None
        reported, done = set(experiment.warnings(rows)), float(len(rows))
        with progress(experiment.name, experiment.num_epochs, "epochs", done=done) as ticker:
            last = False
            while not last:
                last = stopped.wait(SHOWN_SECONDS)
                with suppress(WorkspaceError):  # a store that does not answer ends no watching
                    rows, status = read_metrics(folder), cast(TrainingStatus | None, read_json(folder / STATUS_FILE))
                reached = max(done, float(len(rows)), status["epochs"] if status else 0.0)
                _set_gauges(folder.name, rows, status)
                if reached > done:
                    ticker.advance(reached - done, note=_note(rows, status))
                    done = reached
                wrong = {**experiment.warnings(rows), **{text: text for text in (status["lost"] if status else ())}}
                for kind, sentence in wrong.items():
                    if kind not in reported:
                        reported.add(kind)
                        say(experiment.name, f"warning after epoch {len(rows)}: {sentence}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _set_gauges(run: str, rows: Sequence[EpochRow], status: TrainingStatus | None) -> None:
    """Report to Prometheus how training goes."""
    if status:
        set_gauge("raygenesis_training_gap", status["gap"], run=run)
        set_gauge("raygenesis_loss", status["loss"], run=run, split="training")
    if rows and rows[-1].get("val_loss") is not None:
        set_gauge("raygenesis_loss", rows[-1]["val_loss"], run=run, split="held out")


def _note(rows: Sequence[EpochRow], status: TrainingStatus | None) -> str:
    """The newest epoch in a line, without figures that do not change, and how fast training is."""
    parts = []
    if rows:
        before: Mapping[str, object] = rows[-2] if len(rows) > 1 else {}
        figures = [
            f"{name[4:].replace('_', ' ')} {value:.4g}"
            for name, value in rows[-1].items()
            if name.startswith("val_") and value not in (None, before.get(name))
        ]
        parts.append(f"held out: {', '.join(figures)}")
    if status:
        parts.append(
            f"loss {status['loss']:.4g}, {status['cubes_per_s']:.0f} cubes/s, gap {status['gap']:.1%}, "
            f"{status['memory_gib']:.1f} GiB"
        )
    phase = (status and status["phase"]) or (rows[-1]["phase"] if rows else "")
    return f"[{phase}] {'; '.join(parts)}"
