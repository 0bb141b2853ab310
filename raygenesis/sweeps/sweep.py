"""Sweep: Ray Tune over λcls, K and C; every point selects rows of one pattern store and nothing is cropped again."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.data
import torch
from ray import tune

from raygenesis import cluster
from raygenesis.config import Settings
from raygenesis.errors import SettingsError
from raygenesis.patterns.reader import TRAINING_COLUMNS
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.patterns.source import PatternSource
from raygenesis.pretraining.pretexts import PATTERNS, pretext_of
from raygenesis.pretraining.pretrain import pretext_task
from raygenesis.pretraining.probe import anatomy_retrieval
from raygenesis.pretraining.task import PretextTask
from raygenesis.progress import Ticker, progress, say
from raygenesis.settings import as_yaml, settings_from
from raygenesis.training.experiment import TrainingError
from raygenesis.training.feeding import Samples
from raygenesis.training.loop import Workers, run_epochs
from raygenesis.workspace import Stage, Stopwatch, Workspace, digest, manifest_of, publish, read_json, write_json

# The ranking must not depend on λ, K or C, so it is not a training loss: see `anatomy_retrieval`.
OBJECTIVE = "retrieval"
COLUMNS = (
    "lambda_cls", "num_neighbours", "num_coordinates", "retrieval", "accuracy", "chance", "restoration", "patterns",
    "epochs", "seconds",
)  # fmt: skip

Point = dict[str, Any]


def sweep(workspace: Workspace, settings: Settings, name: str = "default") -> dict[str, Any]:
    """Train one short pretraining per point and rank them by held-out anatomy retrieval; returns the manifest.

    Points that an interrupted sweep finished are kept.
    """
    if pretext_of(settings.pretraining).crops != PATTERNS:
        raise SettingsError(
            f"pretraining.pretext={settings.pretraining.pretext} learns from random crops, which have no K and C to "
            "sweep: choose a pretext task that classifies patterns, such as semantic-genesis"
        )
    patterns = manifest_of(workspace.patterns, "discover")
    folder = workspace.sweep(name)
    chosen = settings.model_dump(mode="json", include={"pretraining", "sweep", "seed"})
    stage = Stage(folder, chosen, {"patterns": patterns["fingerprint"]})
    if stage.is_finished():
        say("sweep", f"nothing to do: the table is in {folder}")
        return manifest_of(folder, "sweep")
    points = points_of(settings, patterns["counts"])
    tasks = [pretext_task(at_point(settings, point, patterns["counts"]), patterns) for point in points]
    watch = Stopwatch()
    with stage.claimed():
        planned = zip(points, tasks, strict=True)
        missing = [(point, task) for point, task in planned if not _path(folder, point).is_file()]
        say("sweep", f"{len(points)} points, {len(missing)} to train, one pattern store, 0 bytes cropped")
        failed = _train_points(workspace, settings, folder, missing) if missing else []
        rows = [row for point in points if (row := read_json(_path(folder, point))) is not None]
        ranked = sorted(rows, key=lambda row: -math.inf if math.isnan(row[OBJECTIVE]) else row[OBJECTIVE], reverse=True)
        if not ranked:
            raise TrainingError(f"every point of the sweep failed; the first: {failed[0]}")
        publish(folder / "table.csv", lambda aside: aside.write_text(_as_csv(ranked)))
        best = at_point(settings, {key: ranked[0][key] for key in points[0]}, patterns["counts"])
        publish(folder / "best.yaml", lambda aside: aside.write_text(as_yaml(best)))
        counts = {"points": len(points), "failures": len(failed), "bytes_cropped": 0}
        manifest = stage.finish(counts, watch.seconds, objective=OBJECTIVE, table=ranked)
        _summarise(manifest, failed, folder)
        return manifest


def points_of(settings: Settings, counts: Mapping[str, int]) -> list[Point]:
    """The grid of the sweep; K and C default to half and all of what the store holds."""
    neighbours = settings.sweep.num_neighbours or _halves(counts["neighbours"])
    coordinates = settings.sweep.num_coordinates or _halves(counts["coordinates"])
    return [
        {"lambda_cls": weight, "num_neighbours": k, "num_coordinates": c}
        for weight, k, c in itertools.product(settings.sweep.lambda_cls, neighbours, coordinates)
    ]


def at_point(settings: Settings, point: Point, counts: Mapping[str, int]) -> Settings:
    """The settings with the pretraining of one point, on a store of these counts."""
    epochs = {
        "num_classification_epochs": settings.sweep.num_classification_epochs,
        "num_joint_epochs": settings.sweep.num_joint_epochs,
    }
    tree = settings.model_dump(mode="json")
    tree["discovery"] |= {"num_neighbours": counts["neighbours"], "num_coordinates": counts["coordinates"]}
    tree["sweep"] |= {"num_neighbours": [], "num_coordinates": []}
    tree["pretraining"] |= {**point, **epochs, "num_workers": 1}
    return settings_from(tree)


def _train_points(
    workspace: Workspace, settings: Settings, folder: Path, missing: Sequence[tuple[Point, PretextTask]]
) -> list[str]:
    """Train points; each leaves its file. Returns what is told of those that failed, which a rerun tries again."""
    cluster.connect()
    source = PatternSource(workspace.patterns, columns=(*TRAINING_COLUMNS, "split"))
    store = ray.data.read_datasource(source, override_num_blocks=source.num_parts).materialize()
    concurrent = min(settings.sweep.max_concurrent_trials, len(missing))
    use_gpu = settings.pretraining.use_gpu
    trainable = tune.with_resources(
        tune.with_parameters(
            _train_point, blocks=store.to_arrow_refs(), folder=folder,
            num_threads=cluster.threads_per_worker(concurrent), device="cuda" if use_gpu else "cpu",
        ),
        {"cpu": 1, "gpu": 1 if use_gpu else 0},
    )  # fmt: skip
    with progress("sweep", len(missing), "trials") as ticker:
        tuner = tune.Tuner(
            trainable,
            param_space={"point": tune.grid_search([{"point": point, "task": task} for point, task in missing])},
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(folder), verbose=0, callbacks=[_Shown(ticker)],
            ),
        )  # fmt: skip
        results = tuner.fit()
    return [
        f"{point}: {str(result.error).strip().splitlines()[-1]}"
        for (point, _), result in zip(missing, results, strict=True)
        if result.error is not None and not _path(folder, point).is_file()
    ]


def _train_point(
    config: dict[str, Any], blocks: Sequence[ray.ObjectRef], folder: Path, num_threads: int, device: str
) -> None:
    """One trial: the plain epoch loop on the rows that its K and C select."""
    point, task = config["point"]["point"], config["point"]["task"]
    torch.set_num_threads(num_threads)
    watch = Stopwatch()
    everything = Samples(ray.get(list(blocks)), task.sample_key, task.sample_shape)
    columns = everything.columns
    within = columns["coordinate"] < point["num_coordinates"]
    training = columns["split"] == TRAINING
    train = everything.select(training & within & (columns["rank"] < point["num_neighbours"]))
    probe = everything.select(columns["split"] == VALIDATION)
    validation = everything.select((columns["split"] == VALIDATION) & within)
    now = run_epochs(task, train, validation, workers=Workers(device=device), folder=folder)
    model = task.build()
    model.load_state_dict(now.best)
    best = min(now.history, key=task.score)
    result = {
        **point,
        "retrieval": anatomy_retrieval(model.encoder, probe),
        "accuracy": best["val_accuracy"],
        "chance": task.chance,
        "restoration": best.get("val_restoration", math.nan),
        "patterns": len(train),
        "epochs": len(now.history),
        "seconds": round(watch.seconds, 2),
    }
    write_json(_path(folder, point), result)
    tune.report({key: value for key, value in result.items() if key not in point})


class _Shown(tune.Callback):
    """Shows finished trials."""

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ticker.advance(note=f"last retrieval {trial.last_result.get('retrieval', float('nan')):.3f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ticker.advance(note="failed")


def _summarise(manifest: Mapping[str, Any], failed: Sequence[str], folder: Path) -> None:
    say("sweep", f"ranked by {OBJECTIVE} on held-out subjects (mean average precision of finding the same place)")
    say("sweep", "rank    λcls     K     C  retrieval  accuracy  restoration  seconds")
    for rank, row in enumerate(manifest["table"], 1):
        say(
            "sweep",
            f"{rank:4d} {row['lambda_cls']:7g} {row['num_neighbours']:5d} {row['num_coordinates']:5d} "
            f"{row['retrieval']:10.3f} {row['accuracy']:9.3f} {row['restoration']:12.5f} {row['seconds']:8.1f}",
        )
    for failure in failed:
        say("sweep", f"failed: {failure}")
    say("sweep", f"{manifest['seconds']:.1f} s → {folder / 'table.csv'}; the best point as a preset: best.yaml")


def _halves(most: int) -> list[int]:
    return sorted({max(1, most // 2), most})


def _path(folder: Path, point: Point) -> Path:
    return folder / f"trial-{digest(point)}.json"


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ("rank", *COLUMNS))
    writer.writeheader()
    writer.writerows({"rank": rank, **row} for rank, row in enumerate(rows, 1))
    return text.getvalue()
