"""Training: when it stops, what it keeps, and when it had converged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from raygenesis.settings import FinetuneSettings
from raygenesis.training.experiment import TrainingError
from raygenesis.transfer.learning import (
    TrainingOutcome,
    num_decoder_steps,
    num_until_converged,
    rate_factor,
    set_training,
    smoothed,
    steps_with_validation,
    train,
)


def chosen(**changed: Any) -> FinetuneSettings:
    usual = {"num_steps": 40, "learning_rate": 0.05, "batch_size": 4, "schedule": "constant", "weight_decay": 0}
    return FinetuneSettings(**{**usual, **changed})


def line(generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """y = 3x + 1."""
    x = torch.from_numpy(generator.random((4, 1), np.float32))
    return x, 3 * x + 1


def learn(network: nn.Module, validate: Callable[[], float] | None = None, **changed: Any) -> TrainingOutcome:
    return train(network, line, functional.mse_loss, chosen(**changed), 0, validate)


def new_network(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(1, 1)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 40, 100])
def test_the_rate_rises_and_falls_as_torchs_schedulers_say(num_steps: int) -> None:
    settings = chosen(schedule="cosine", num_steps=num_steps)
    rising = max(1, round(num_steps / 10))
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 1.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps - rising + 1)
    expected = [(step + 1) / rising for step in range(rising)]
    for _ in range(num_steps - rising):
        optimizer.step()
        falling.step()
        expected.append(optimizer.param_groups[0]["lr"])
    found = [rate_factor(step, settings) for step in range(1, num_steps + 1)]
    assert found == pytest.approx(expected, abs=1e-9) and max(found) == 1 and min(found) > 0
    assert {rate_factor(step, chosen()) for step in range(1, 41)} == {1.0}


def test_the_schedule_is_what_is_trained_with() -> None:
    losses = {name: learn(new_network(), schedule=name).losses for name in ("constant", "cosine")}
    assert losses["constant"][0] == losses["cosine"][0] and losses["constant"][2] != losses["cosine"][2]


@pytest.mark.parametrize(
    ("num_steps", "share", "num_first"), [(100, 0.2, 20), (7, 0.5, 4), (40, 0.001, 1), (2, 0.9, 1)]
)
def test_with_the_decoder_first_the_rate_rises_and_falls_twice(num_steps: int, share: float, num_first: int) -> None:
    whole = chosen(schedule="cosine", num_steps=num_steps, decoder_first=share)
    assert num_decoder_steps(whole) == num_first and num_decoder_steps(chosen(num_steps=num_steps)) == 0
    expected = [
        rate_factor(step, chosen(schedule="cosine", num_steps=part))
        for part in (num_first, num_steps - num_first)
        for step in range(1, part + 1)
    ]
    assert [rate_factor(step, whole) for step in range(1, num_steps + 1)] == pytest.approx(expected)


class Coded(nn.Module):
    """An encoder with batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(images))


def test_the_encoder_waits_with_its_statistics_until_the_decoder_has_learnt() -> None:
    network = Coded()
    network.train()(torch.rand(8, 1))  # statistics to keep
    encoder, head = (
        [value.clone() for value in part.state_dict().values()] for part in (network.encoder, network.head)
    )
    seen: list[tuple[bool, bool]] = []

    def validate() -> float:
        network.eval()
        seen.append(tuple(
            all(torch.equal(*pair) for pair in zip(before, part.state_dict().values(), strict=True))
            for before, part in ((encoder, network.encoder), (head, network.head))
        ))  # fmt: skip
        return len(seen)

    learn(network, validate, decoder_first=0.3, num_steps=20, weight_decay=0.1)
    assert seen == [(True, False)] * 6 + [(False, False)] * 14
    assert all(weight.requires_grad for weight in network.parameters())


def test_a_frozen_encoder_stays_frozen_after_the_decoder_s_steps() -> None:
    network = Coded()
    network.encoder.requires_grad_(False)
    before = [value.clone() for value in network.encoder.state_dict().values()]
    learn(network, decoder_first=0.5, num_steps=6)
    assert all(torch.equal(*pair) for pair in zip(before, network.encoder.state_dict().values(), strict=True))


def test_patience_does_not_end_training_while_the_encoder_waits() -> None:
    network = Coded()
    validate = iter([0.5] * 20)
    learnt = learn(network, lambda: next(validate), decoder_first=0.5, num_steps=20, patience=1)
    assert len(learnt.losses) == 12  # no better than the first validation of the second phase, and not than before it


def test_norms_without_statistics_learn_them_while_the_encoder_waits_and_others_keep_theirs() -> None:
    for seen in (False, True):
        network = Coded()
        norm = network.encoder[1]
        if seen:
            network.train()(torch.rand(8, 1))
        before = norm.running_mean.clone()
        learn(network, None, decoder_first=0.9, num_steps=2)  # of the two steps the first waits
        first = norm.num_batches_tracked.item() - int(seen)
        assert first == (1 if seen else 2) and not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weights_decay_as_by_adamw_and_without_decay_it_is_adam(decay: float) -> None:
    network, other = new_network(), new_network()
    learn(network, num_steps=7, weight_decay=decay)
    optimizer = torch.optim.Adam(other.parameters(), 0.05)
    generator = np.random.default_rng(0)
    for _ in range(7):
        images, targets = line(generator)
        optimizer.zero_grad()
        functional.mse_loss(other(images), targets).backward()
        with torch.no_grad():
            for weight in other.parameters():
                weight.mul_(1 - 0.05 * decay)
        optimizer.step()
    assert torch.allclose(network.weight, other.weight, atol=1e-7) and torch.allclose(
        network.bias, other.bias, atol=1e-7
    )


def test_bf16_is_what_the_network_computes_in_and_not_the_loss() -> None:
    kinds = []

    class Watched(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            kinds.append(super().forward(images).dtype)
            return super().forward(images)

    def loss_of(out: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        kinds.append(out.dtype)
        return functional.mse_loss(out, targets)

    for precision in ("fp32", "bf16"):
        train(Watched(1, 1), line, loss_of, chosen(num_steps=1, precision=precision), 0)
    assert kinds == [torch.float32, torch.float32, torch.bfloat16, torch.float32]


def scored(network: nn.Module, scores: Sequence[float]) -> tuple[Callable[[], float], list[torch.Tensor]]:
    """Scores one after another, the last for ever, and the weights that each was given to."""
    seen: list[torch.Tensor] = []

    def validate() -> float:
        network.eval()
        seen.append(network.weight.detach().clone())
        return scores[min(len(seen), len(scores)) - 1]

    return validate, seen


def test_it_learns_and_repeats_itself() -> None:
    first, second = new_network(), new_network()
    learnt = learn(first, num_steps=400)
    assert learnt.losses == learn(second, num_steps=400).losses and len(learnt.losses) == 400
    assert torch.equal(first.weight, second.weight)
    assert first.weight.item() == pytest.approx(3, abs=0.1) and first.bias.item() == pytest.approx(1, abs=0.1)
    assert learn(new_network(), num_steps=10).losses == learnt.losses[:10]
    assert learnt.seconds_per_step > 0


def test_the_seed_draws_the_batches() -> None:
    learnt = [train(new_network(), line, functional.mse_loss, chosen(), seed).losses for seed in (0, 1)]
    assert learnt[0] != learnt[1]


def test_the_best_weights_are_kept() -> None:
    network = new_network()
    validate, seen = scored(network, [0.1, 0.5, 0.9, 0.3, 0.2])
    learnt = learn(network, validate)
    assert len(seen) == 20 and len(learnt.losses) == 40
    assert torch.equal(network.weight, seen[2]) and learnt.converged_at == 3 * 2  # two steps a validation
    assert learnt.scores[:4] == ((2, 0.1), (4, 0.5), (6, 0.9), (8, 0.3)) and learnt.scores[-1] == (40, 0.2)


@pytest.mark.parametrize("num_steps", [1, 3, 19, 20, 21, 39, 40, 70, 399])
def test_there_are_twenty_validations_and_the_last_step_has_one(num_steps: int) -> None:
    after = steps_with_validation(num_steps)
    assert len(after) == min(20, num_steps) and after[-1] == num_steps
    gaps = np.diff([0, *after])
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_weights_of_the_last_step_can_be_the_best_and_converged_is_counted_in_steps() -> None:
    network = new_network()
    validate, seen = scored(network, [*np.linspace(0, 0.5, 19), 1.0])
    learnt = learn(network, validate, num_steps=39)
    assert len(seen) == 20 and len(learnt.losses) == learnt.converged_at == 39
    assert torch.equal(network.weight, seen[-1])


@pytest.mark.parametrize(("scores", "patience", "num"), [
    ([0.1, 0.5, 0.4], 3, 5), ([0.9, 0.8], 1, 2), ([0.5], 4, 5), ([0.1, 0.2, 0.15, 0.3, 0.1], 2, 6),
    ([0.1, 0.5, 0.4], None, 20),
])  # fmt: skip
def test_it_stops_after_as_many_validations_as_are_no_better(
    scores: list[float], patience: int | None, num: int
) -> None:
    network = new_network()
    validate, seen = scored(network, scores)
    learnt = learn(network, validate, patience=patience)
    assert len(seen) == num and len(learnt.losses) == 2 * num
    assert [step for step, _ in learnt.scores] == list(range(2, 2 * num + 1, 2))


def test_a_loss_that_is_no_number_is_one_sentence() -> None:
    def batches(generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((4, 1), 1e30), torch.zeros(4, 1)

    with pytest.raises(TrainingError, match=r"^the loss is inf at step 1: lower finetune\.learning_rate$"):
        train(new_network(), batches, functional.mse_loss, chosen(), 0)


def test_frozen_parts_keep_their_statistics_and_others_do_not() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3)), nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1)),
    )  # fmt: skip
    network[0].requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def validate() -> float:
        network.eval()  # as an evaluation does
        return 0.5

    learn(network, validate)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("0."), name


def test_what_has_no_weights_is_trained_with_the_rest() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    network.eval()
    set_training(network)
    assert network[1].training


def test_means_are_over_a_tenth_of_all_steps() -> None:
    assert smoothed([4.0, 2.0, 6.0]) == [4.0, 2.0, 6.0]
    assert smoothed(list(range(20))) == pytest.approx([n + 0.5 for n in range(19)])


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_converged_is_where_95_percent_of_the_way_is_come(scores: list[float]) -> None:
    number = num_until_converged(scores)
    way = max(scores) - scores[0]
    assert scores[number - 1] - scores[0] >= 0.95 * way - 1e-9
    assert all(score - scores[0] < 0.95 * way + 1e-9 for score in scores[: number - 1])


@pytest.mark.parametrize(("scores", "number"), [
    ([0.5], 1), ([0.0, 0.5, 0.94, 0.96, 1.0], 4), ([0.9, 0.5, 0.1], 1), ([-3.0, -1.1, -1.0], 2), ([0.2, 0.2], 1),
])  # fmt: skip
def test_converged_by_example(scores: list[float], number: int) -> None:
    assert num_until_converged(scores) == number


def test_without_validation_the_loss_says_when() -> None:
    learnt = learn(new_network(), num_steps=200)
    assert learnt.converged_at == num_until_converged(
        [-loss for loss in np.convolve(learnt.losses, [0.05] * 20, "valid")]
    )
