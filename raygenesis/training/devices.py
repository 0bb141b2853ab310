"""To a device and back without waiting for what it computes, or not often."""

from __future__ import annotations

import torch

# Steps whose figures are read together: a GPU goes on computing in between, and is waited for once.
STEPS_A_READING = {"cuda": 16}


def steps_a_reading(device: torch.device | str) -> int:
    """The number of steps after which figures are read from a device; 1 where reading them costs nothing."""
    return STEPS_A_READING.get(torch.device(device).type, 1)


def send(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy a tensor from the CPU to a device, in the order of the device's work; the same tensor where it is there.

    A GPU copies from pinned memory while this process goes on; from other memory it would first finish its work.
    """
    if torch.device(device).type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
