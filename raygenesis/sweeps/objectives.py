"""What points are ranked by. None depends on λ, K or C; the one that does is refused where they vary."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raygenesis.cluster.progress import say
from raygenesis.errors import SettingsError
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.native import save_network
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import VALIDATION
from raygenesis.pretraining.monitors import moments, spread_of
from raygenesis.pretraining.probe import embed_samples, place_precision
from raygenesis.sweeps.space import Space
from raygenesis.training.feeding import Samples
from raygenesis.transfer.initialisations import Initialisation
from raygenesis.transfer.metrics import PRIMARY, figures
from raygenesis.transfer.prepared import Prepared, ResolvedTarget, prepare
from raygenesis.transfer.trial import fine_tune
from raygenesis.workspace.files import Place
from raygenesis.workspace.workspace import Workspace

MIN_HELD_OUT = 2

# What the joint loss is made of: its parts' weights, the number of classes, and the task itself.
LOSS_DEPENDS_ON = {
    "lambda_cls": "λ weighs its parts",
    "lambda_rec": "λ weighs its parts",
    "num_coordinates": "C is the number of classes",
    "pretext": "each pretext task has a loss of its own",
    "corruption": "what is to be restored is harder or easier",
}


@dataclass(frozen=True)
class Objective:
    """mode: `max` or `min`; words: what it is; proxy: the measure that stops trials early."""

    name: str
    mode: str
    words: str
    proxy: str


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective(
            "retrieval", "max", "finding the same place in other held-out scans (mean average precision)", "retrieval"
        ),
        Objective("rankme", "max", "the effective rank of held-out patterns' embeddings (RankMe)", "rankme"),
        # Fine-tuning after every epoch would cost more than the training that it could save.
        Objective(
            "target",
            "max",
            "the target task learnt from few labels (its own figure, a mean over trials; errors count negative)",
            "retrieval",
        ),
        Objective("loss", "min", "the held-out joint loss", "loss"),
    )
}


def check_objective(name: str, space: Space, patterns: Place) -> None:
    """Raise SettingsError if the points of this space cannot be compared by the objective."""
    if name == "loss":
        for key, reason in LOSS_DEPENDS_ON.items():
            if key in space.varied:
                raise SettingsError(
                    f"sweep.objective=loss cannot rank points of different pretraining.{key}: {reason}, so the lowest "
                    "loss is not the best encoder's; choose sweep.objective=retrieval, rankme or target"
                )
    scans = set(read_patterns(patterns, ["volume_id"], predicate(VALIDATION))["volume_id"].to_pylist())
    if OBJECTIVES[name].proxy == "retrieval" and len(scans) < MIN_HELD_OUT:
        raise SettingsError(
            f"sweep.objective={name} compares held-out scans and {patterns} holds patterns of {len(scans)}: discover "
            f"with discovery.num_validation_neighbours={MIN_HELD_OUT} or more, or choose sweep.objective=rankme"
        )


def measures_of(encoder: ImageEncoder, probe: Samples) -> dict[str, float]:
    """Retrieval and RankMe of the encoder on the probe set: held-out patterns of all C of the store, uncorrupted."""
    embedding = embed_samples(encoder, probe)
    means = {name: total / len(embedding) for name, total in moments(embedding).items()}
    rank = spread_of(means["embedding"], means["outer"])["effective_rank"]
    return {"retrieval": place_precision(embedding, probe), "rankme": rank}


def few_shot_of(posed: ResolvedTarget, workspace: Workspace) -> Prepared:
    """The draws and cases of a target; those tested on are of subjects that pretraining has not learnt from."""
    ready = prepare(posed, workspace)
    say(
        "sweep",
        f"target: {len(ready.split.trials)} few-shot trials a training, {ready.split.trials[0].num_subjects} subjects "
        f"learnt from, {len(ready.split.test)} examples of others, unseen in pretraining, tested on",
    )
    return ready


def few_shot_score(model: PretextNetwork, ready: Prepared, num_gpus: float) -> float:
    """The target's primary figure, the higher the better, as a mean over trials of the network fine-tuned on each."""
    pose, split = replace(ready.setup, num_gpus=num_gpus), ready.split
    primary = PRIMARY[pose.task]
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        save_network(model, Path(folder), {})
        start = Initialisation("pretrained", Path(folder), model.architecture, "")
        for trial in split.trials:
            learnt, validation, test = (
                ready.held.of(part).cases() for part in (trial.examples, split.validation, split.test)
            )
            _, tested = fine_tune(pose, start, trial, learnt, validation, test)
            scores.append(primary.sign * figures(pose.task, tested)[primary.name])
    return float(np.mean(scores))
