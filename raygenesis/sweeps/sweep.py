"""Sweep: Ray Tune over settings of the pretraining. Every point selects rows of one pattern store."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from raygenesis.cluster import capacity, environment, joining
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.errors import SettingsError
from raygenesis.pretraining.monitors import LEAST_RANK
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.stores import pretext_task, with_store_settings
from raygenesis.settings import EXECUTION_SETTINGS, Settings, SweepSettings, as_yaml
from raygenesis.sweeps.measures import few_shot_of
from raygenesis.sweeps.objectives import OBJECTIVES, check_objective
from raygenesis.sweeps.queue import Queue
from raygenesis.sweeps.records import FAILED, STOPPED, SweepTrial, TrialRecord
from raygenesis.sweeps.search import search_of
from raygenesis.sweeps.space import MOST_CORNERS, Space, at_point, default_space, in_trial, most_epochs, read_space
from raygenesis.sweeps.table import costs, rank_points, seeds_note, trial_rows
from raygenesis.sweeps.trial import SweepSetup, seeds_of
from raygenesis.sweeps.trials import CPUS_PER_TRIAL, run_trials
from raygenesis.sweeps.work import sweep_work
from raygenesis.text.tables import aligned, as_csv, cell
from raygenesis.training.chosen_precision import with_precision
from raygenesis.training.experiment import TrainingError
from raygenesis.training.feeding import Batch
from raygenesis.transfer.description import read_description
from raygenesis.transfer.examples import SEGMENTATION
from raygenesis.transfer.initialisations import RANDOM, check_fits, find_initialisations
from raygenesis.transfer.resolved import ResolvedTarget, resolve_target, target_inputs
from raygenesis.workspace.artifacts import PATTERNS, SWEEPS
from raygenesis.workspace.files import Place, publish, read_json, write_json
from raygenesis.workspace.manifest import PatternsManifest, SweepCounts, SweepManifest
from raygenesis.workspace.stage import Stage, begun_in, settings_of
from raygenesis.workspace.workspace import Workspace


def sweep(
    workspace: Workspace, settings: Settings, name: str = "default", space_file: Path | None = None,
    announce: Announce = unannounced,
) -> SweepManifest:  # fmt: skip
    """Train a short pretraining at each point of a space and rank them; returns the manifest.

    Trials that an interrupted sweep finished are kept, and those that failed are tried again. Raises SettingsError,
    before anything is trained, if a point is impossible, needs more than the store holds, or cannot be compared.
    """
    patterns = PATTERNS.require(workspace.patterns)
    settings = with_store_settings(settings, patterns)
    space = read_space(space_file, settings.sweep.search) if space_file else default_space(patterns.counts)
    check_points(space, settings, patterns, workspace)
    check_objective(settings.sweep.objective, space, workspace.patterns)
    folder = workspace.sweep(name)
    num_gpus, begun = settings.gpus_of_trial("sweep"), settings_of(SWEEPS, folder)
    if num_gpus and begun is None:
        joining.connect()
        _check_room(settings.sweep, num_gpus)  # before a GPU is asked for its precision
    device = "cuda" if num_gpus else "cpu"
    settings = with_precision(settings, "pretraining", device, begun)
    if settings.sweep.objective == "target":
        settings = with_precision(settings, "finetune", device, begun)
    settings, target = _with_target(settings, space, workspace)
    command = ("sweep", "--name", name, *(("--space", "SPACE.yaml") if space_file else ()))
    inputs = {"patterns": patterns.fingerprint}
    if target:
        inputs |= target_inputs(target.target, begun_in(SWEEPS, folder), workspace)
    stage = _stage(folder, settings, space, inputs, command)
    if (finished := stage.finished()) is not None:
        if not finished.counts.failures:
            say("sweep", f"nothing to do: the table is in {folder}")
            return finished
        say("sweep", f"{finished.counts.failures} failed trials are tried again")
    watch = Stopwatch()
    joining.connect()
    concurrent = _num_concurrent(settings.sweep, num_gpus)
    # What TPE proposes depends on how many run at once; other searches use machines that come.
    grows = environment.is_joined() and settings.sweep.search != "tpe" and settings.sweep.max_concurrent_trials is None
    ready = few_shot_of(target, workspace) if target else None
    num_points = _num_points(settings.sweep, space)
    announce([sweep_work(settings.sweep, settings.pretraining, settings.discovery, num_gpus, num_points)])
    with stage.claimed():
        nodes = len(joining.logical_nodes())
        threads = capacity.threads_per_worker(math.ceil(concurrent / nodes))
        setup = SweepSetup(settings, patterns, num_gpus, threads, most_epochs(space, settings.sweep), ready)
        queue = _queue(folder, settings.sweep, settings.seed, space, concurrent)
        num_trials = settings.sweep.num_seeds * num_points
        say(
            "sweep",
            f"{settings.sweep.search} search over {', '.join(space.varied) or 'one point'}: {num_trials} trials, "
            f"{concurrent} at once{', more as machines come' if grows else ''}; best by "
            f"{OBJECTIVES[settings.sweep.objective].words}",
        )
        run_trials(queue, setup, workspace.patterns, None if grows else concurrent, num_trials)
        return _finish(stage, queue, space, settings, patterns, watch)


def check_points(space: Space, settings: Settings, patterns: PatternsManifest, workspace: Workspace) -> None:
    """Raise SettingsError if a point of a grid, or a combination of choices and ends of ranges, cannot be trained."""
    counts = patterns.counts
    for key in ("num_neighbours", "num_coordinates"):
        asked = space.ends(key) if key in space.axes else (getattr(settings.pretraining, key),)
        most = max((value for value in asked if value is not None), default=0)
        _check_store(key, most, counts.of(key), space, workspace)
    checked = set()
    most = None if settings.sweep.search == "grid" else MOST_CORNERS
    for point in itertools.islice(space.corners(), most):
        try:
            at_point(settings, point, counts)
            chosen = at_point(settings, in_trial(point, settings.sweep), counts).pretraining
            pretext = pretext_of(chosen)
            if pretext.store != PATTERNS:
                raise SettingsError(
                    f"pretraining.pretext={chosen.pretext} learns from random crops, which are not in the "
                    "pattern store that a sweep's points share: choose a pretext task that learns from patterns, such "
                    "as semantic-genesis"
                )
            task = pretext_task(chosen, settings.seed, patterns)
            if pretext.corruption not in checked:
                zeros = np.zeros(1, np.int64)
                columns = dict.fromkeys(("pattern_id", "reference", "coordinate", "scale"), zeros)
                task.make_batch(Batch(torch.zeros(1, 1, *task.sample_shape), columns), 0)
                checked.add(pretext.corruption)
        except SettingsError as error:
            values = ", ".join(f"pretraining.{key}={value}" for key, value in point.items())
            raise SettingsError(f"{space.where}, at {values}: {error}") from None


def _check_store(key: str, asked: int, there: int, space: Space, workspace: Workspace) -> None:
    if asked <= there:
        return
    verb = ["raygenesis", "discover", "--workspace", str(workspace.root), f"discovery.{key}={asked}"]
    where = space.where if key in space.axes else "the settings"
    raise SettingsError(
        f"{where}: pretraining.{key}={asked} is more than the {there} that the pattern store holds: lower it, or "
        f"extend the store: remove {workspace.patterns}, then run `{shlex.join(verb)}` with the preset and the other "
        "settings it was made with"
    )


def _with_target(settings: Settings, space: Space, workspace: Workspace) -> tuple[Settings, ResolvedTarget | None]:
    """The target of objective `target`, and the settings with what it says of its reading.

    Raises SettingsError if the target's inputs do not fit a network of the space.
    """
    if settings.sweep.objective != "target":
        return settings, None
    assert settings.sweep.target is not None  # the settings ask for it
    target = resolve_target(read_description(Path(settings.sweep.target)), workspace, settings)
    if target.settings.finetune.chooses_rate(target.target.task == SEGMENTATION):
        raise SettingsError(
            f"finetune.learning_rate={list(target.settings.finetune.rates)}: a sweep compares its points at one rate: "
            "give one, such as the middle of the list"
        )
    # Of several numbers of labelled subjects the first decides.
    finetune = target.settings.finetune.model_copy(update={"num_labelled": target.settings.finetune.num_labelled[:1]})
    target = replace(target, settings=target.settings.model_copy(update={"finetune": finetune}))
    for network in space.ends("network") if "network" in space.axes else (settings.pretraining.network,):
        chosen = settings.pretraining.model_copy(update={"network": network})
        (start,) = find_initialisations([RANDOM], workspace, chosen, settings.ndim)
        check_fits(start, target.form.input_shape, finetune)
    return target.settings, target


def _stage(
    folder: Place, settings: Settings, space: Space, inputs: Mapping[str, str], command: tuple[str, ...]
) -> Stage[SweepManifest]:
    """The stage of a sweep, whose settings are those that decide the results: how many trials run at once does not."""
    included = {
        "pretraining",
        "sweep",
        "seed",
        *({"finetune", "intensity", "validation_fraction"} if "target" in inputs else ()),
    }
    left_out = {"sweep": {"max_concurrent_trials", "num_gpus"}, "pretraining": EXECUTION_SETTINGS}
    chosen = settings.model_dump(mode="json", include=included, exclude=left_out)
    return Stage(SWEEPS, folder, {**chosen, "space": space.tree}, inputs, command=command)


def _check_room(settings: SweepSettings, num_gpus: float) -> None:
    """Raise SettingsError if the cluster never holds a trial on so many GPUs."""
    key = "sweep.num_gpus" if settings.num_gpus is not None else "pretraining.use_gpu=true: sweep.num_gpus"
    capacity.require(f"{key}={num_gpus:g}", 1, CPUS_PER_TRIAL, num_gpus)


def _num_concurrent(settings: SweepSettings, num_gpus: float) -> int:
    """How many trials, each on so many GPUs, run at once. Raises SettingsError if the cluster never holds one."""
    _check_room(settings, num_gpus)
    room = capacity.num_concurrent(CPUS_PER_TRIAL, num_gpus)
    wanted = settings.max_concurrent_trials or room
    if wanted > room:
        say("sweep", f"sweep.max_concurrent_trials={wanted}: the cluster holds {room} at once")
    return min(room, wanted)


def _queue(folder: Place, settings: SweepSettings, seed: int, space: Space, concurrent: int) -> Queue:
    """The queue of trials. What TPE proposes depends on how many run at once, so a resumed sweep keeps that number."""
    path = folder / "search.json"
    if settings.search == "tpe":
        begun_with = read_json(path) or {"concurrent": concurrent}
        write_json(path, begun_with)
        concurrent = begun_with["concurrent"]
    mode = OBJECTIVES[settings.objective].mode
    search = search_of(settings.search, space, settings.num_points, seed, concurrent, mode)
    return Queue(search, folder, seeds_of(seed, settings.num_seeds), settings.objective)


def _num_points(settings: SweepSettings, space: Space) -> int:
    size = space.size
    if settings.search == "grid":
        assert size is not None  # ranges without steps are refused
        return size
    return min(settings.num_points, size or settings.num_points)


def _finish(
    stage: Stage[SweepManifest], queue: Queue, space: Space, settings: Settings, patterns: PatternsManifest,
    watch: Stopwatch,
) -> SweepManifest:  # fmt: skip
    trials = [queue.records[SweepTrial(point, seed).key] for point in queue.points for seed in queue.seeds]
    failed = [trial for trial in trials if trial.status == FAILED]
    if len(failed) == len(trials):
        raise TrainingError(f"every trial of the sweep failed; the first: {failed[0].reason}")
    objective = settings.sweep.objective
    ranked = rank_points(trials, objective)
    table = tuple(point.flat() for point in ranked)
    files = {
        "table.csv": as_csv(table), "trials.csv": as_csv(trial_rows(trials)),
        "best.yaml": as_yaml(at_point(settings, ranked[0].point, patterns.counts)),
    }  # fmt: skip
    for file, text in files.items():
        publish(stage.folder / file, partial(Path.write_text, data=text))
    counts = SweepCounts(
        points=len(queue.points), trials=len(trials), failures=len(failed),
        stopped=sum(trial.status == STOPPED for trial in trials),
    )  # fmt: skip
    manifest = SweepManifest(
        counts=counts, seconds=watch.seconds, config=settings.model_dump(mode="json"), objective=objective,
        mode=OBJECTIVES[objective].mode, varied=tuple(space.varied), table=table, cost=costs(trials),
        seeds_note=seeds_note([point.spread for point in ranked], settings.sweep.num_seeds),
    )  # fmt: skip
    manifest = stage.finish(manifest)
    set_gauge("raygenesis_failures", len(failed), stage=stage.folder.name)
    _summarise(manifest, failed, stage.folder)
    return manifest


def _summarise(manifest: SweepManifest, failed: Sequence[TrialRecord], folder: Place) -> None:
    objective, varied = manifest.objective, manifest.varied
    columns = ["rank", *varied, objective, *(["spread"] if manifest.settings["sweep"]["num_seeds"] > 1 else [])]
    columns += [name for name in ("accuracy", "restoration", "seconds", "note") if name != objective]
    lines = [columns, *([cell(row.get(name)) for name in columns] for row in manifest.table)]
    for line in aligned(lines, "r" * (len(columns) - 1) + "l"):
        say("sweep", line)
    for trial in failed:
        point = ", ".join(f"{key}={trial.point[key]}" for key in varied)
        say("sweep", f"failed: {point}, seed {trial.seed}: {trial.reason}")
    collapsed = sum((row.get("rankme") or math.inf) < LEAST_RANK for row in manifest.table)
    if collapsed:
        say(
            "sweep",
            f"warning: at {collapsed} of {len(manifest.table)} points the embedding has collapsed (effective rank "
            f"below {LEAST_RANK}), and their order means nothing: train longer (sweep.num_joint_epochs)",
        )
    say("sweep", manifest.seeds_note)
    cost, counts = manifest.cost, manifest.counts
    wasted = cost.stopped_seconds + cost.failed_seconds
    say(
        "sweep",
        f"{counts.trials} trials, {counts.stopped} stopped early, {counts.failures} failed: "
        f"{cost.seconds:.1f} trial seconds ({wasted / max(cost.seconds, 1e-9):.0%} on those), "
        f"{cost.cpu_seconds:.1f} CPU and {cost.gpu_seconds:.1f} GPU seconds",
    )
    say("sweep", f"{manifest.seconds:.1f} s → {folder / 'table.csv'}; the best point as a preset: best.yaml")
