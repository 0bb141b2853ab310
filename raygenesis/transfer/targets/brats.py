"""BraTS 2018: `<case>/<case>_flair.nii.gz` and `<case>_seg.nii.gz`, below `HGG` and `LGG` or not: the whole tumour."""

from __future__ import annotations

import re
from pathlib import Path

from raygenesis.errors import SettingsError
from raygenesis.transfer.examples import SEGMENTATION, TEST, TRAIN, Example, ImageFile, LabelFile, Problem, Target
from raygenesis.transfer.targets.listing import by_name, files_below, require_examples

# Necrosis, oedema and enhancing tumour.
WHOLE_TUMOUR = ((0, 0), (1, 1), (2, 1), (4, 1))
NUM_FOLDS = 3
ENDING = re.compile(r"_(flair|seg)\.nii(\.gz)?$")


def read(folder: Path, *, fold: int = 0) -> Target:
    """FLAIR images with the whole tumour; every third case is for testing, the others for training (95 of 285 test).

    Cases are assigned to the folds in turn, in order of path, so that each fold has its share of grades and of
    institutions; the same files give the same folds. Each case is a subject. fold: 0 to 2. Raises ScanError, and
    SettingsError for the fold.
    """
    if fold not in range(NUM_FOLDS):
        raise SettingsError(f"fold={fold}: BraTS is read in {NUM_FOLDS} folds, 0 to {NUM_FOLDS - 1}")
    paths = files_below(folder, (".nii", ".nii.gz"))
    images, problems = by_name(folder, [path for path in paths if _kind(path) == "flair"], _case)
    labels, others = by_name(folder, [path for path in paths if _kind(path) == "seg"], _case)
    problems += others
    places = {case: path.parent for case, path in (labels | images).items()}
    examples = []
    for number, case in enumerate(sorted(places, key=lambda case: (places[case], case))):
        missing = [kind for kind, there in (("flair", images), ("seg", labels)) if case not in there]
        if missing:
            problems.append(Problem(case, f"{case}_{missing[0]}.nii.gz is missing"))
            continue
        split = TEST if number % NUM_FOLDS == fold else TRAIN
        label = LabelFile(labels[case], WHOLE_TUMOUR)
        examples.append(Example(case, case, ImageFile((images[case],)), label, split=split))
    return require_examples(folder, Target(SEGMENTATION, 3, ("whole tumour",), tuple(examples), tuple(problems)))


def _kind(path: Path) -> str:
    match = ENDING.search(path.name)
    return match[1] if match else ""


def _case(path: Path) -> str:
    return ENDING.sub("", path.name)
