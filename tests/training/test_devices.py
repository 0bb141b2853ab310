"""To a device and back."""

from __future__ import annotations

import torch

from raygenesis.training.devices import send, steps_a_reading


def test_what_is_there_is_not_copied_and_a_cpu_is_read_after_each_step() -> None:
    values = torch.arange(3)
    assert send(values, "cpu") is values
    assert send(values, "meta").device.type == "meta"
    assert steps_a_reading("cpu") == 1 < steps_a_reading("cuda:1")
