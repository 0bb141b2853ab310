"""Measures of a trial's encoder: what objectives rank points by."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raygenesis.cluster.progress import say
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.native import save_network
from raygenesis.pretraining.monitors import moments, spread_of
from raygenesis.pretraining.probe import embed_samples, place_precision
from raygenesis.training.feeding import Samples
from raygenesis.transfer.initialisations import Initialisation
from raygenesis.transfer.metrics import PRIMARY, figures
from raygenesis.transfer.prepared import Prepared, prepare
from raygenesis.transfer.resolved import ResolvedTarget
from raygenesis.transfer.trial import fine_tune
from raygenesis.workspace.workspace import Workspace


class EncoderMeasures(NamedTuple):
    """Mean average precision of retrieving the same place in other scans, and the effective rank (RankMe)."""

    retrieval: float
    rankme: float


def measures_of(encoder: ImageEncoder, probe: Samples) -> EncoderMeasures:
    """Measure an encoder on the probe set: held-out patterns of all C of the store, uncorrupted."""
    embedding = embed_samples(encoder, probe)
    means = {name: total / len(embedding) for name, total in moments(embedding).items()}
    rank = spread_of(means["embedding"], means["outer"])["effective_rank"]
    return EncoderMeasures(place_precision(embedding, probe), rank)


def few_shot_of(target: ResolvedTarget, workspace: Workspace) -> Prepared:
    """The draws and cases of a target; those tested on are of subjects that pretraining has not learnt from."""
    ready = prepare(target, workspace)
    say(
        "sweep",
        f"target: {len(ready.split.trials)} few-shot trials a training, {ready.split.trials[0].num_subjects} subjects "
        f"learnt from, {len(ready.split.test)} examples of others, unseen in pretraining, tested on",
    )
    return ready


def few_shot_score(model: PretextNetwork, ready: Prepared, num_gpus: float) -> float:
    """The target's primary figure, the higher the better, as a mean over trials of the network fine-tuned on each."""
    setup, split = replace(ready.setup, num_gpus=num_gpus), ready.split
    primary = PRIMARY[setup.task]
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        save_network(model, Path(folder), {})
        start = Initialisation("pretrained", Path(folder), model.architecture, "")
        for trial in split.trials:
            _, tested = fine_tune(setup, start, trial, ready.cases_of(trial).read())
            scores.append(primary.sign * figures(setup.task, tested)[primary.name])
    return float(np.mean(scores))
