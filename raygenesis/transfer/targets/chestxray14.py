"""ChestX-ray14: PNG radiographs, `Data_Entry_2017.csv` and the official lists: which of 14 findings?"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from raygenesis.errors import ScanError
from raygenesis.transfer.examples import MULTILABEL, TEST, TRAIN, Example, ImageFile, Problem, Target
from raygenesis.transfer.targets.csv_tables import rows
from raygenesis.transfer.targets.listing import by_name, files_below, require_examples
from raygenesis.workspace.faults import patiently

TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
LISTS = {TRAIN: "train_val_list.txt", TEST: "test_list.txt"}
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
NO_FINDING = "No Finding"
IMAGES = re.compile(r"images(_\d+)?")

# A row's findings and patient.
Row = tuple[str, str]


def read(folder: Path) -> Target:
    """Radiographs with 0 or 1 for each finding; all of `train_val_list.txt` is for training. Raises ScanError."""
    paths = [path for path in files_below(folder, ".png") if _is_image(folder, path)]
    images, problems = by_name(folder, paths, lambda path: path.name)
    table, bad_rows = _table(next((folder / name for name in TABLES if (folder / name).is_file()), folder / TABLES[0]))
    splits = _splits(folder)
    problems += bad_rows
    examples = []
    for name, path in images.items():
        findings, patient = table.get(name, ("", ""))
        named = [] if findings == NO_FINDING else findings.split("|")
        unknown = [finding for finding in named if finding not in FINDINGS]
        if name not in table:
            problems.append(Problem(name, "no row of the table names it"))
        elif unknown:
            problems.append(Problem(name, f"finding {unknown[0]!r} is none of the 14 and not {NO_FINDING!r}"))
        elif name not in splits:
            problems.append(Problem(name, f"neither {' nor '.join(LISTS.values())} names it"))
        else:
            value = tuple(int(finding in named) for finding in FINDINGS)
            examples.append(Example(name, patient, ImageFile((path,)), value=value, split=splits[name]))
    # Names of both are the owners' and are never used as paths.
    alone = sorted((table.keys() | splits.keys()) - images.keys())
    problems += [Problem(name, "a table or list names it, and no images folder holds it") for name in alone]
    return require_examples(folder, Target(MULTILABEL, 2, FINDINGS, tuple(examples), tuple(problems)))


def _is_image(folder: Path, path: Path) -> bool:
    return any(IMAGES.fullmatch(part) for part in path.relative_to(folder).parts[:-1])


def _table(path: Path) -> tuple[dict[str, Row], list[Problem]]:
    found: dict[str, Row] = {}
    problems = []
    for where, (name, findings, patient) in rows(path, COLUMNS):
        if not (name and findings and patient):
            problems.append(Problem(where, f"it lacks one of {', '.join(COLUMNS)}"))
        elif name in found:
            problems.append(Problem(where, f"a second row of {name}"))
        else:
            found[name] = (findings, patient)
    return found, problems


def _splits(folder: Path) -> dict[str, str]:
    """The split of each image by the official lists. Raises ScanError if one is missing, or both name an image."""
    found: dict[str, str] = {}
    for split, table in LISTS.items():
        try:
            names = patiently(partial((folder / table).read_text, encoding="utf-8"), folder).split()
        except (OSError, UnicodeDecodeError):
            raise ScanError(f"{folder / table} does not exist or is no list: put the owners' list there") from None
        twice = [name for name in names if found.get(name, split) != split]
        if twice:
            raise ScanError(f"{' and '.join(LISTS.values())} both name {twice[0]}: give the owners' lists")
        found |= dict.fromkeys(names, split)
    return found
