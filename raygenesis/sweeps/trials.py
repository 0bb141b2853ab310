"""A sweep's trials under Ray Tune: how many run at once, what stops early, and how each ends.

Tune's loop is not `cluster.fan_out`'s: it compares trials as they train, stops some, and keeps their processes.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from raygenesis.cluster.progress import Stopwatch, Ticker, progress
from raygenesis.sweeps.queue import Queue
from raygenesis.sweeps.records import FAILED, RUNNING, STOPPED, SweepTrial, TrialRecord
from raygenesis.sweeps.search import Next
from raygenesis.sweeps.trial import PROXY, RECORD, SweepSetup, run_sweep_trial
from raygenesis.workspace.files import Place
from raygenesis.workspace.records import adapter

CPUS_PER_TRIAL = 1
MOST_LOSSES = 2  # of a trial's process or machine, before it counts as failed


def run_trials(queue: Queue, setup: SweepSetup, patterns: Place, concurrent: int | None, num_trials: int) -> None:
    """Run what the queue holds; each trial that ends leaves its record in the queue and in its file.

    concurrent: trials at once; as many as the cluster has room for, whenever machines come, when None. num_trials: in
    all, with those that are finished.
    """
    first = queue.next()
    if not isinstance(first, SweepTrial):
        return
    queue.put_back(first)
    trainable = tune.with_resources(
        tune.with_parameters(run_sweep_trial, patterns=patterns, setup=setup),
        {"cpu": CPUS_PER_TRIAL, "gpu": setup.num_gpus},
    )
    # What is finished is in our files; nothing reads what Tune keeps.
    with tempfile.TemporaryDirectory() as scratch, progress("sweep", num_trials, "trials") as ticker:
        ticker.advance(queue.known)
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Queued(queue), scheduler=_scheduler(setup), num_samples=-1,
                max_concurrent_trials=concurrent,
                # Starting a process and importing torch takes seconds; but one whose trial was stopped is still in it.
                reuse_actors=setup.settings.sweep.stopping == "none",
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=scratch, verbose=0,
                failure_config=tune.FailureConfig(max_failures=MOST_LOSSES), callbacks=[_Recorder(queue, ticker)],
            ),
        ).fit()  # fmt: skip


class _Queued(Searcher):
    """The queue as Tune asks for it.

    Tune's own OptunaSearch resumes from a pickle that Tune writes now and then, without what ended since, and draws
    the first points again where only results are given to it; our files are written as each trial ends.
    """

    def __init__(self, queue: Queue) -> None:
        super().__init__(metric=PROXY, mode="max")
        self._queue = queue

    def suggest(self, trial_id: str) -> Any:
        """The next trial's settings, None to wait, or that there are no more."""
        trial = self._queue.next()
        if trial is Next.DONE:
            return Searcher.FINISHED
        return {"point": trial.point, "seed": trial.seed} if isinstance(trial, SweepTrial) else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `_Recorder` puts it into the queue before the queue is asked again."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from its trials' files."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles all that it is given, to restore from


class _Recorder(tune.Callback):
    """Puts into the queue what became of each trial, and shows the progress."""

    def __init__(self, queue: Queue, ticker: Ticker) -> None:
        self._queue, self._ticker = queue, ticker
        self._begun: dict[str, Stopwatch] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._begun[trial.trial_id] = Stopwatch()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Also called for trials that the scheduler stops: the weights that they had by then count."""
        record: TrialRecord = adapter(TrialRecord).validate_python(trial.last_result[RECORD])
        if record.status == RUNNING:
            record = replace(record, status=STOPPED, reason=f"stopped at epoch {record.epochs}")
        self._end(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Errors of a trial are reported by itself: here its process has died."""
        path = Path(trial.error_file or "")
        lines = path.read_text().split("\n") if path.is_file() else []
        cause = next((line.strip() for line in lines if "exit" in line.lower() or "memory" in line.lower()), "")
        reason, seconds = f"its process died{cause and ': '}{cause}", round(self._begun[trial.trial_id].seconds, 2)
        point, seed = trial.config["point"], trial.config["seed"]
        self._end(TrialRecord(point=point, seed=seed, status=FAILED, reason=reason, seconds=seconds))

    def _end(self, record: TrialRecord) -> None:
        record = self._queue.end(record)
        self._ticker.advance(note=f"last {record.reason or format(record.retrieval or math.nan, '.3f')}")


def _scheduler(setup: SweepSetup) -> TrialScheduler:
    """What ends trials early, from a quarter of the longest's epochs on. Both work on plain function trials."""
    sweep = setup.settings.sweep
    grace = max(1, setup.most_epochs // 4)
    compared: dict[str, Any] = {"time_attr": "training_iteration", "metric": PROXY, "mode": "max"}
    if sweep.stopping == "median":
        # By default the rule pauses trials to let others catch up, and ours would begin anew after a pause.
        return MedianStoppingRule(grace_period=grace, min_time_slice=math.inf, **compared)  # type: ignore[arg-type]
    if sweep.stopping == "asha":
        return AsyncHyperBandScheduler(max_t=setup.most_epochs + 1, grace_period=grace, reduction_factor=3, **compared)
    return FIFOScheduler()
