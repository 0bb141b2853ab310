"""Contrast of pairs and cross-restoration: by loops, what the teacher gets, and that each learns its own part."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from raygenesis.errors import SettingsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.library_export import export_to_library
from raygenesis.networks.weights.loading import load_network
from raygenesis.networks.weights.native import save_network
from raygenesis.pretraining.contrast import TEMPERATURE, class_sums, contrast, separation, taught
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import PretrainingSettings
from raygenesis.training.checkpoints import copy_state
from raygenesis.training.experiment import TrainingError
from raygenesis.training.loop import Callbacks, run_epochs
from raygenesis.training.workers import Workers
from tests.support.experiments import equal, without_timings
from tests.support.synthetic import pattern_table, samples

SHAPE = (32, 32)


def settings(**chosen: Any) -> PretrainingSettings:
    given = {
        "base_width": 2, "batch_size": 12, "num_classification_epochs": 1, "num_joint_epochs": 5, "average_decay": 0.8,
        "learning_rate": 0.01, **chosen,
    }  # fmt: skip
    return PretrainingSettings(**given)


def task(**chosen: Any) -> PretextTask:
    return PretextTask(settings(**chosen), 0, SHAPE, num_references=1, num_coordinates=3)


def patterns(number: int = 48, first: int = 0) -> Any:
    return samples(pattern_table(number, SHAPE, 3, first), SHAPE)


def paired_batch(chosen: PretextTask, number: int = 12) -> Any:
    train = patterns()
    pairs = chosen.pairs(train.columns, 0)
    assert pairs is not None
    return train.batch(pairs.ravel()[:number])


# --- the loss -----------------------------------------------------------------------------------------


def test_info_nce_is_that_of_a_loop() -> None:
    """Each pattern against its partner and the patterns of other classes, not those of its own."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.tensor([2, 2, 0, 0, 2, 2, 1, 1])
    student, teacher = torch.randn(2, 8, 5, generator=generator)
    found = contrast(student, teacher, classes)
    for row in range(8):

        def likeness(other: int, row: int = row) -> float:
            one, two = student[row].double().numpy(), teacher[other].double().numpy()
            return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two) / TEMPERATURE)

        partner = row + 1 if row % 2 == 0 else row - 1
        negatives = [other for other in range(8) if classes[other] != classes[row]]
        total = math.exp(likeness(partner)) + sum(math.exp(likeness(other)) for other in negatives)
        assert found.loss[row].item() == pytest.approx(-math.log(math.exp(likeness(partner)) / total), rel=1e-4)
        assert found.chance[row].item() == pytest.approx(math.log(1 + len(negatives)))
    same = contrast(torch.ones(8, 5), torch.ones(8, 5), classes)
    torch.testing.assert_close(same.loss, same.chance)


def test_a_batch_of_one_class_has_no_negatives_and_no_loss() -> None:
    found = contrast(torch.randn(4, 5), torch.randn(4, 5), torch.zeros(4, dtype=torch.int64))
    assert found.loss.tolist() == pytest.approx([0] * 4, abs=1e-6) and found.chance.tolist() == [0] * 4


def test_separation_is_the_share_of_variance_between_classes_and_does_not_depend_on_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(30) % 3
    vectors = torch.randn(30, 6, generator=generator) + 2 * torch.randn(3, 6, generator=generator)[classes]
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).double().numpy()
    within = sum(((unit[classes == c] - unit[classes == c].mean(0)) ** 2).sum() for c in range(3))
    expected = 1 - within / ((unit - unit.mean(0)) ** 2).sum()
    parts = [class_sums(vectors[rows], classes[rows], 4) for rows in (slice(0, 7), slice(7, 30))]
    means = {name: sum(part[name] for part in parts) / 30 for name in parts[0]}
    assert separation(means["class_sums"], means["class_counts"]) == pytest.approx(expected)
    assert 0.1 < expected < 0.99
    for alike, answer in ((torch.ones(30, 6), 0.0), (torch.eye(6)[classes], 1.0)):
        sums = class_sums(alike, classes, 4)
        assert separation(sums["class_sums"], sums["class_counts"]) == pytest.approx(answer)


# --- the step -----------------------------------------------------------------------------------------


def test_the_joint_loss_adds_both_parts_with_their_weights() -> None:
    chosen = task(lambda_pair=0.5, lambda_cross=2.0, lambda_cls=0.3)
    model, batch, teacher = chosen.build().train(), paired_batch(chosen), replace(chosen, seed=1).build()
    made = chosen.make_batch(batch, 3)
    with torch.no_grad():
        losses = chosen.losses(model, batch, 3, teacher)
        features = model.encoder(made.shown)
        swapped = features[-1].reshape(6, 2, *features[-1].shape[1:]).flip(1).reshape(features[-1].shape)
        crossed = torch.sigmoid(model.decoder([*features[:-1], swapped]))
        keys = teacher.train().project(made.original)
        expected = contrast(model(made.shown).projected, keys, torch.from_numpy(batch.columns["coordinate"]).long())
    cross = float(((crossed - made.original).double() ** 2).mean())
    assert losses["cross_restoration"].item() == pytest.approx(cross, rel=1e-5)
    assert losses["contrast"].item() == pytest.approx(expected.loss.mean().item(), rel=1e-5)
    joint = losses["restoration"] + 0.3 * losses["classification"] + 0.5 * losses["contrast"] + 2 * cross
    assert losses["loss"].item() == pytest.approx(joint.item(), rel=1e-5)
    assert losses["cross_restoration"] != losses["restoration"]


def test_the_teacher_gets_no_gradient_and_keeps_its_running_statistics() -> None:
    chosen = task(lambda_pair=1.0)
    model, teacher, batch = chosen.build().train(), replace(chosen, seed=1).build().eval(), paired_batch(chosen)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    chosen.begin_epoch(model, 3)
    chosen.losses(model, batch, 3, teacher)["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert equal(before, teacher.state_dict())
    assert all(parameter.grad is not None for parameter in model.projection.parameters())
    assert not taught(teacher, batch.cubes).requires_grad


def test_in_the_phase_of_classification_neither_projection_nor_decoder_is_trained() -> None:
    chosen = task(lambda_pair=1.0, lambda_cross=1.0, num_joint_epochs=1)
    states: list[dict[str, torch.Tensor]] = [chosen.build().state_dict()]

    def keep(now: Any) -> None:
        states.append({name: value.clone() for name, value in now.model.state_dict().items()})

    history = run_epochs(chosen, patterns(), patterns(24, 100), callbacks=Callbacks(on_epoch=keep)).history
    changed = [
        {name.partition(".")[0] for name in was if not torch.equal(was[name], now[name])}
        for was, now in itertools.pairwise(states)
    ]
    assert changed == [{"encoder", "head"}, {"encoder", "head", "decoder", "projection"}]
    assert "train_contrast" not in history[0] and history[1]["train_contrast"] > 0


# --- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "improves"),
    [
        ({"pretext": "pattern-contrast"}, "train_contrast"),
        ({"pretext": "self-classification", "lambda_pair": 1.0, "num_classification_epochs": 0}, "train_contrast"),
        ({"pretext": "models-genesis-on-patterns", "lambda_cross": 1.0}, "train_cross_restoration"),
        ({"lambda_pair": 1.0, "lambda_cross": 1.0, "num_classification_epochs": 0}, "train_contrast"),
        ({"lambda_cross": 1.0, "num_classification_epochs": 0, "average_decay": None}, "train_cross_restoration"),
        ({"pretext": "pattern-contrast", "num_pieces": 2, "norm": "group", "precision": "bf16"}, "train_contrast"),
        ({"lambda_rec": 0, "lambda_cls": 0, "lambda_cross": 1.0}, "train_cross_restoration"),
    ],
)  # fmt: skip
def test_each_combination_learns_its_own_part(chosen: dict[str, Any], improves: str) -> None:
    made = task(**{"corruption": "none", "num_joint_epochs": 6, **chosen})
    history = run_epochs(made, patterns(), patterns(24, 100)).history
    assert min(row[improves] for row in history) < 0.8 * history[0][improves]
    assert all(made.score(row) < math.inf for row in history)


def test_contrast_alone_is_a_task_of_its_own() -> None:
    made = task(pretext="pattern-contrast", corruption="none", average_decay=0.5)
    assert made.chance is None and made.puzzle is None and not made.architecture.restores
    model: Any = made.build()
    assert {name.partition(".")[0] for name in model.state_dict()} == {"encoder", "projection"}
    now = run_epochs(made, patterns(), patterns(24, 100))
    row = now.history[-1]
    assert {row["phase"] for row in now.history} == {"contrast"}
    assert made.score(row) == -row["val_separation"] and 0 < row["val_separation"] <= 1
    assert not {"val_loss", "val_accuracy", "val_restoration"} & row.keys()
    assert max(row["val_separation"] for row in now.history) > 0.5
    assert "contrast" not in made.warnings(now.history, at_end=True)
    assert made.should_stop([row | {"val_separation": 0.5}] * 52)


def test_contrast_that_learns_nothing_says_so() -> None:
    row = {
        "phase": "contrast", "train_contrast": 2.39, "train_contrast_chance": 2.40, "val_separation": 0.1,
        "val_embedding_variance": 0.5, "val_effective_rank": 5.0, "train_gradient_norm": 1.0,
    }  # fmt: skip
    made = task(pretext="pattern-contrast")
    told = made.warnings([row] * 5)
    assert (
        told.keys() == {"contrast"}
        and "2.390 at best and embeddings that are all identical give 2.400" in told["contrast"]
    )
    assert made.warnings([row] * 4) == {} and made.warnings([row | {"train_contrast": 1.0}] * 5) == {}
    # A part that is not learnt yet is not judged.
    assert task(lambda_pair=1.0).warnings([{"phase": "classification", "val_accuracy": 0.9}] * 5).keys() <= {"gradient"}


def test_a_run_with_pairs_goes_on_from_any_step() -> None:
    made = task(lambda_pair=0.5, lambda_cross=0.5, num_joint_epochs=1)
    states: list[Any] = []
    callbacks = Callbacks(on_step=lambda now, row: states.append(copy_state(now.state())))
    whole = run_epochs(made, patterns(30), patterns(12, 100), callbacks=callbacks)
    assert len(states) == 4
    for state in states:
        resumed = run_epochs(made, patterns(30), patterns(12, 100), state=state)
        assert without_timings(resumed.history) == without_timings(whole.history)
        assert equal(resumed.model.state_dict(), whole.model.state_dict())
        assert equal(resumed.best, whole.best)


def test_classes_of_one_patient_alone_give_no_pairs_and_that_is_said() -> None:
    with pytest.raises(TrainingError, match=r"0 pairs of samples of one class from two patients are too few"):
        run_epochs(task(lambda_pair=1.0), patterns(3), patterns(24, 100))


def losses_of_worker(rank: int, world_size: int, file: str, chosen: dict[str, Any]) -> None:
    """Train as one of several processes; the first keeps the losses of each step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}.store", rank=rank, world_size=world_size)
    rows: list[Any] = []
    workers = Workers(rank=rank, world_size=world_size)
    callbacks = Callbacks(on_step=lambda now, row: rows.append((row["contrast"], row["cross_restoration"])))
    run_epochs(task(**chosen), patterns(30), patterns(12, 100), workers=workers, callbacks=callbacks)
    if rank == 0:
        torch.save(rows, file)
    dist.destroy_process_group()


@pytest.mark.slow  # it starts two processes
def test_losses_of_pairs_do_not_depend_on_the_number_of_workers(tmp_path: Any) -> None:
    """Five pairs a batch, which two workers cannot share evenly; negatives are those of both."""
    chosen = {
        "lambda_pair": 0.5, "lambda_cross": 0.5, "num_classification_epochs": 0, "num_joint_epochs": 1,
        "batch_size": 10, "learning_rate": 1e-4,
    }  # fmt: skip
    alone: list[Any] = []
    callbacks = Callbacks(on_step=lambda now, row: alone.append((row["contrast"], row["cross_restoration"])))
    run_epochs(task(**chosen), patterns(30), patterns(12, 100), callbacks=callbacks)
    file = str(tmp_path / "losses.pt")
    torch.multiprocessing.spawn(losses_of_worker, (2, file, chosen), nprocs=2)
    shared = torch.load(file)
    assert len(shared) == len(alone) == 3
    np.testing.assert_allclose(shared, alone, rtol=2e-3)
    np.testing.assert_allclose(shared[0], alone[0], rtol=1e-5)


# --- refusals and weights ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"pretext": "models-genesis", "lambda_pair": 1}, r"lambda_pair=1: .* models-genesis learns from random crops"),
        ({"pretext": "rotation", "lambda_cross": 1}, r"lambda_cross=1: .* rotation learns from random crops"),
        ({"pretext": "self-classification", "lambda_cross": 1}, r"lambda_cross=1: .* restores nothing"),
        ({"pretext": "pattern-contrast", "lambda_cls": 1}, r"lambda_cls=1: .* pattern-contrast classifies nothing"),
        ({"pretext": "pattern-contrast", "lambda_rec": 1}, r"lambda_rec=1: .* pattern-contrast restores nothing"),
        ({"pretext": "pattern-contrast", "lambda_pair": 0}, r"weights λ of .* pattern-contrast are all 0"),
        ({"lambda_pair": 1, "average_decay": None}, r"lambda_pair=1 contrasts .*: give pretraining\.average_decay"),
        ({"lambda_cross": 1, "batch_size": 7}, r"batch_size=7: .* give an even number of at least 2$"),
        ({"lambda_pair": 1, "batch_size": 6, "num_workers": 2, "num_pieces": 2}, r"2 worker\(s\) .* at least 8$"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        pretext_of(settings(**chosen))
    assert "\n" not in str(refused.value)


def test_a_projection_changes_no_other_first_weight_and_old_descriptions_have_none() -> None:
    plain, projecting = task(average_decay=None).build().state_dict(), task(lambda_pair=1.0).build().state_dict()
    assert all(torch.equal(value, projecting[name]) for name, value in plain.items())
    assert {name.partition(".")[0] for name in projecting.keys() - plain.keys()} == {"projection"}
    described = asdict(task().architecture)
    del described["projection_size"]
    network = PretextNetwork(Architecture(**described))
    with pytest.raises(ValueError, match="no projection"):
        network.project(torch.rand(2, 1, *SHAPE))


def test_a_projection_is_kept_with_the_weights_and_left_out_of_what_other_code_reads(tmp_path: Path) -> None:
    model = replace(task(lambda_pair=1.0), sample_shape=(32, 32, 32)).build()
    save_network(model, tmp_path, {})
    again = load_network(tmp_path)
    assert equal(model.state_dict(), again.state_dict())
    export_to_library(tmp_path, tmp_path / "theirs.pt")
    exported = load_network(tmp_path / "theirs.pt").state_dict()
    assert {name.partition(".")[0] for name in exported} == {"encoder", "decoder", "head"}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in exported.items())
