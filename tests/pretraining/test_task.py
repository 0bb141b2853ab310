"""Pretext tasks: the two phases, its schedule, and its losses computed again by hand."""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygenesis.patterns.cells import encode
from raygenesis.pretraining import task as task_module
from raygenesis.pretraining.corruption_sets import CORRUPTIONS
from raygenesis.pretraining.corruptions import corrupt
from raygenesis.pretraining.draws import Draws
from raygenesis.pretraining.pretexts import PRETEXTS
from raygenesis.pretraining.puzzles import PUZZLES
from raygenesis.pretraining.task import VALIDATION_EPOCH, PretextTask
from raygenesis.settings import PretrainingSettings
from raygenesis.training.loop import Callbacks, run_epochs
from raygenesis.workspace.artifacts import PATTERNS
from tests.support.synthetic import pattern_table, samples

SHAPE = (32, 32, 32)  # the least that painting's boxes need


def task(seed=0, num_references=1, num_coordinates=3, **settings):
    chosen = {"base_width": 2, "batch_size": 6, "num_classification_epochs": 2, "num_joint_epochs": 3, **settings}
    return PretextTask(PretrainingSettings(**chosen), seed, SHAPE, num_references, num_coordinates)


def batch(num=6, first=0):
    return samples(pattern_table(num, SHAPE, num_coordinates=3, first=first), SHAPE).batch(np.arange(num))


def cross_entropy(logits, labels):
    """Mean of −log softmax at the label."""
    logits = logits.double().numpy()
    normaliser = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return float(np.mean(normaliser - logits[np.arange(len(labels)), labels]))


# --- phases and schedule --------------------------------------------------------------------------


def test_classification_comes_first_then_both_jointly():
    chosen = task()
    model = chosen.build()
    assert chosen.num_epochs == 5
    phases = [chosen.begin_epoch(model, epoch) for epoch in range(5)]
    assert phases == ["classification"] * 2 + ["joint"] * 3


def test_without_a_weight_for_classification_nothing_is_classified_not_even_at_first():
    flat = (32, 32)
    chosen = replace(task(lambda_cls=0, num_classification_epochs=1, num_joint_epochs=1), sample_shape=flat)
    train, held_out = (samples(pattern_table(12, flat, 3, first), flat) for first in (0, 100))
    before = chosen.build()
    after: Any = run_epochs(chosen, train, held_out).model
    for (name, was), now in zip(before.head.named_parameters(), after.head.parameters(), strict=True):
        assert torch.equal(was, now), name
    assert any(
        not torch.equal(*pair) for pair in zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    )
    assert [chosen.phase(epoch) for epoch in range(2)] == ["joint"] * 2


def test_the_learning_rate_halves_every_so_many_epochs():
    chosen = task(decay_epochs=4, learning_rate=1e-3, num_joint_epochs=50)
    rates = [chosen.learning_rate(epoch, 0.5) for epoch in (0, 3, 4, 7, 8, 40)]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 1e-3 / 1024])


def steps_of(chosen):
    """By epoch: the phase, and the farthest that a weight of each part moves in its first step, in learning rates."""
    flat = (32, 32)
    chosen = replace(chosen, sample_shape=flat)
    train, held_out = (samples(pattern_table(12, flat, 3, first), flat) for first in (0, 100))
    moved, now = {}, {name: value.detach().clone() for name, value in chosen.build().named_parameters()}

    def watch(progress, row):
        for name, value in progress.model.named_parameters():
            part, far = name.partition(".")[0], float((value.detach() - now[name]).abs().max()) / row["learning_rate"]
            at = moved.setdefault(row["step"], {"phase": row["phase"]})
            at[part] = max(far, at.get(part, 0.0))
            now[name] = value.detach().clone()

    run_epochs(chosen, train, held_out, callbacks=Callbacks(on_step=watch))
    return moved


def test_the_encoder_may_have_a_lower_rate_in_the_joint_phase():
    """The first step of Adam moves each weight by the rate."""
    joint = steps_of(task(num_classification_epochs=0, num_joint_epochs=1, joint_encoder_rate=0.1))[0]
    assert joint["phase"] == "joint" and joint["encoder"] == pytest.approx(0.1, rel=1e-3)
    assert joint["decoder"] == pytest.approx(1, rel=1e-3) and joint["head"] == pytest.approx(1, rel=1e-3)
    alone = steps_of(task(num_classification_epochs=1, num_joint_epochs=0, joint_encoder_rate=0.1))[0]
    assert alone["phase"] == "classification" and alone["encoder"] == pytest.approx(1, rel=1e-3)
    restoring = steps_of(task(pretext="models-genesis", num_joint_epochs=1, joint_encoder_rate=0.1))[0]
    assert restoring["phase"] == "restoration" and restoring["encoder"] == pytest.approx(1, rel=1e-3)


def test_both_phases_have_their_rates_one_after_the_other():
    chosen = task(joint_encoder_rate=0.25, num_classification_epochs=1, num_joint_epochs=1)
    assert [tuple(chosen.rate_factors(epoch)) for epoch in range(2)] == [(1.0, 1.0), (0.25, 1.0)]
    encoder, others = chosen.optimizer(model := chosen.build()).param_groups
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert {names[id(weight)].partition(".")[0] for weight in encoder["params"]} == {"encoder"}
    assert {names[id(weight)].partition(".")[0] for weight in others["params"]} == {"decoder", "head"}
    assert len(encoder["params"]) + len(others["params"]) == len(names)


def test_without_a_rate_of_its_own_the_optimizers_state_is_what_it_was():
    """Checkpoints that were written before there was such a setting still load."""
    chosen = task()
    model = chosen.build()
    before = torch.optim.Adam(model.parameters(), lr=chosen.settings.learning_rate).state_dict()
    assert chosen.optimizer(model).state_dict() == before and len(before["param_groups"]) == 1
    flat = replace(chosen, sample_shape=(32, 32))
    data = [samples(pattern_table(12, (32, 32), 3, first), (32, 32)) for first in (0, 100)]
    plain, one = (run_epochs(each, *data) for each in (flat, replace(
        flat, settings=flat.settings.model_copy(update={"joint_encoder_rate": 1.0})
    )))  # fmt: skip
    assert plain.history[-1]["train_loss"] == one.history[-1]["train_loss"]
    assert all(torch.equal(plain.best[name], value) for name, value in one.best.items())


def test_the_decoder_is_frozen_in_the_classification_phase_and_trained_after_it():
    flat = (32, 32)
    chosen = replace(task(num_classification_epochs=2, num_joint_epochs=1), sample_shape=flat)
    train, held_out = (samples(pattern_table(12, flat, 3, first), flat) for first in (0, 100))
    before = chosen.build().state_dict()
    after: list[dict[str, torch.Tensor]] = []

    def keep(now):
        after.append({name: value.clone() for name, value in now.model.state_dict().items()})

    run_epochs(chosen, train, held_out, callbacks=Callbacks(on_epoch=keep))
    changed = [
        {part for part in ("encoder", "decoder", "head")
         if any(not torch.equal(was[name], now[name]) for name in was if name.startswith(part))}
        for was, now in zip([before, *after], after, strict=False)
    ]  # fmt: skip
    # Not even the decoder's batch statistics move.
    assert changed == [{"encoder", "head"}, {"encoder", "head"}, {"encoder", "decoder", "head"}]


def test_without_restoration_the_decoder_is_never_trained():
    chosen = task(lambda_rec=0)
    model = chosen.build()
    chosen.begin_epoch(model, 4)
    assert not any(parameter.requires_grad for parameter in model.decoder.parameters())
    losses = chosen.losses(model, batch(), epoch=4)
    assert "restoration" not in losses
    assert losses["loss"].item() == pytest.approx(0.01 * losses["classification"].item())


FAILING = {
    "val_embedding_variance": 0.5, "val_effective_rank": 5.0, "val_accuracy": 0.3, "val_restoration": 0.2,
    "val_identity": 0.1, "val_blank": 0.1, "train_gradient_norm": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "phase", "told"),
    [
        ({}, "joint", {"classification", "restoration"}),
        ({"lambda_rec": 0}, "joint", {"classification"}),
        ({"lambda_cls": 0}, "joint", {"restoration"}),
        ({"pretext": "models-genesis"}, "restoration", {"restoration"}),
    ],
)
def test_a_part_of_weight_nought_is_not_said_to_fail(settings, phase, told):
    assert task(**settings).warnings([FAILING | {"phase": phase}] * 6).keys() == told


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lambda_rec", "lambda_cls"), [(1.0, 0.01), (0.5, 2.0), (1.0, 0.0)])
def test_the_joint_loss_is_the_weighted_sum_of_mse_and_cross_entropy(lambda_rec, lambda_cls):
    chosen = task(seed=7, lambda_rec=lambda_rec, lambda_cls=lambda_cls)
    model, cubes = chosen.build().eval(), batch()
    ids = torch.from_numpy(cubes.columns["pattern_id"])
    corrupted, original = corrupt(cubes.cubes, Draws.of(7, ids, 3), CORRUPTIONS["semantic-genesis-paper"])
    with torch.no_grad():
        losses = chosen.losses(model, cubes, epoch=3)
        _, logits, restored, *_ = model(corrupted)
    mse = float(np.mean((restored.numpy().astype(np.float64) - original.numpy()) ** 2))
    entropy = cross_entropy(logits, cubes.columns["coordinate"])
    assert losses["restoration"].item() == pytest.approx(mse, rel=1e-4)
    assert losses["classification"].item() == pytest.approx(entropy, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(lambda_rec * mse + lambda_cls * entropy, rel=1e-4)
    hits = logits.argmax(1).numpy() == cubes.columns["coordinate"]
    assert losses["accuracy"].item() == pytest.approx(hits.mean())


def test_the_classification_phase_minimises_cross_entropy_alone():
    chosen = task()
    losses = chosen.losses(chosen.build().eval(), batch(), epoch=0)
    assert losses["loss"].item() == losses["classification"].item()
    assert "restoration" not in losses


def test_labels_count_the_references_and_the_coordinates_in_use():
    """With fewer coordinates than were discovered the stored label is not the class."""
    chosen = task(num_references=2, num_coordinates=2)
    cubes = batch(4)
    cubes.columns["reference"] = np.array([0, 0, 1, 1], np.int32)
    cubes.columns["coordinate"] = np.array([0, 1, 0, 1], np.int16)
    cubes.columns["label"] = np.array([0, 1, 3, 4], np.int32)  # as stored, of C = 3
    model = chosen.build().eval()
    assert chosen.puzzle.num_classes == model.head.linear.out_features == 4
    made = chosen.make_batch(cubes, 0)
    assert made.answers.tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        expected = cross_entropy(model(made.shown).logits, [0, 1, 2, 3])
        assert chosen.losses(model, cubes, 0)["classification"].item() == pytest.approx(expected, rel=1e-4)


def test_evaluation_sums_what_training_averages():
    chosen = task(lambda_rec=0.7, lambda_cls=0.3)
    model, cubes = chosen.build().eval(), batch()
    with torch.no_grad():
        sums = chosen.evaluate(model, cubes)
        vectors = model.encoder.embed(chosen.make_batch(cubes, VALIDATION_EPOCH).shown).double()
        torch.testing.assert_close(sums.pop("embedding"), vectors.sum(0))
        torch.testing.assert_close(sums.pop("outer"), sum(torch.outer(vector, vector) for vector in vectors))
        sums = {name: value.item() for name, value in sums.items()}
        means = {name: value.item() for name, value in chosen.losses(model, cubes, VALIDATION_EPOCH).items()}
        parts = [chosen.evaluate(model, batch(3, first)) for first in (0, 3)]
    assert sums.pop("count") == 6
    draws = Draws.of(0, torch.arange(6), VALIDATION_EPOCH)
    corrupted, original = corrupt(cubes.cubes, draws, CORRUPTIONS["semantic-genesis-paper"])
    identity = float(((corrupted - original) ** 2).mean())
    assert sums.pop("identity") / 6 == pytest.approx(identity, rel=1e-4)
    assert sums.pop("blank") / 6 == pytest.approx(np.mean([cube.var() for cube in original.numpy()]), rel=1e-4)
    # Epoch −1 counts as the classification phase in training: the joint loss is made up here.
    joint = 0.7 * sums["restoration"] + 0.3 * sums["classification"]
    assert sums.pop("loss") == pytest.approx(joint, rel=1e-5)
    for name in ("classification", "accuracy"):
        assert sums[name] / 6 == pytest.approx(means[name], rel=1e-4)
    assert parts[0]["count"] == 3


def test_held_out_cubes_are_corrupted_alike_in_every_epoch_and_training_cubes_are_not():
    chosen, cubes = task(), batch()
    held_out = [chosen.make_batch(cubes, VALIDATION_EPOCH)[0] for _ in range(2)]
    assert torch.equal(*held_out)
    training = [chosen.make_batch(cubes, epoch)[0] for epoch in range(4)]
    assert len({tensor.numpy().tobytes() for tensor in [held_out[0], *training]}) == 5
    reversed_rows = samples(pattern_table(6, SHAPE, 3), SHAPE).batch(np.arange(5, -1, -1))
    assert torch.equal(chosen.make_batch(reversed_rows, VALIDATION_EPOCH)[0].flip(0), held_out[0])


def test_an_evaluated_model_scores_the_same_twice():
    chosen, cubes = task(), batch()
    model = chosen.build().eval()
    with torch.no_grad():
        first, second = (chosen.evaluate(model, cubes) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unlearnt_network_is_near_chance():
    chosen = task(num_coordinates=3)
    with torch.no_grad():
        losses = chosen.losses(chosen.build().eval(), batch(), 0)
    assert losses["classification"].item() == pytest.approx(math.log(3), rel=0.2)


# --- the best epoch -------------------------------------------------------------------------------


def row(phase, loss, classification=1.0):
    return {"phase": phase, "val_loss": loss, "val_classification": classification}


def test_no_epoch_of_the_classification_phase_is_better_than_a_joint_one():
    chosen = task()
    assert chosen.score(row("classification", 0.001)) > chosen.score(row("joint", 1000.0))
    alone = task(num_joint_epochs=0)
    assert alone.score(row("classification", 5.0, 0.4)) == 0.4


def test_patience_counts_joint_epochs_only():
    chosen = task(patience=2, num_joint_epochs=20)
    rows = [row("classification", 0.1)] * 5 + [row("joint", loss) for loss in (3.0, 2.0, 2.5, 2.0, 2.2)]
    stops = [chosen.should_stop(rows[:n]) for n in range(len(rows) + 1)]
    assert stops == [False] * 9 + [True, True]


def test_the_seed_decides_the_weights():
    same, again, other = (task(seed).build().state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["encoder.levels.0.0.weight"], other["encoder.levels.0.0.weight"])


# --- every pretext task ---------------------------------------------------------------------------

PARTS = {
    "semantic-genesis": "cr", "models-genesis": "r", "models-genesis-on-patterns": "r", "self-classification": "c",
    "pattern-contrast": "p", "in-painting": "r", "patch-shuffling": "r", "auto-encoder": "r",
    "in-painting+semantics": "cr", "patch-shuffling+semantics": "cr", "models-genesis+semantics": "cr",
    "rubiks-cube": "c", "rotation": "c", "mae": "r",
}  # fmt: skip


def test_every_pretext_task_is_tested_here():
    assert PARTS.keys() == PRETEXTS.keys()


@pytest.mark.parametrize("shape", [SHAPE, (64, 64)])
@pytest.mark.parametrize("pretext", PARTS)
def test_a_pretext_task_trains_what_it_has_and_reports_it(pretext, shape):
    decay = 0.5 if "contrast" in pretext else None
    schedule = {"num_classification_epochs": 1, "num_joint_epochs": 1, "average_decay": decay}
    chosen = replace(task(pretext=pretext, **schedule), sample_shape=shape)
    train, held_out = (samples(pattern_table(12, shape, 3, first), shape) for first in (0, 100))
    before = chosen.build().state_dict()
    now = run_epochs(chosen, train, held_out)
    names = {"r": "decoder", "c": "head", "p": "projection"}
    parts = {"encoder"} | {names[letter] for letter in PARTS[pretext]}
    after = now.model.state_dict()
    assert {name.partition(".")[0] for name in after} == parts
    for part in parts:
        assert any(not torch.equal(before[name], after[name]) for name in after if name.startswith(part)), part
    row = now.history[-1]
    assert ("val_accuracy" in row) == ("train_classification" in row) == ("c" in PARTS[pretext])
    assert (
        ("val_restoration" in row) == ("val_identity" in row) == ("train_restoration" in row) == ("r" in PARTS[pretext])
    )
    assert ("val_separation" in row) == ("train_contrast" in row) == ("p" in PARTS[pretext])
    phases = {
        "cr": ["classification", "joint"], "r": ["restoration"] * 2, "c": ["classification"] * 2, "p": ["contrast"] * 2,
    }  # fmt: skip
    assert [row["phase"] for row in now.history] == phases[PARTS[pretext]]
    assert 1 <= row["val_effective_rank"] <= now.model.encoder.num_features
    assert 0 <= row["val_embedding_variance"] <= 1 and row["train_gradient_norm"] > 0
    scores = {"c": row.get("val_classification"), "p": -row.get("val_separation", 0)}
    assert chosen.score(row) == scores.get(PARTS[pretext], row.get("val_loss")) < math.inf


def test_the_auto_encoder_is_shown_what_it_restores():
    made = task(pretext="auto-encoder").make_batch(batch(), 3)
    assert torch.equal(made.shown, made.original) and torch.equal(made.original, batch().cubes)
    assert made.answers is None


def noise_is_restored(**settings):
    """The held-out error of independent noise, of which no voxel tells another, and of answering its mean."""
    flat = (32, 32)
    chosen = replace(task(num_joint_epochs=28, base_width=4, learning_rate=3e-3, **settings), sample_shape=flat)
    train, held_out = (samples(pattern_table(48, flat, 1, first), flat) for first in (0, 100))
    row = run_epochs(chosen, train, held_out).history[-1]
    return row["val_restoration"] / row["val_blank"]


def test_the_auto_encoder_cannot_copy_what_a_network_with_skips_copies():
    copied = noise_is_restored(pretext="models-genesis", corruption="none")
    assert copied < 0.3 and noise_is_restored(pretext="auto-encoder") > 0.9


def test_the_control_is_semantic_genesis_without_its_labels():
    """The same cubes, corrupted alike, restored by the same network from the same weights to the same loss."""
    semantic, control = (task(pretext=name) for name in ("semantic-genesis", "models-genesis-on-patterns"))
    assert control.pretext.store == semantic.pretext.store == PATTERNS
    for epoch in (0, 3, VALIDATION_EPOCH):
        theirs, ours = (chosen.make_batch(batch(), epoch) for chosen in (semantic, control))
        assert torch.equal(ours.shown, theirs.shown) and torch.equal(ours.original, theirs.original)
        assert ours.answers is None and theirs.answers is not None
    model, other = control.build().eval(), semantic.build().eval()
    assert model.head is None and control.chance is None
    with torch.no_grad():
        losses, theirs = control.losses(model, batch(), 3), semantic.losses(other, batch(), 3)
    assert losses.keys() == {"loss", "restoration"}
    assert losses["loss"].item() == losses["restoration"].item() == theirs["restoration"].item()
    assert [control.phase(epoch) for epoch in range(5)] == ["restoration"] * 5  # as many epochs, all of restoration


def test_a_corruption_of_ones_own_replaces_the_pretext_tasks():
    chosen = task(pretext="in-painting+semantics", corruption="none")
    made = chosen.make_batch(batch(), 3)
    assert torch.equal(made.shown, made.original) and made.answers.tolist() == [0, 1, 2] * 2


# --- how it is computed: no setting changes what is learnt -----------------------------------------


def one_step(**settings):
    """Losses and gradients of a joint step."""
    chosen = task(num_classification_epochs=0, lambda_cls=1.0, **settings)
    model = chosen.build().train()
    losses = chosen.losses(model, batch(), epoch=0)
    losses["loss"].backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return losses["loss"].item(), gradients, {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize("network", ["unet", "segresnet", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_gradient_checkpointing_gives_the_same_loss_gradients_and_batch_statistics(network):
    width = {"base_width": 8} if network == "segresnet" else {}
    plain, saving = (one_step(network=network, gradient_checkpointing=on, **width) for on in (False, True))
    assert saving[0] == plain[0]
    torch.testing.assert_close(saving[1], plain[1], rtol=1e-4, atol=1e-6)
    assert saving[2].keys() == plain[2].keys()
    for name, value in plain[2].items():
        torch.testing.assert_close(saving[2][name], value, msg=name)


def test_gradient_checkpointing_keeps_less_for_the_backward_pass():
    def kept(**settings):
        chosen = task(num_classification_epochs=0, base_width=4, **settings)
        model, sizes = chosen.build().train(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            chosen.losses(model, batch(), epoch=0)
        return sum(sizes)

    assert kept(gradient_checkpointing=True) < 0.5 * kept()


def test_contiguous_memory_gives_the_same_step():
    last, contiguous = one_step(), one_step(channels_last=False)
    assert contiguous[0] == pytest.approx(last[0], rel=1e-5)
    assert (contiguous[1] - last[1]).norm() < 0.02 * last[1].norm()
    formats = {on: task(channels_last=on).make_batch(batch(), 0).shown for on in (True, False)}
    assert formats[False].is_contiguous() and formats[True].is_contiguous(memory_format=torch.channels_last_3d)


def test_bf16_computes_in_bf16_and_keeps_weights_and_losses_in_float32():
    chosen = task(precision="bf16", num_classification_epochs=0)
    model, seen = chosen.build(), set()
    model.encoder.levels[1][0].register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    losses = chosen.losses(model, batch(), epoch=0)
    losses["loss"].backward()
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    exact = task(num_classification_epochs=0).losses(task().build(), batch(), epoch=0)
    assert losses["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.02)


def test_a_compiled_network_has_the_same_names_and_losses():
    torch._dynamo.reset()
    chosen = task(compile=True, num_classification_epochs=0)
    model = chosen.build()
    assert model.state_dict().keys() == task().build().state_dict().keys()
    assert model._compiled_call_impl is not None


@pytest.mark.slow
def test_a_compiled_step_is_the_plain_step():
    torch._dynamo.reset()
    plain, compiled = one_step(), one_step(compile=True)
    assert compiled[0] == pytest.approx(plain[0], rel=1e-4)
    assert (compiled[1] - plain[1]).norm() < 0.02 * plain[1].norm()


# --- adding a task --------------------------------------------------------------------------------


def rising(num, first):
    """Cubes that brighten along their first axis, with some noise."""
    table = pattern_table(num, (32, 32), 3, first)
    noise = np.random.default_rng(first).random((num, 32, 32))
    cubes = 0.6 * np.linspace(0, 1, 32)[None, :, None] + 0.4 * noise
    cells = pa.array([encode(cube.astype(np.float32)) for cube in cubes], pa.binary())
    return samples(table.set_column(table.column_names.index("cube"), "cube", cells), (32, 32))


def test_the_task_that_the_page_adds_is_learnt():
    """By the same loop: which of these cubes stand on their heads can be seen at a glance."""
    page = (Path(task_module.__file__).parent / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    before = dict(PRETEXTS), dict(PUZZLES)
    try:
        exec(snippet, {})
        chosen = task(pretext="upside-down", num_classification_epochs=6, num_joint_epochs=1, learning_rate=0.01)
        now = run_epochs(replace(chosen, sample_shape=(32, 32)), rising(60, 0), rising(24, 100))
        assert now.history[-1]["val_accuracy"] > 0.9
    finally:
        for table, was in zip((PRETEXTS, PUZZLES), before, strict=True):
            table.clear()
            table.update(was)


def test_entries_that_a_script_adds_go_to_the_workers_with_the_task():
    with pytest.MonkeyPatch.context() as added:
        added.setitem(CORRUPTIONS, "mild", replace(CORRUPTIONS["models-genesis"], name="mild", paint_probability=0.1))
        added.setitem(PRETEXTS, "mild", replace(PRETEXTS["models-genesis"], corruption="mild"))
        here = task(pretext="mild")
        sent = pickle.dumps(here)
        expected = here.make_batch(batch(), 0)
    there = pickle.loads(sent).make_batch(batch(), 0)
    assert torch.equal(there.shown, expected.shown) and torch.equal(there.original, expected.original)
