"""Results of a target's trials: the only place that reads and writes their files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

from raygenesis.transfer.metrics import AnsweredCase, SegmentedCase
from raygenesis.workspace.files import Place, write_json
from raygenesis.workspace.manifest import Extent
from raygenesis.workspace.records import read_record


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Result of one trial, with the fields of its file in their order.

    key: digest of what decided the trial. source: number of the pretraining that it began with, where its
    initialisation has several. labelled: as `finetune.num_labelled` has it; subjects: how many these are.
    figures: by name, the primary one first. seconds: of training and testing. epochs_to_converge, seconds_to_converge,
    loss (mean over the last ten steps): None, and steps 0, where nothing was trained. rate: the learning rate, where it
    was chosen from a grid or is tried; None where the settings give one. curve: (step, primary figure on the validation
    subjects after it), as reported. learnt_from: names of the labelled examples. test: the test cases.
    """

    key: str = ""
    initialisation: str
    source: int = 0
    labelled: int | str
    trial: int
    seed: int = 0
    subjects: int = 0
    figures: dict[str, float]
    seconds: float
    epochs_to_converge: float | None = None
    seconds_to_converge: float | None = None
    steps: int = 0
    loss: float | None = None
    rate: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    learnt_from: tuple[str, ...] = ()
    test: tuple[SegmentedCase, ...] | tuple[AnsweredCase, ...] = ()


# The trials of one initialisation and number of labelled subjects, in order.
Trials: TypeAlias = Sequence[TrialResult]

# Trials by the number of labelled subjects, then by initialisation.
Results: TypeAlias = Mapping[int | str, Mapping[str, Trials]]


def in_file_name(labelled: int | str) -> str:
    """A number of labelled subjects, as `finetune.num_labelled` has it, as part of a file's name."""
    return str(labelled).replace("%", "percent")


def result_path(
    folder: Place, initialisation: str, labelled: int | str, number: int, tried: float | None = None
) -> Place:
    """The file of one trial in a target's folder. tried: the learning rate of a tuning trial, None of other trials."""
    kind, rate = ("trial", "") if tried is None else ("tuning", f"-{tried}")
    return folder / f"{kind}-{initialisation}-{in_file_name(labelled)}{rate}-{number}.json"


def write_result(folder: Place, result: TrialResult, tunes: bool = False) -> None:
    """Write a trial's file, or with `tunes` a tuning trial's; it appears whole or not at all."""
    tried = result.rate if tunes else None
    write_json(result_path(folder, result.initialisation, result.labelled, result.trial, tried), asdict(result))


def read_result(path: Place) -> TrialResult | None:
    """The result in a trial's file; None where there is no such file. Raises WorkspaceError if it is damaged."""
    return read_record(path, TrialResult)


def results_in(folder: Place, extent: Extent | None) -> Results:
    """The trials of a target, in order.

    extent: what is compared, as the target's manifest records it: trials of an earlier comparison may still be there.
    None for all that there are, as of a target that is not finished.
    """
    paths: list[Place] = sorted(folder.glob("trial-*.json"))
    trials = sorted((result for path in paths if (result := read_result(path))), key=lambda result: result.trial)
    extent = extent or Extent(
        initialisations={result.initialisation: "" for result in trials},
        num_labelled=tuple(dict.fromkeys(result.labelled for result in trials)), num_trials=sys.maxsize,
    )  # fmt: skip
    found: dict[int | str, dict[str, Trials]] = {}
    for labelled in extent.num_labelled:
        for name in extent.initialisations:
            chosen = [
                result for result in trials
                if (result.labelled, result.initialisation) == (labelled, name) and result.trial < extent.num_trials
            ]  # fmt: skip
            if chosen:
                found.setdefault(labelled, {})[name] = chosen
    return found
