"""A user's own files: a folder of images, with a folder of label maps or a table of values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raygenesis.archive.intake.identity import subject_of
from raygenesis.archive.intake.survey import Scan, survey, without_ending
from raygenesis.errors import ScanError, SettingsError
from raygenesis.transfer.examples import (
    CLASSIFICATION,
    SEGMENTATION,
    TEST,
    TRAIN,
    VALIDATION,
    Example,
    ImageFile,
    LabelFile,
    Problem,
    Target,
)
from raygenesis.transfer.targets.csv_tables import named_rows

MAX_CLASSES = 100  # more different values in a column are numbers, not classes


@dataclass(frozen=True)
class OwnFiles:
    """Where a user's images and labels are.

    labels: a folder of label maps, or a table. classes: of a segmentation the names of the labels 1, 2, …, unnamed when
    None; of a classification the values in the order of the classes, those found, sorted, when None. split: a CSV of
    `subject` and `split`. subject_pattern: finds the subject in an image's path.
    """

    task: str
    images: Path
    labels: Path
    ndim: int = 3
    classes: tuple[str | int, ...] | None = None
    split: Path | None = None
    subject_pattern: str | None = None


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns: the key that names an image, the value, and the subject where it is given."""

    key: str
    value: str
    subject: str | None = None


def read_label_maps(files: OwnFiles) -> Target:
    """Images and label maps that share their paths below two folders but for their endings; a DICOM series goes by the
    path of its folder too. Only images with a label map are examples. Raises ScanError.
    """
    scans, unusable_images = _scans(files.images, "images")
    maps, unusable_maps = _scans(files.labels, "labels")
    sources = _sources_by_name(scans, _paths_of)
    reasons = {without_ending(source): reason for source, reason in unusable_images.items()}
    splits = _splits_of(files.split)
    examples, problems, used = [], [], set()
    for label in maps:
        found = sources.get(without_ending(label), ())
        if len(found) != 1 or found[0] in used:
            alone = f"a label map without an image: {files.images.name}/{label} is not there"
            reason = "another label map is of the same image" if len(found) == 1 else _several(found) or alone
            problems.append(Problem(label, reasons.get(without_ending(label), reason)))
            continue
        (source,) = found
        used.add(source)
        subject = subject_of(scans[source], files.subject_pattern)
        image, label_map = ImageFile(_paths(files.images, scans[source])), LabelFile(files.labels / label)
        examples.append(Example(source, subject, image, label_map, split=splits.get(subject)))
    if not examples:
        raise ScanError(f"no label map in {files.labels} has an image of the same name in {files.images}")
    problems += [Problem(source, "an image without a label map") for source in scans if source not in used]
    problems += [Problem(source, reason) for source, reason in (*unusable_images.items(), *unusable_maps.items())]
    classes = tuple(map(str, files.classes or ()))
    return Target(SEGMENTATION, files.ndim, classes, *_listed(examples, problems, splits, files.split))


def read_table(files: OwnFiles, columns: Columns) -> Target:
    """Images, and a CSV with a row each. Raises ScanError or SettingsError.

    The key column names an image by its path below the folder, by its file name with or without ending, or by the
    subject that `subject_pattern` finds in its path.
    """
    table, is_classification = files.labels, files.task == CLASSIFICATION
    rows = named_rows(table, [name for name in (columns.key, columns.value, columns.subject) if name])
    scans, unusable_images = _scans(files.images, "images")
    sources = _sources_by_name(scans, lambda scan: _names_of(scan, files.subject_pattern))
    splits = _splits_of(files.split)
    values = {row[columns.value] for row in rows if row[columns.value]}
    numbers = _numbers_of_classes(files, columns, values)
    examples, problems, used = [], [], set()
    for row in rows:
        key, value = row[columns.key], row[columns.value]
        found: Sequence[str] = sources.get(key, ())
        reason = _fault(found, value, numbers, files.task)
        if reason is None and columns.subject and not row[columns.subject]:
            reason = f"it has no {columns.subject!r}"
        if reason is None and found[0] in used:
            reason = "named twice"
        if reason:
            problems.append(Problem(key or "(no name)", reason))
            continue
        (source,) = found
        used.add(source)
        subject = row[columns.subject] if columns.subject else subject_of(scans[source], files.subject_pattern)
        number = numbers[value] if is_classification else float(value)
        image = ImageFile(_paths(files.images, scans[source]))
        examples.append(Example(source, subject, image, value=number, split=splits.get(subject)))
    if not examples:
        first = f": {problems[0].name}: {problems[0].reason}" if problems else ""
        raise ScanError(f"no row of {table} gives an example{first}")
    _check_all_there(files, columns, values, numbers, examples)
    problems += [Problem(source, f"an image without a row in {table}") for source in scans if source not in used]
    problems += [Problem(source, reason) for source, reason in unusable_images.items()]
    return Target(files.task, files.ndim, tuple(numbers), *_listed(examples, problems, splits, files.split))


def _numbers_of_classes(files: OwnFiles, columns: Columns, values: set[str]) -> dict[str, int]:
    """The number of each class by its value in the table; empty for a regression. Raises SettingsError."""
    classes: Iterable[str | int] = files.classes or ()
    if files.task == CLASSIFICATION and files.classes is None:
        if len(values) > MAX_CLASSES:
            raise SettingsError(
                f"{files.labels}: column {columns.value!r} holds {len(values)} different values: give `task: "
                "regression`, or `classes`"
            )
        classes = sorted(values)
    return {str(name): number for number, name in enumerate(classes)}


def _check_all_there(
    files: OwnFiles, columns: Columns, values: set[str], numbers: Mapping[str, int], examples: Sequence[Example]
) -> None:
    """Raise SettingsError where a class has no example, or there is only one class."""
    missing = [name for name, number in numbers.items() if all(example.value != number for example in examples)]
    if missing and len(numbers) > 1:
        present = ", ".join(sorted(values)[:MAX_CLASSES])
        raise SettingsError(
            f"{files.labels}: no usable row is of class {missing[0]!r}: column {columns.value!r} holds {present}"
        )
    if files.task == CLASSIFICATION and len(numbers) < 2:
        raise SettingsError(
            f"{files.labels}: column {columns.value!r} holds only {min(numbers)!r}: there must be two classes"
        )


def _fault(found: Sequence[str], value: str, numbers: Mapping[str, int], task: str) -> str | None:
    """Why a row gives no example, None if it does."""
    if not found:
        return "a label without an image"
    if len(found) > 1:
        return _several(found)
    if not value:
        return "it has no value"
    if task == CLASSIFICATION:
        return None if value in numbers else f"the unknown class {value!r}: known are {', '.join(numbers)}"
    try:
        return None if math.isfinite(float(value)) else f"{value!r} is not a finite number"
    except ValueError:
        return f"{value!r} is not a number"


def _scans(folder: Path, kind: str) -> tuple[dict[str, Scan], dict[str, str]]:
    """Scans below a folder by their paths, and why other files that look like ones are none."""
    if not folder.is_dir():
        raise ScanError(f"{kind} folder {folder} does not exist or is not a folder: check `{kind}`")
    found = survey(folder)
    if not found.scans:
        first = found.aside[0]
        raise ScanError(
            f"none of the files in {kind} folder {folder} can be used; the first, {first.source}: {first.reason}"
        )
    return {scan.source: scan for scan in found.scans}, {file.source: file.reason for file in found.aside}


def _paths(folder: Path, scan: Scan) -> tuple[Path, ...]:
    return tuple(folder / file.path for file in scan.files)


def _sources_by_name(scans: Mapping[str, Scan], names_of: Callable[[Scan], Iterable[str]]) -> dict[str, list[str]]:
    """Each name that a scan may have → the sources of the scans of that name."""
    names: dict[str, list[str]] = {}
    for source, scan in scans.items():
        for name in set(names_of(scan)):
            names.setdefault(name, []).append(source)
    return names


def _paths_of(scan: Scan) -> Iterator[str]:
    """Its path without the ending; of a DICOM series also its folder's."""
    yield without_ending(scan.source)
    if scan.series and "/" in scan.source:
        yield scan.source.rpartition("/")[0]


def _names_of(scan: Scan, subject_pattern: str | None) -> Iterator[str]:
    file = scan.source.rpartition("/")[2]
    yield from (scan.source, file, without_ending(file), *_paths_of(scan))
    if subject_pattern or scan.patient:
        yield subject_of(scan, subject_pattern)


def _several(found: Sequence[str]) -> str | None:
    return f"its name fits {len(found)} images, {found[0]} and {found[1]} among them" if len(found) > 1 else None


def _splits_of(split: Path | None) -> dict[str, str]:
    """Subject → train, validation or test."""
    if split is None:
        return {}
    splits: dict[str, str] = {}
    for row in named_rows(split, ["subject", "split"]):
        if row["split"] not in (TRAIN, VALIDATION, TEST):
            raise ScanError(f"{split}: subject {row['subject']} is in {row['split']!r}: use train, validation or test")
        if splits.setdefault(row["subject"], row["split"]) != row["split"]:
            raise ScanError(f"{split}: subject {row['subject']} is in two splits: leave one out")
    return splits


def _listed(
    examples: list[Example], problems: list[Problem], splits: Mapping[str, str], split: Path | None
) -> tuple[tuple[Example, ...], tuple[Problem, ...]]:
    """Examples and problems; where there is a list, examples of subjects that it does not name become problems."""
    if split is None:
        return tuple(examples), tuple(problems)
    unnamed = [example for example in examples if example.subject not in splits]
    if len(unnamed) == len(examples):
        known = ", ".join(list(splits)[:3]) or "nobody"
        raise ScanError(f"{split} names none of the subjects, such as {examples[0].subject!r}: it names {known}")
    problems = [
        *problems,
        *(Problem(example.name, f"its subject is not in {split.name}") for example in unnamed),
    ]
    counts = Counter(splits[example.subject] for example in examples if example.subject in splits)
    if not (counts[TRAIN] and counts[TEST]):
        raise ScanError(f"{split} leaves {counts[TRAIN]} examples to learn from and {counts[TEST]} to test on")
    return tuple(example for example in examples if example.subject in splits), tuple(problems)
