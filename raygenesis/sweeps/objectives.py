"""What points are ranked by. None depends on λ, K or C; the one that does is refused where they vary."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch

from raygenesis.config import FinetuneSettings, Settings
from raygenesis.errors import SettingsError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import VALIDATION
from raygenesis.pretraining.monitors import moments, spread_of
from raygenesis.pretraining.networks import Encoder, PretextNetwork
from raygenesis.pretraining.probe import embed_samples, place_precision
from raygenesis.pretraining.weights import export
from raygenesis.progress import say
from raygenesis.sweeps.space import Space
from raygenesis.training.feeding import Samples
from raygenesis.transfer.finetune import PRETRAINED, build_unet, patch_shape_of, read_cases
from raygenesis.transfer.segmentation import score, segment, train_segmenter
from raygenesis.transfer.target import LabelledScan, Split, common_spacing, pretrained_on, split_scans
from raygenesis.workspace import Workspace

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
        Objective("target", "max", "few-shot segmentation of the labelled scans (mean Dice)", "retrieval"),
        Objective("loss", "min", "the held-out joint loss", "loss"),
    )
}


def check_objective(name: str, space: Space, patterns: Path) -> None:
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


def measures_of(encoder: Encoder, probe: Samples) -> dict[str, float]:
    """Retrieval and RankMe of the encoder on the probe set: held-out patterns of all C of the store, uncorrupted."""
    embedding = embed_samples(encoder, probe)
    means = {name: total / len(embedding) for name, total in moments(embedding).items()}
    rank = spread_of(means["embedding"], means["outer"])["effective_rank"]
    return {"retrieval": place_precision(embedding, probe), "rankme": rank}


@dataclass(frozen=True)
class FewShot:
    """A target task, whose cases lie in Ray's object store by name; as `finetune` poses it."""

    split: Split
    cases: Mapping[str, ray.ObjectRef]
    num_classes: int
    patch_shape: tuple[int, ...]
    settings: FinetuneSettings


def few_shot_of(workspace: Workspace, scans: list[LabelledScan], settings: Settings) -> FewShot:
    """The draws and cases of a target; the scans tested on are of subjects that pretraining has not learnt from."""
    split = split_scans(scans, pretrained_on(scans, workspace, settings), settings)
    patch_shape = patch_shape_of(settings)
    cases, num_classes = read_cases(split.scans, common_spacing(scans, settings), patch_shape, settings)
    say(
        "sweep",
        f"target: {len(split.trials)} few-shot trials a training, {settings.finetune.num_labelled} subjects learnt "
        f"from, {len(split.test)} scans of others, unseen in pretraining, tested on",
    )
    return FewShot(split, cases, num_classes, patch_shape, settings.finetune)


def few_shot_dice(model: PretextNetwork, target: FewShot, device: torch.device | str) -> float:
    """Mean Dice over test scans and trials of the network fine-tuned on few labelled scans."""
    dice = []
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder), {})
        for trial in target.split.trials:
            unet = build_unet(PRETRAINED, Path(folder), target.num_classes, trial.seed)
            learnt = [ray.get(target.cases[scan.name]) for scan in trial.labelled]
            train_segmenter(unet, learnt, target.settings, target.patch_shape, trial.seed, device)
            for scan in target.split.test:
                case = ray.get(target.cases[scan.name])
                predicted = segment(unet, case.image, target.patch_shape, target.settings.batch_size)
                dice.append(score(predicted, case.label, target.num_classes)["dice"])
    return float(np.mean(dice))
