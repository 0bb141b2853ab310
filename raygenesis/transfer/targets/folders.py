"""A user's own target: a folder of images, with a folder of label maps or a table of values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

MOST_CLASSES = 100  # more different values in a column are numbers, not classes


def read_label_maps(
    images: Path, labels: Path, subject_pattern: str | None, ndim: int, *,
    classes: Sequence[str | int] | None = None, split: Path | None = None,
) -> Target:  # fmt: skip
    """Images and label maps that share their paths below two folders but for their endings; a DICOM series goes by the
    path of its folder too. Only images with a label map are examples.

    classes: the names of the labels 1, 2, …; unnamed when None. split: a CSV of `subject` and `split`.
    """
    scans, no_images = _scans(images, "images")
    maps, no_maps = _scans(labels, "labels")
    named = _called(scans, _paths_of)
    reasons = {without_ending(source): reason for source, reason in no_images.items()}
    parts = _parts_of(split)
    examples, problems, used = [], [], set()
    for label in maps:
        found = named.get(without_ending(label), ())
        if len(found) != 1 or found[0] in used:
            alone = f"a label map without an image: {images / label} is not there"
            reason = "another label map is of the same image" if len(found) == 1 else _several(found) or alone
            problems.append(Problem(label, reasons.get(without_ending(label), reason)))
            continue
        (source,) = found
        used.add(source)
        subject = subject_of(scans[source], subject_pattern)
        image = ImageFile(_files(images, scans[source]))
        examples.append(Example(source, subject, image, LabelFile(labels / label), split=parts.get(subject)))
    if not examples:
        raise ScanError(f"no label map in {labels} has an image of the same name in {images}")
    problems += [Problem(source, "an image without a label map") for source in scans if source not in used]
    problems += [Problem(source, reason) for source, reason in (*no_images.items(), *no_maps.items())]
    return Target(SEGMENTATION, ndim, tuple(map(str, classes or ())), *_split(examples, problems, parts, split))


def read_table(
    images: Path, table: Path, task: str, ndim: int, *, key_column: str, value_column: str,
    subject_column: str | None, subject_pattern: str | None, classes: Sequence[str | int] | None,
    split: Path | None,
) -> Target:  # fmt: skip
    """Images, and a CSV with a row each.

    `key_column` names an image by its path below the folder, by its file name with or without ending, or by the subject
    that `subject_pattern` finds in its path.

    classes: the values, in the order of the classes; those found, sorted, when None.
    """
    columns = [key_column, value_column, *([subject_column] if subject_column else [])]
    rows = named_rows(table, columns)
    scans, no_images = _scans(images, "images")
    named = _called(scans, lambda scan: _names_of(scan, subject_pattern))
    parts = _parts_of(split)
    values = {row[value_column] for row in rows if row[value_column]}
    if task == CLASSIFICATION and classes is None:
        if len(values) > MOST_CLASSES:
            raise SettingsError(
                f"{table}: column {value_column!r} holds {len(values)} different values: give `task: regression`, or "
                "`classes`"
            )
        classes = sorted(values)
    numbers = {str(name): number for number, name in enumerate(classes or ())}
    examples, problems, used = [], [], set()
    for row in rows:
        key = row[key_column]
        found: Sequence[str] = named.get(key, ())
        reason = _fault(found, row[value_column], numbers, task)
        if reason is None and subject_column and not row[subject_column]:
            reason = f"it has no {subject_column!r}"
        if reason is None and found[0] in used:
            reason = "named twice"
        if reason:
            problems.append(Problem(key or "(no name)", reason))
            continue
        (source,) = found
        used.add(source)
        subject = row[subject_column] if subject_column else subject_of(scans[source], subject_pattern)
        value = numbers[row[value_column]] if task == CLASSIFICATION else float(row[value_column])
        image = ImageFile(_files(images, scans[source]))
        examples.append(Example(source, subject, image, value=value, split=parts.get(subject)))
    if not examples:
        first = f": {problems[0].name}: {problems[0].reason}" if problems else ""
        raise ScanError(f"no row of {table} gives an example{first}")
    alone = [name for name, number in numbers.items() if all(example.value != number for example in examples)]
    if alone and len(numbers) > 1:
        held = ", ".join(sorted(values)[:MOST_CLASSES])
        raise SettingsError(f"{table}: no usable row is of class {alone[0]!r}: column {value_column!r} holds {held}")
    if task == CLASSIFICATION and len(numbers) < 2:
        raise SettingsError(f"{table}: column {value_column!r} holds only {min(numbers)!r}: there must be two classes")
    given = {example.name for example in examples}
    problems += [Problem(source, f"an image without a row in {table}") for source in scans if source not in given]
    problems += [Problem(source, reason) for source, reason in no_images.items()]
    return Target(task, ndim, tuple(numbers), *_split(examples, problems, parts, split))


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


def _files(folder: Path, scan: Scan) -> tuple[Path, ...]:
    return tuple(folder / file.path for file in scan.files)


def _called(scans: Mapping[str, Scan], names_of: Callable[[Scan], Iterable[str]]) -> dict[str, list[str]]:
    """What each scan may be called → the scans of that name."""
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


def _parts_of(split: Path | None) -> dict[str, str]:
    """Subject → train, validation or test."""
    if split is None:
        return {}
    parts: dict[str, str] = {}
    for row in named_rows(split, ["subject", "split"]):
        if row["split"] not in (TRAIN, VALIDATION, TEST):
            raise ScanError(f"{split}: subject {row['subject']} is in {row['split']!r}: use train, validation or test")
        if parts.setdefault(row["subject"], row["split"]) != row["split"]:
            raise ScanError(f"{split}: subject {row['subject']} is in two splits: leave one out")
    return parts


def _split(
    examples: list[Example], problems: list[Problem], parts: Mapping[str, str], split: Path | None
) -> tuple[tuple[Example, ...], tuple[Problem, ...]]:
    """Where there is a list, subjects that it does not name are left out, and said to be."""
    if split is None:
        return tuple(examples), tuple(problems)
    unnamed = [example for example in examples if example.subject not in parts]
    if len(unnamed) == len(examples):
        known = ", ".join(list(parts)[:3]) or "nobody"
        raise ScanError(f"{split} names none of the subjects, such as {examples[0].subject!r}: it names {known}")
    problems = [
        *problems,
        *(Problem(example.name, f"subject {example.subject} is not in {split}") for example in unnamed),
    ]
    counts = Counter(parts[example.subject] for example in examples if example.subject in parts)
    if not (counts[TRAIN] and counts[TEST]):
        raise ScanError(f"{split} leaves {counts[TRAIN]} examples to learn from and {counts[TEST]} to test on")
    return tuple(example for example in examples if example.subject in parts), tuple(problems)
