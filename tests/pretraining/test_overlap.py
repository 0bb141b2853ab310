"""Overlap of classes: shared volume counted voxel by voxel, and the losses of both kinds by loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygenesis.errors import SettingsError
from raygenesis.pretraining.overlap import (
    MOST_SHARED,
    ClassBoxes,
    class_boxes,
    cross_entropy_without_overlapping,
    shares_of,
    soft_cross_entropy,
)
from raygenesis.pretraining.stores import pretext_task
from raygenesis.pretraining.task import VALIDATION_EPOCH, PretextTask
from raygenesis.settings import PretrainingSettings
from raygenesis.training.loop import run_epochs
from raygenesis.workspace.manifest import PatternsManifest, ReferenceRecord, StoreCounts
from tests.support.synthetic import pattern_table, samples

# Whole millimetres, so that voxels of 1 mm count exactly. Two references of three places, of two scales.
CENTRES_3D = (((20, 30, 30), (20, 30, 38), (26, 34, 34)), ((20, 30, 30), (40, 50, 50), (20, 24, 30)))
CENTRES_2D = (((30, 30), (30, 38), (35, 33)), ((30, 30), (52, 50), (24, 30)))
BOXES = {
    3: ClassBoxes(CENTRES_3D, ((16.0, 20.0, 20.0), (8.0, 10.0, 12.0))),
    2: ClassBoxes(CENTRES_2D, ((20.0, 16.0), (8.0, 12.0))),
}


def counted(boxes: ClassBoxes, scale: int) -> np.ndarray:
    """The same by brute force: every box painted into an image of voxels of 1 mm."""
    extent = boxes.extents_mm[scale]
    painted = []
    for reference, centres in enumerate(boxes.centres_mm):
        for centre in centres:
            image = np.zeros((2, *[80] * len(extent)), bool)
            low = [round(middle - side / 2) for middle, side in zip(centre, extent, strict=True)]
            image[(reference, *(slice(a, a + round(side)) for a, side in zip(low, extent, strict=True)))] = True
            painted.append(image)
    return np.array([[(one & other).sum() / one.sum() for other in painted] for one in painted])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("scale", [0, 1])
def test_shared_volume_is_what_counting_voxels_gives(ndim: int, scale: int) -> None:
    boxes = BOXES[ndim]
    found = shares_of(boxes, torch.arange(6), torch.full((6,), scale))
    np.testing.assert_allclose(found.numpy(), counted(boxes, scale), atol=1e-6)
    assert (found.diagonal() == 1).all() and torch.equal(found, found.T)
    assert (found[:3, 3:] == 0).all() and 0 < found[0, 1] < 1


def test_each_sample_is_compared_at_its_own_scale() -> None:
    labels, scales = torch.tensor([1, 1, 5, 2]), torch.tensor([0, 1, 1, 0])
    found = shares_of(BOXES[3], labels, scales)
    for row, label, scale in zip(found, labels, scales, strict=True):
        np.testing.assert_allclose(row, counted(BOXES[3], int(scale))[label], atol=1e-6)
    assert not torch.equal(found[0], found[1])


def logits_and_shares() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 1])
    shares = shares_of(BOXES[3], labels, torch.tensor([0, 0, 0, 0, 0, 0, 1]))
    return 3 * torch.randn(7, 6, generator=generator), labels, shares


def test_soft_cross_entropy_is_that_of_a_loop() -> None:
    logits, labels, shares = logits_and_shares()
    expected = []
    for row, share in zip(logits.double().numpy(), shares.double().numpy(), strict=True):
        target, likelihood = share / share.sum(), np.exp(row) / np.exp(row).sum()
        expected.append(-sum(t * math.log(p) for t, p in zip(target, likelihood, strict=True)))
    np.testing.assert_allclose(soft_cross_entropy(logits, labels, shares), expected, rtol=1e-5)


def test_without_overlap_both_losses_are_cross_entropy() -> None:
    logits, labels, _ = logits_and_shares()
    alone = torch.nn.functional.one_hot(labels, 6).float()
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, labels, alone), expected)
    torch.testing.assert_close(cross_entropy_without_overlapping(logits, labels, alone), expected)


def test_exactly_the_classes_that_share_more_than_half_are_left_out() -> None:
    """8 mm along the long axis of 20 leave 0.6; 6, 4 and 4 mm leave 0.4; 6 of 20 leave 0.7, and 8 of 12 a third."""
    logits, labels, shares = logits_and_shares()
    logits.requires_grad_()
    loss = cross_entropy_without_overlapping(logits, labels, shares)
    expected = []
    left_out = {0: {1}, 1: {0}, 3: {5}, 5: {3}}  # of the large scale, by class
    for number, row in enumerate(logits.detach().double().numpy()):
        label = int(labels[number])
        gone = left_out.get(label, set()) if number < 6 else set()
        kept = [other for other in range(6) if other not in gone]
        expected.append(math.log(sum(math.exp(row[other]) for other in kept)) - row[label])
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-5)
    loss.sum().backward()
    untouched = {tuple(place) for place in (logits.grad == 0).nonzero().tolist()}
    assert untouched == {(0, 1), (1, 0), (3, 5), (5, 3)}
    assert 0.4 < MOST_SHARED < 0.6


# --- from the store to the loss ---------------------------------------------------------------------

SIDE, EXTENT = 32, (20.0, 16.0)


def manifest(num_references: int = 2, **changes: Any) -> PatternsManifest:
    counts = StoreCounts(
        patterns=24, validation=8, volumes=12, parts=1, failures=0, references=2, coordinates=3, neighbours=12
    )
    records = tuple(ReferenceRecord(volume_id="a", source="a", centres_mm=centres) for centres in CENTRES_2D)
    scales = [{"extent_mm": list(EXTENT)}, {"extent_mm": [8, 12]}]
    return PatternsManifest(**{
        "counts": counts, "cube_shape": (SIDE, SIDE), "raw_bytes": 0, "references": records[:num_references],
        "settings": {"discovery": {"scales": scales}}, **changes,
    })  # fmt: skip


def settings(**chosen: Any) -> PretrainingSettings:
    given = {"base_width": 2, "batch_size": 6, "num_classification_epochs": 1, "num_joint_epochs": 2, **chosen}
    return PretrainingSettings(**given)


def batch_of(labels: list[int], scales: list[int]) -> Any:
    batch = samples(pattern_table(len(labels), (SIDE, SIDE), 3), (SIDE, SIDE)).batch(np.arange(len(labels)))
    batch.columns["reference"], batch.columns["coordinate"] = np.divmod(np.array(labels), 3)
    batch.columns["scale"] = np.array(scales, np.int8)
    return batch


def test_the_boxes_of_a_store_are_those_of_its_manifest_and_of_the_coordinates_in_use() -> None:
    assert class_boxes(manifest(), 3, "soft") == BOXES[2]
    fewer = class_boxes(manifest(), 2, "soft")
    assert [len(centres) for centres in fewer.centres_mm] == [2, 2] and fewer.extents_mm == BOXES[2].extents_mm
    task = pretext_task(settings(overlap="ignore", num_coordinates=2), 0, manifest())
    assert task.boxes == fewer and hash(task)
    assert pretext_task(settings(), 0, manifest(0)).boxes is None


@pytest.mark.parametrize("overlap", ["soft", "ignore"])
def test_the_task_learns_and_evaluates_by_the_loss_and_counts_hits_of_the_label(overlap: str) -> None:
    task = pretext_task(settings(overlap=overlap), 0, manifest())
    labels, scales = [0, 1, 2, 3, 5, 4], [0, 1, 0, 0, 0, 1]
    batch, model = batch_of(labels, scales), task.build().eval()
    model.head.linear.bias.data.copy_(torch.linspace(-2, 2, 6))  # answers that differ
    shown = task.make_batch(batch, VALIDATION_EPOCH).shown
    with torch.no_grad():
        logits = model(shown).logits
        losses, sums = task.losses(model, batch, VALIDATION_EPOCH), task.evaluate(model, batch)
    answers = torch.tensor(labels)
    tables = [counted(BOXES[2], scale) for scale in (0, 1)]
    shares = torch.tensor(np.stack([tables[scale][label] for label, scale in zip(labels, scales, strict=True)])).float()
    loss = {"soft": soft_cross_entropy, "ignore": cross_entropy_without_overlapping}[overlap](logits, answers, shares)
    assert losses["classification"].item() == pytest.approx(loss.mean().item(), rel=1e-5)
    assert sums["classification"].item() == pytest.approx(loss.sum().item(), rel=1e-5)
    assert losses["accuracy"].item() == pytest.approx((logits.argmax(1) == answers).float().mean().item())
    plain = torch.nn.functional.cross_entropy(logits, answers)
    assert losses["classification"].item() != pytest.approx(plain.item(), rel=1e-3)


@pytest.mark.parametrize("overlap", ["soft", "ignore"])
def test_classes_are_learnt_with_it(overlap: str) -> None:
    chosen = settings(
        overlap=overlap, pretext="self-classification", num_joint_epochs=11, learning_rate=0.01, corruption="none"
    )
    task = replace(pretext_task(chosen, 0, manifest()), num_references=1)
    task = replace(task, boxes=ClassBoxes(CENTRES_2D[:1], ((10.0, 12.0) if overlap == "soft" else EXTENT,)))
    shares = counted(task.boxes, 0)
    targets = shares / shares.sum(1, keepdims=True)
    least = float(-(targets * np.log(targets)).sum(1).mean()) if overlap == "soft" else 0.0

    def patterns(number: int, first: int) -> Any:
        table = pattern_table(number, (SIDE, SIDE), 3, first)
        return samples(table.append_column("scale", pa.array(np.zeros(number), pa.int8())), (SIDE, SIDE))

    history = run_epochs(task, patterns(36, 0), patterns(12, 100)).history
    first, *_, last = (row["train_classification"] - least for row in history)
    assert -1e-6 < last < 0.5 * first


@pytest.mark.parametrize("store", [manifest(0), manifest(1)])
def test_a_store_that_does_not_say_where_its_classes_lie_is_refused(store: PatternsManifest) -> None:
    with pytest.raises(SettingsError, match=r"pretraining\.overlap=soft: the pattern store does not say .* again$"):
        pretext_task(settings(overlap="soft"), 0, store)


@pytest.mark.parametrize("pretext", ["rotation", "rubiks-cube", "models-genesis", "models-genesis-on-patterns"])
def test_tasks_that_name_no_classes_have_no_overlap(pretext: str) -> None:
    with pytest.raises(SettingsError, match=rf"overlap=soft: the pretext task {pretext} does not name the classes"):
        PretextTask(settings(overlap="soft", pretext=pretext), 0, (64, 64), 1, 3)
