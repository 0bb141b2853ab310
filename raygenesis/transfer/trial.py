"""One trial: fine-tune from one initialisation on one draw of labelled subjects, and test."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from raygenesis.cluster.progress import Stopwatch
from raygenesis.transfer.cases import TrialCases
from raygenesis.transfer.classification import (
    answered,
    answers_of,
    embedded,
    num_outputs,
    probe,
    spread_of,
    train_classifier,
)
from raygenesis.transfer.dense_probe import FeatureLevels, fit_dense_probe, probe_batch_size
from raygenesis.transfer.examples import REGRESSION, SEGMENTATION
from raygenesis.transfer.initialisations import (
    PROBES,
    Initialisation,
    classification_network,
    segmentation_network,
    target_encoder,
)
from raygenesis.transfer.learning import TrainingOutcome
from raygenesis.transfer.metrics import PRIMARY, AnsweredCase, SegmentedCase, figures
from raygenesis.transfer.predictions import write_example, write_prediction
from raygenesis.transfer.results import TrialResult, write_result
from raygenesis.transfer.segmentation import overlap_of, segment, train_segmenter
from raygenesis.transfer.setup import TrialSetup
from raygenesis.transfer.split import Trial
from raygenesis.transfer.stored_cases import StoredTrialCases
from raygenesis.workspace.files import Place


@dataclass(frozen=True)
class TrialTask:
    """A trial to run.

    key: digest of what decides its result. trial: without its examples, as `cases` are read. rate: the learning rate,
    where the settings give several. tunes: whether it tries that rate; its test cases are then the validation's.
    """

    initialisation: Initialisation
    trial: Trial
    key: str
    cases: StoredTrialCases
    rate: float | None = None
    tunes: bool = False


def run_trial(task: TrialTask, setup: TrialSetup, folder: Place) -> str:
    """Fine-tune and test, write the trial's file, and return its primary figure as a line for the log."""
    torch.set_num_threads(setup.num_threads)
    watch = Stopwatch()
    initialisation, trial, cases = task.initialisation, task.trial, task.cases.read()
    if task.rate is not None:
        setup = replace(setup, settings=setup.settings.with_rate(task.rate))
    is_shown = trial.number == 0 and not task.tunes
    outcome, tested = fine_tune(setup, initialisation, trial, cases, folder if is_shown else None)
    found = figures(setup.task, tested)
    primary = PRIMARY[setup.task]
    result = TrialResult(
        key=task.key, initialisation=initialisation.name, source=initialisation.source, labelled=trial.labelled,
        trial=trial.number, seed=trial.seed, subjects=trial.num_subjects, figures=found,
        seconds=round(watch.seconds, 3), rate=task.rate, learnt_from=tuple(case.name for case in cases.labelled),
        test=tested,
    )  # fmt: skip
    if outcome is not None:
        result = replace(
            result, epochs_to_converge=outcome.converged_at * setup.settings.batch_size / len(cases.labelled),
            seconds_to_converge=outcome.converged_at * outcome.seconds_per_step, steps=len(outcome.losses),
            loss=float(np.mean(outcome.losses[-10:])),
            curve=tuple((step, primary.sign * score) for step, score in outcome.scores),
        )  # fmt: skip
    write_result(folder, result, task.tunes)
    return f"{initialisation.name} {primary.title} {found[primary.name]:.3f}"


def fine_tune(
    setup: TrialSetup, initialisation: Initialisation, trial: Trial, cases: TrialCases, folder: Place | None = None
) -> tuple[TrainingOutcome | None, tuple[SegmentedCase, ...] | tuple[AnsweredCase, ...]]:
    """Fine-tune and test; returns how training went (None where nothing is trained) and the test cases.

    folder: where predictions of a segmentation are written; None for nowhere.
    """
    if setup.task == SEGMENTATION:
        return _segmented(setup, initialisation, trial, cases, folder)
    values = np.array([case.value for case in cases.labelled])
    settings, ndim, outcome = setup.settings, setup.form.ndim, None
    if settings.mode in PROBES:
        encoder = target_encoder(initialisation, trial.seed, ndim)
        labelled, test = (
            embedded(encoder, part, settings.batch_size, setup.device) for part in (cases.labelled, cases.test)
        )
        answers = probe(labelled, values, test, setup)
    else:
        network = classification_network(initialisation, num_outputs(setup.task, setup.num_classes), trial.seed, ndim)
        outcome = train_classifier(network, cases.labelled, setup, trial.seed, cases.validation)
        scale = spread_of(values) if setup.task == REGRESSION else (0.0, 1.0)
        answers = answers_of(network, cases.test, setup.task, scale, settings.batch_size, settings.precision)
    return outcome, tuple(answered(cases.test, answers))


def _segmented(
    setup: TrialSetup, initialisation: Initialisation, trial: Trial, cases: TrialCases, folder: Place | None
) -> tuple[TrainingOutcome | None, tuple[SegmentedCase, ...]]:
    settings, shape = setup.settings, setup.form.input_shape
    unet = segmentation_network(initialisation, setup.num_classes, settings.mode, trial.seed, len(shape))
    network: nn.Module = unet
    outcome, batch_size = None, settings.batch_size
    if settings.mode == "probe":
        levels = FeatureLevels(unet, settings.probe_features == "encoder+decoder")
        network = fit_dense_probe(levels, cases.labelled, setup, trial.seed)
        batch_size = probe_batch_size(levels, batch_size)
    else:
        if settings.mode == "frozen":
            unet.encoder.requires_grad_(False)
        outcome = train_segmenter(unet, cases.labelled, setup, trial.seed, cases.validation)
    tested: list[SegmentedCase] = []
    for case in cases.test:
        predicted = segment(network, case.image, shape, batch_size, settings.precision)
        if folder is not None:
            if not tested:
                write_example(folder, initialisation.name, trial.labelled, case, predicted)
            write_prediction(folder / "predictions" / f"{initialisation.name}-{trial.labelled}", case, predicted)
        tested.append(overlap_of(case, predicted, setup.num_classes))
    return outcome, tuple(tested)
