"""The torch dataset: what the store holds, cube by cube, in any order and in any process, without Ray."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from raygenesis import PatternDataset
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.dataset import CACHED_GROUPS
from raygenesis.patterns.schema import ROWS_PER_GROUP, TRAINING, VALIDATION
from raygenesis.patterns.writer import part_path
from tests.support.stores import StorePlan, noise, write_store
from tests.support.synthetic import quantised

PLAN = StorePlan()
ROWS = [row for part in PLAN.parts() for row in part]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    PLAN.write(root / "patterns")
    return root


@pytest.mark.parametrize("split", [TRAINING, VALIDATION])
def test_items_are_the_patterns_of_the_split_in_the_stores_order(workspace: Path, split: str) -> None:
    expected = [row for row in ROWS if row["split"] == split]
    dataset = PatternDataset(workspace, split)
    assert len(dataset) == len(expected) and dataset.num_classes == 8
    for item, row in zip(dataset, expected, strict=True):
        assert item.keys() == {"cube", "label", "pattern_id"}
        assert (item["label"], item["pattern_id"]) == (row["label"], row["pattern_id"])
        assert type(item["label"]) is int and type(item["pattern_id"]) is int
        assert item["cube"].dtype == torch.float32 and item["cube"].shape == (1, 4, 6, 8)
        np.testing.assert_array_equal(item["cube"][0], quantised(noise(row, PLAN.shape)))


@settings(max_examples=40, deadline=None)
@given(
    split=st.sampled_from([TRAINING, VALIDATION]),
    k=st.none() | st.integers(1, 6),
    c=st.none() | st.integers(1, 4),
    scales=st.none() | st.sets(st.integers(0, 1), min_size=1),
)
def test_selections_and_their_labels(workspace: Path, split, k, c, scales) -> None:
    dataset = PatternDataset(workspace, split, k, c, scales and sorted(scales))
    expected = [
        row
        for row in ROWS
        if row["split"] == split
        and (k is None or split == VALIDATION or row["rank"] < k)
        and (c is None or row["coordinate"] < c)
        and (scales is None or row["scale"] in scales)
    ]
    assert dataset.pattern_ids.tolist() == [row["pattern_id"] for row in expected]
    labels = [row["reference"] * (c or 4) + row["coordinate"] for row in expected]
    assert dataset.labels.tolist() == labels
    assert sorted(set(labels)) == list(range(dataset.num_classes))
    number = len(expected) // 2
    np.testing.assert_array_equal(dataset[number]["cube"][0], quantised(noise(expected[number], PLAN.shape)))


def test_labels_are_renumbered_where_coordinates_are_left_out(workspace: Path) -> None:
    dataset = PatternDataset(workspace, num_neighbours=1, num_coordinates=3, scales=[1])
    # The store's own are 0 1 2 and 4 5 6.
    assert [item["label"] for item in dataset] == [0, 1, 2, 3, 4, 5]


def test_a_workspace_and_its_store_are_the_same(workspace: Path) -> None:
    for location in (workspace, str(workspace), workspace / "patterns"):
        assert PatternDataset(location).pattern_ids.tolist() == PatternDataset(workspace).pattern_ids.tolist()


def test_images_have_a_channel_too(tmp_path: Path) -> None:
    plan = StorePlan(shape=(5, 7))
    rows = plan.write(tmp_path)
    item = PatternDataset(tmp_path)[3]
    assert item["cube"].shape == (1, 5, 7)
    np.testing.assert_array_equal(item["cube"][0], quantised(noise(rows[3], (5, 7))))


def test_indices_count_from_either_end_and_no_further(workspace: Path) -> None:
    dataset = PatternDataset(workspace)
    assert dataset[-1]["pattern_id"] == dataset.pattern_ids[-1]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def refuse_ray(worker: int) -> None:
    assert "ray" not in sys.modules  # though the dataset is imported by now
    sys.modules["ray"] = None  # importing it fails


def test_a_loader_of_spawned_workers_gives_each_pattern_once_and_never_imports_ray(workspace: Path) -> None:
    dataset = PatternDataset(workspace)
    first = dataset[0]  # a file is open when workers start
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    loader = DataLoader(
        dataset, batch_size=7, sampler=order, num_workers=2, multiprocessing_context="spawn", worker_init_fn=refuse_ray
    )
    batches = list(loader)
    assert torch.cat([batch["pattern_id"] for batch in batches]).tolist() == dataset.pattern_ids[order].tolist()
    assert torch.cat([batch["label"] for batch in batches]).tolist() == dataset.labels[order].tolist()
    cubes = torch.cat([batch["cube"] for batch in batches])
    assert cubes.shape == (len(dataset), 1, 4, 6, 8)
    assert torch.equal(cubes[order.index(0)], first["cube"])


def test_a_dataset_is_pickled_without_its_open_files(workspace: Path) -> None:
    dataset = PatternDataset(workspace)
    before = pickle.dumps(dataset)
    item = dataset[5]
    assert pickle.dumps(dataset) == before
    assert torch.equal(pickle.loads(before)[5]["cube"], item["cube"])


def test_few_cells_stay_in_memory(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((16, 16, 16), np.float32)
    plan = StorePlan(neighbours=40, shape=(16, 16, 16), cube=lambda row, shape: cube)
    rows = plan.write(tmp_path)
    largest = ROWS_PER_GROUP * len(rows[0]["cube"])
    dataset = PatternDataset(tmp_path)
    assert len(dataset) >= 4 * CACHED_GROUPS * ROWS_PER_GROUP
    before = pa.total_allocated_bytes()
    for number in range(len(dataset)):
        dataset[number]
    # Arrow's builders grow by doubling.
    assert largest <= pa.total_allocated_bytes() - before < 2.5 * CACHED_GROUPS * largest


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        ({"num_neighbours": 7}, r"num_neighbours=7: the pattern store .*patterns holds 6: give 1 to 6, or discover"),
        ({"num_neighbours": 0}, r"num_neighbours=0: .* give 1 to 6"),
        ({"num_coordinates": 5}, r"num_coordinates=5: .* holds 4: give 1 to 4, .* another discovery.num_coordinates"),
        ({"scales": [0, 2]}, r"scales=\[0, 2\]: .* holds the scales \[0, 1\]: give one or more of them"),
        ({"scales": []}, r"scales=\[\]: .* give one or more"),
        ({"split": "test"}, r"split='test' is unknown: give 'training' or 'validation'"),
    ],
)
def test_what_the_store_does_not_hold_is_refused_in_a_sentence(workspace: Path, selection, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        PatternDataset(workspace, **selection)


def test_what_is_no_store_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"nowhere is not there or not finished: run `raygenesis discover` first"):
        PatternDataset(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"counts": {}}')
    with pytest.raises(WorkspaceError, match="is no pattern store: give a workspace or its patterns folder"):
        PatternDataset(tmp_path)


def test_a_part_without_patterns_is_harmless(workspace: Path, tmp_path: Path) -> None:
    _, second, held_out = PLAN.parts()
    write_store(tmp_path, [[], second, held_out], PLAN)
    assert PatternDataset(tmp_path).pattern_ids.tolist() == [row["pattern_id"] for row in second]


def damage(path: Path, place: int, content: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[place : place + len(content)] = content
    path.write_bytes(whole)


def test_damage_is_told_with_part_and_remedy(tmp_path: Path) -> None:
    rows = PLAN.write(tmp_path)
    part = part_path(tmp_path, 0)
    dataset = PatternDataset(tmp_path)
    damage(part, part.read_bytes().index(rows[2]["cube"]) + 4, b"\xff")  # the size in the cell's header
    assert dataset[1]["pattern_id"] == rows[1]["pattern_id"]
    remedy = rf"remove it and {tmp_path / 'manifest.json'}, then run `raygenesis discover`"
    with pytest.raises(WorkspaceError, match=rf"{part} is damaged \(cell .*\): {remedy}"):
        dataset[2]
    part.write_bytes(part.read_bytes()[:-9])
    for read in (lambda: pickle.loads(pickle.dumps(dataset))[2], lambda: PatternDataset(tmp_path)):
        with pytest.raises(WorkspaceError, match=rf"{part} is damaged \(.*\): {remedy}"):
            read()
    part.unlink()
    for read in (lambda: pickle.loads(pickle.dumps(dataset))[2], lambda: PatternDataset(tmp_path)):
        with pytest.raises(WorkspaceError, match=rf"{part} is missing: remove .*manifest.json, then run `raygenesis d"):
            read()


def test_random_crops_have_no_classes_and_name_their_own_verb(tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    rows = StorePlan(references=0, coordinates=5, neighbours=3).write(folder)
    dataset = PatternDataset(folder, num_neighbours=2, num_coordinates=3)
    expected = [row for row in rows if row["split"] == TRAINING and row["rank"] < 2 and row["coordinate"] < 3]
    assert dataset.pattern_ids.tolist() == [row["pattern_id"] for row in expected] and len(expected) == 6
    assert dataset.labels.tolist() == [-1] * 6 and dataset.num_classes == 0 and dataset[4]["label"] == -1
    np.testing.assert_array_equal(dataset[4]["cube"][0], quantised(noise(expected[4], PLAN.shape)))
    for selection, sentence in (
        ({"num_neighbours": 4}, r"num_neighbours=4: .*crops holds 3: give 1 to 3, or crop again with more scans"),
        ({"num_coordinates": 6}, r"=6: .* give 1 to 5, or crop again with another discovery\.num_crops"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            PatternDataset(folder, **selection)
    part_path(folder, 0).write_bytes(b"short")
    with pytest.raises(WorkspaceError, match=r"is damaged \(.*\): remove it and .*, then run `raygenesis crop`"):
        PatternDataset(folder)
    part_path(folder, 0).unlink()
    with pytest.raises(WorkspaceError, match=r"is missing: remove .*, then run `raygenesis crop`"):
        PatternDataset(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(WorkspaceError, match="run `raygenesis crop` first"):
        PatternDataset(folder)
