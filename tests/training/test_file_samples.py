"""Samples read from a store's files are those that are held in memory, and take no memory to speak of."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from raygenesis.errors import WorkspaceError
from raygenesis.patterns.reader import TRAINING_COLUMNS, predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.patterns.writer import part_path
from raygenesis.training import file_samples
from raygenesis.training.feeding import Samples
from raygenesis.training.file_samples import StoredPatterns, StoredSamples, usual_window
from raygenesis.training.order import held_out_batches
from raygenesis.training.workers import ALONE, Workers
from tests.support.orders import training_batches
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


# --- streams --------------------------------------------------------------------------------------


def batches_of(samples, batch_size, epoch, workers=ALONE):
    return [rows for (rows,) in training_batches(len(samples), batch_size, 0, epoch, workers, layout=samples.layout)]


def counting(samples, monkeypatch):
    """The row groups that are read from now on."""
    read, asked = samples._read, []
    monkeypatch.setattr(samples, "_read", lambda part, group: asked.append((part, group)) or read(part, group))
    return asked


@pytest.mark.parametrize("num_decoders", [1, 3])
@pytest.mark.parametrize("window", [2, None], ids=["streams", "a permutation"])
def test_a_stream_reads_each_row_group_once_an_epoch(folder, monkeypatch, num_decoders, window):
    found = StoredPatterns(folder, TRAINING, num_decoders=num_decoders, window=window).open("pattern_id", PLAN.shape)
    table = read_patterns(folder, TRAINING_COLUMNS, predicate(TRAINING))
    expected = Samples([table], "pattern_id", PLAN.shape)
    asked = counting(found, monkeypatch)
    epochs = [batches_of(found, 4, epoch) for epoch in range(3)]
    stream = found.stream(iter(epochs))
    for number, batches in enumerate(epochs):
        for indices in batches:
            batch = next(stream)
            assert torch.equal(batch.on("cpu").cubes, expected.batch(indices).cubes)
            assert batch.columns["pattern_id"].tolist() == expected.columns["pattern_id"][indices].tolist()
        groups = len({found.layout.groups[row] for rows in epochs[0] for row in rows})
        assert len(asked) >= groups * (number + 1)
    assert list(stream) == [] and len(asked) == 3 * groups > 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]


def test_what_fits_into_memory_is_read_once(folder, monkeypatch):
    found = StoredPatterns(folder, TRAINING, memory_gib=1).open("pattern_id", PLAN.shape)
    asked = counting(found, monkeypatch)
    rows = np.arange(len(found))
    first = found.batch(rows).cubes
    assert found.is_kept and 0 < found.num_bytes < 2**20
    assert len(asked) == len(set(asked)) == len(set(found.layout.groups.tolist()))
    for _ in range(2):
        assert torch.equal(found.batch(rows).cubes, first)
        assert torch.equal(found.select(rows % 2 == 0).batch(np.arange(3)).cubes, first[[0, 2, 4]])
    assert len(asked) == len(set(asked))


def test_a_stream_that_is_left_early_reads_little_and_ends_its_threads(folder, monkeypatch):
    found = StoredPatterns(folder, TRAINING).open("pattern_id", PLAN.shape)
    monkeypatch.setattr(file_samples, "BATCHES_AHEAD", 1)
    asked = counting(found, monkeypatch)
    stream = found.stream([held_out_batches(len(found), 4, layout=found.layout)])
    next(stream)
    stream.close()
    assert 1 <= len(asked) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]


def test_what_is_kept_survives_a_stream_that_was_left_and_a_read_that_failed(folder, monkeypatch):
    found = StoredPatterns(folder, TRAINING, memory_gib=1).open("pattern_id", PLAN.shape)
    whole = np.arange(len(found))
    with monkeypatch.context() as patched:
        patched.setattr(file_samples, "BATCHES_AHEAD", 0)  # or all may have been read before the stream is left
        stream = found.stream([[whole[:2]], [whole]])
        next(stream)
        stream.close()
    read = found._read
    monkeypatch.setattr(found, "_read", lambda part, group: (_ for _ in ()).throw(OSError("stale handle")))
    with pytest.raises(WorkspaceError, match="stale handle"):
        StoredSamples.batch(found, whole)
    monkeypatch.setattr(found, "_read", read)
    expected = StoredPatterns(folder, TRAINING).open("pattern_id", PLAN.shape).batch(whole)
    assert torch.equal(found.batch(whole).cubes, expected.cubes)


def test_batches_that_take_from_anywhere_hold_no_more_than_a_window_and_what_is_awaited(tmp_path, monkeypatch):
    """As pairs do, whose order knows no row groups."""
    folder = tmp_path / "patterns"
    StorePlan(references=2, coordinates=6, neighbours=16, held_out=1, scales=2, shape=(8, 8)).write(folder)
    monkeypatch.setattr(file_samples, "NUM_STREAMS", 1)
    monkeypatch.setattr(file_samples, "BATCHES_AHEAD", 1)
    found = StoredPatterns(folder, TRAINING, window=1).open("pattern_id", PLAN.shape)
    asked, held = counting(found, monkeypatch), []
    release = file_samples._Held.release
    monkeypatch.setattr(
        file_samples._Held, "release", lambda self, use: (release(self, use), held.append(len(self.cells)))
    )
    order = np.random.default_rng(0).permutation(len(found))
    batches = [order[start : start + 1] for start in range(len(order))]
    expected = StoredPatterns(folder, TRAINING).open("pattern_id", PLAN.shape).batch(order)
    cubes = torch.cat([batch.on("cpu").cubes for batch in found.stream([batches])])
    num_groups = len(set(found.layout.groups.tolist()))
    assert torch.equal(cubes, expected.cubes)
    assert num_groups > 20 and max(held) <= 1 + 3 + 2 and len(asked) > num_groups


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_read_together_what_one_reads_alone(folder, world_size):
    found = StoredPatterns(folder, TRAINING, window=2).open("pattern_id", PLAN.shape)
    whole = [sorted(rows.tolist()) for rows in batches_of(found, 16, 1)]
    shares = [batches_of(found, 16, 1, Workers(rank=rank, world_size=world_size)) for rank in range(world_size)]
    streams = [found.stream([share]) for share in shares]
    ids = found.columns["pattern_id"]
    for rows, *parts in zip(whole, *streams, strict=True):
        assert sorted(np.concatenate([part.columns["pattern_id"] for part in parts]).tolist()) == sorted(ids[rows])


def test_the_usual_window_holds_a_gib_of_cubes_and_two_groups_a_stream_at_least():
    assert usual_window((32, 32, 32)) == 1024 and usual_window((64, 64, 32)) == 256
    assert usual_window((256, 256, 256)) == 128
