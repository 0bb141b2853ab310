"""To a device and back."""

from __future__ import annotations

import torch
from torch import nn

from raygenesis.training.devices import is_fused, prefer_speed, send, steps_a_reading


def test_what_is_there_is_not_copied_and_a_cpu_is_read_after_each_step() -> None:
    values = torch.arange(3)
    assert send(values, "cpu") is values
    assert send(values, "meta").device.type == "meta"
    assert steps_a_reading("cpu") == 1 < steps_a_reading("cuda:1")


def test_a_gpu_is_told_to_be_fast_and_a_cpu_left_as_it_is() -> None:
    try:
        prefer_speed("cpu")
        assert not torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "highest"
        prefer_speed("cuda:0")
        assert torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision("highest")


def test_on_a_cpu_adam_stays_torchs_choice() -> None:
    network = nn.Linear(2, 2)
    assert is_fused(network) is None
    assert (
        torch.optim.Adam(network.parameters(), fused=is_fused(network)).state_dict()["param_groups"][0]["fused"] is None
    )
