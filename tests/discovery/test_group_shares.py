"""How references are spread over groups, and that discovery stays within them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raygenesis.discovery.group_shares import group_numbers, references_by_group
from raygenesis.discovery.groups import NO_GROUP
from raygenesis.discovery.patients import Patients
from raygenesis.discovery.scan_table import SCANS, SCANS_FILE
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.workspace.files import write_table
from tests.support.patients import discovery_settings


def archive(training: Sequence[int], held_out: Sequence[int]) -> tuple[Patients, np.ndarray]:
    """Patients of one scan each: so many of each group that are learnt from, and so many that are held out."""
    groups = np.repeat(np.arange(len(training)), np.add(training, held_out))
    is_held_out = np.concatenate([np.arange(a + b) >= a for a, b in zip(training, held_out, strict=True)])
    ids = pa.array([f"{number:04d}" for number in range(len(groups))])
    everywhere = np.ones(len(groups), bool)
    return Patients(ids, np.arange(len(groups)), is_held_out, everywhere, everywhere), groups


@pytest.mark.parametrize("number", [1, 2, 5, 10, 40])
def test_references_are_in_proportion_to_subjects(number):
    patients, groups = archive([60, 30, 10], [6, 6, 6])
    shares = references_by_group(patients, groups, discovery_settings(4, 3, number))
    assert sum(shares) == number
    assert np.abs(np.array(shares) - number * np.array([0.6, 0.3, 0.1])).max() <= 1
    equal = references_by_group(patients, groups, discovery_settings(4, 3, number, references_by_group="equal"))
    assert sum(equal) == number and max(equal) - min(equal) <= (1 if number < 30 else 30)


def test_no_group_gets_more_than_it_has_subjects():
    patients, groups = archive([20, 5], [3, 3])
    assert references_by_group(patients, groups, discovery_settings(4, 3, 20, references_by_group="equal")) == (15, 5)


def test_a_group_too_small_for_the_neighbours_gets_none_and_that_is_said(capsys):
    patients, groups = archive([20, 3, 9], [4, 4, 2])
    assert references_by_group(patients, groups, discovery_settings(4, 3, 5)) == (5, 0, 0)
    said = capsys.readouterr().out
    assert "references by group: group 0 5, group 1 0 (too small: 3 training and 4 held-out subjects)" in said
    assert "group 2 0 (too small: 9 training and 2 held-out subjects)" in said


def test_one_group_gets_all_and_nothing_is_said_of_it(capsys):
    patients, groups = archive([20], [4])
    assert references_by_group(patients, groups, discovery_settings(4, 3, 7)) == (7,)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("training", "held_out", "asked", "words"),
    [
        ([3], [4], (4, 3, 1), r"num_neighbours=4 is more than the 3 training subjects that the archive has with scans"),
        ([9], [2], (4, 3, 1), r"num_validation_neighbours=3 is more than the 2 held-out subjects that the archive"),
        (
            [3, 2],
            [9, 9],
            (4, 3, 1),
            r"num_neighbours=4 is more than the 3 training subjects in the largest of 2 groups",
        ),
        ([5, 4], [9, 9], (4, 3, 10), r"num_references=10 is more than the 9 training subjects"),
    ],
)
def test_settings_that_no_group_can_fill_are_refused(training, held_out, asked, words):
    patients, groups = archive(training, held_out)
    with pytest.raises(SettingsError, match=words):
        references_by_group(patients, groups, discovery_settings(*asked))


def test_an_archive_of_outliers_alone_is_refused():
    patients, groups = archive([5], [5])
    with pytest.raises(SettingsError, match=r"no reference can be chosen: all 10 scans are outliers .* add scans"):
        references_by_group(patients, np.full(len(groups), NO_GROUP), discovery_settings())


def of_ids(*ids: str) -> Patients:
    """Patients with these volumes, all of which can be cropped."""
    everywhere = np.ones(len(ids), bool)
    return Patients(pa.array(ids), np.arange(len(ids)), ~everywhere, everywhere, everywhere)


def table(folder: Path, rows: Sequence[tuple[str, str, bool, int]]) -> None:
    names = ("volume_id", "duplicate_of", "is_outlier", "group")
    missing = {"nearest_distance": 1.0, "likeness": None, "sparsity": 1.0}
    write_table(
        folder / SCANS_FILE, pa.Table.from_pylist([dict(zip(names, row, strict=True)) | missing for row in rows], SCANS)
    )


def test_copies_and_outliers_and_what_is_not_in_the_table_have_no_group(tmp_path):
    table(tmp_path, [("a", "", False, 1), ("b", "a", False, 1), ("c", "", True, -1), ("d", "", False, 0)])
    assert group_numbers(tmp_path, of_ids("d", "c", "a", "b", "new")).tolist() == [0, -1, 1, -1, -1]


def test_of_copies_the_first_that_can_be_cropped_counts(tmp_path):
    rows = [("a", "", False, 1), ("b", "a", False, 1), ("c", "a", False, 1), ("d", "", False, 0), ("e", "d", False, 0)]
    table(tmp_path, rows)
    patients, cannot = of_ids(*"abcde"), np.array([True, False, False, True, True])
    assert group_numbers(tmp_path, patients).tolist() == [1, -1, -1, 0, -1]
    for name in ("is_roomy", "is_there"):
        assert group_numbers(tmp_path, replace(patients, **{name: ~cannot})).tolist() == [-1, 1, -1, 0, -1]


def test_a_damaged_or_missing_table_is_one_sentence(tmp_path):
    with pytest.raises(WorkspaceError, match=r"scans.parquet is missing: remove manifest.json beside it, then run"):
        group_numbers(tmp_path, of_ids("a"))
    (tmp_path / SCANS_FILE).write_bytes(b"nothing")
    with pytest.raises(WorkspaceError, match=r"scans.parquet is damaged"):
        group_numbers(tmp_path, of_ids("a"))
