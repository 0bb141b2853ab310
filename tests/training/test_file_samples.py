"""Samples read from a store's files are those that are held in memory, and take no memory to speak of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raygenesis.errors import WorkspaceError
from raygenesis.patterns.reader import TRAINING_COLUMNS, predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.patterns.writer import part_path
from raygenesis.training.feeding import Samples
from raygenesis.training.file_samples import StoredPatterns
from tests.support.stores import StorePlan

PLAN = StorePlan(references=2, coordinates=3, neighbours=8, held_out=3, scales=2, shape=(8, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("store") / "patterns"
    PLAN.write(made)
    return made


@pytest.mark.parametrize(
    "selected", [(TRAINING, None, None), (TRAINING, 3, 2), (VALIDATION, None, 1)], ids=["all", "K and C", "held out"]
)
def test_stored_samples_are_those_in_memory(folder, selected):
    split, neighbours, coordinates = selected
    table = read_patterns(folder, TRAINING_COLUMNS, predicate(split, neighbours, coordinates))
    expected = Samples([table], "pattern_id", PLAN.shape)
    found = StoredPatterns(folder, split, neighbours, coordinates).open("pattern_id", PLAN.shape)
    assert len(found) == len(expected) > 0
    assert found.columns.keys() == expected.columns.keys()
    for name, column in expected.columns.items():
        assert found.columns[name].tolist() == column.tolist()
    rows = np.random.default_rng(0).permutation(len(expected))
    assert torch.equal(found.batch(rows).cubes, expected.batch(rows).cubes)
    keep = expected.columns["coordinate"] == 0
    some = np.arange(keep.sum())
    assert torch.equal(found.select(keep).batch(some).cubes, expected.select(keep).batch(some).cubes)


def test_a_part_that_was_damaged_meanwhile_is_named(folder, tmp_path):
    PLAN.write(tmp_path / "patterns")
    found = StoredPatterns(tmp_path / "patterns", TRAINING).open("pattern_id", (8, 8))
    path = part_path(tmp_path / "patterns", 0)
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(WorkspaceError, match=f"{path.name} is damaged"):
        found.batch(np.arange(len(found)))
