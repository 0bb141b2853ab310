"""What training and fine-tuning do for a device: send to it and read from it without waiting, and run it fast."""

from __future__ import annotations

import torch
from torch import nn

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


def prefer_speed(device: torch.device | str) -> None:
    """Let a GPU try cuDNN's algorithms for each shape that comes, and multiply fp32 matrices in TF32; a CPU stays."""
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")


def is_fused(network: nn.Module) -> bool | None:
    """Whether Adam updates the network's weights in one kernel, which does not wait for the scale of a loss either.

    None, torch's own choice, on a CPU: the kernel rounds otherwise, and a training step is only 2 to 4 % shorter.
    """
    return True if next(network.parameters()).device.type == "cuda" else None
