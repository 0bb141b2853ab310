"""One trial: fine-tune from one initialisation on one draw of labelled subjects, and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from raygenesis.cluster.progress import Stopwatch
from raygenesis.settings import FinetuneSettings
from raygenesis.transfer.cases import Case, Form
from raygenesis.transfer.classification import (
    answers_of,
    embedded,
    num_outputs,
    probe,
    spread_of,
    train_classifier,
)
from raygenesis.transfer.examples import REGRESSION, SEGMENTATION, Example
from raygenesis.transfer.initialisations import (
    PROBES,
    Initialisation,
    classification_network,
    segmentation_network,
    target_encoder,
)
from raygenesis.transfer.learning import TrainingOutcome
from raygenesis.transfer.metrics import PRIMARY, figures
from raygenesis.transfer.predictions import in_names, write_example, write_prediction
from raygenesis.transfer.segmentation import overlap_of, segment, train_segmenter
from raygenesis.transfer.split import Trial
from raygenesis.workspace.files import Place, write_json


@dataclass(frozen=True)
class TrialSetup:
    """What the trials of a target have in common. num_classes: of a segmentation with the background."""

    task: str
    num_classes: int
    form: Form
    settings: FinetuneSettings
    num_gpus: float = 0.0
    num_threads: int = 1

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"


@dataclass(frozen=True)
class StoredCases:
    """Cases in Ray's object store: blocks of them, and where each is (block, place) by its name."""

    blocks: tuple[ray.ObjectRef[list[Case]], ...]
    places: dict[str, tuple[int, int]]

    def of(self, examples: Sequence[Example]) -> StoredCases:
        """Only what these examples need."""
        places = {example.name: self.places[example.name] for example in examples}
        needed = sorted({block for block, _ in places.values()})
        numbers = {block: number for number, block in enumerate(needed)}
        moved = {name: (numbers[block], place) for name, (block, place) in places.items()}
        return StoredCases(tuple(self.blocks[block] for block in needed), moved)

    def cases(self) -> list[Case]:
        """In the order of the examples; arrays are shared and read-only."""
        blocks = ray.get(list(self.blocks))
        return [blocks[block][place] for block, place in self.places.values()]


def run_trial(
    pose: TrialSetup, start: Initialisation, trial: Trial, held: Sequence[StoredCases], folder: Place, key: str
) -> str:
    """Fine-tune and test, leave the trial's file, and tell the primary figure.

    held: cases to learn from, to validate and to test on. key: kept in the file, to know the trial again by.
    """
    torch.set_num_threads(pose.num_threads)
    watch = Stopwatch()
    labelled, validation, test = (each.cases() for each in held)
    writes = trial.number == 0
    learnt, tested = fine_tune(pose, start, trial, labelled, validation, test, folder if writes else None)
    found = figures(pose.task, tested)
    converged = learnt and {
        "epochs_to_converge": learnt.converged * pose.settings.batch_size / len(labelled),
        "seconds_to_converge": learnt.converged * learnt.seconds,
        "steps": len(learnt.losses), "loss": float(np.mean(learnt.losses[-10:])),
    }  # fmt: skip
    nothing = {"epochs_to_converge": None, "seconds_to_converge": None, "steps": 0, "loss": None}
    result = {
        "key": key, "initialisation": start.name, "labelled": trial.labelled, "trial": trial.number, "seed": trial.seed,
        "subjects": trial.num_subjects, "figures": found, "seconds": round(watch.seconds, 3), **(converged or nothing),
        "learnt_from": [case.name for case in labelled], "test": tested,
    }  # fmt: skip
    write_json(trial_path(folder, start.name, trial), result)
    primary = PRIMARY[pose.task]
    return f"{start.name} {primary.words} {found[primary.name]:.3f}"


def trial_path(folder: Place, start: str, trial: Trial) -> Place:
    return folder / f"trial-{start}-{in_names(trial.labelled)}-{trial.number}.json"


def fine_tune(
    pose: TrialSetup, start: Initialisation, trial: Trial, labelled: Sequence[Case], validation: Sequence[Case],
    test: Sequence[Case], folder: Place | None = None,
) -> tuple[TrainingOutcome | None, list[dict[str, Any]]]:  # fmt: skip
    """What was learnt (None where nothing is trained), and a row a test case as `metrics.figures` takes them.

    folder: where predictions of a segmentation are written, if at all.
    """
    if pose.task == SEGMENTATION:
        return _segmented(pose, start, trial, labelled, validation, test, folder)
    values = np.array([case.value for case in labelled])
    settings, ndim, learnt = pose.settings, pose.form.ndim, None
    if settings.mode in PROBES:
        encoder = target_encoder(start, trial.seed, ndim)
        vectors = [embedded(encoder, cases, settings.batch_size, pose.device) for cases in (labelled, test)]
        answers = probe(vectors[0], values, vectors[1], pose.task, pose.num_classes, settings)
    else:
        network = classification_network(start, num_outputs(pose.task, pose.num_classes), trial.seed, ndim)
        learnt = train_classifier(
            network, labelled, pose.task, settings, trial.seed, pose.device, validation, pose.num_classes
        )
        scale = spread_of(values) if pose.task == REGRESSION else (0.0, 1.0)
        answers = answers_of(network, test, pose.task, scale, settings.batch_size)
    rows = [
        {"name": case.name, "subject": case.subject, "value": case.value, "answer": answer}
        for case, answer in zip(test, answers, strict=True)
    ]
    return learnt, rows


def _segmented(
    pose: TrialSetup, start: Initialisation, trial: Trial, labelled: Sequence[Case], validation: Sequence[Case],
    test: Sequence[Case], folder: Place | None,
) -> tuple[TrainingOutcome, list[dict[str, Any]]]:  # fmt: skip
    settings, shape = pose.settings, pose.form.input_shape
    unet = segmentation_network(start, pose.num_classes, settings.mode, trial.seed, len(shape))
    if settings.mode == "frozen":
        unet.encoder.requires_grad_(False)
    learnt = train_segmenter(unet, labelled, settings, shape, trial.seed, pose.device, validation, pose.num_classes)
    rows: list[dict[str, Any]] = []
    for case in test:
        predicted = segment(unet, case.image, shape, settings.batch_size)
        if folder is not None:
            if not rows:
                write_example(folder, start.name, trial.labelled, case, predicted)
            write_prediction(folder / "predictions" / f"{start.name}-{trial.labelled}", case, predicted)
        rows.append({"name": case.name, "subject": case.subject, **overlap_of(case, predicted, pose.num_classes)})
    return learnt, rows
