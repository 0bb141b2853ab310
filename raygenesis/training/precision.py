"""Precisions of a forward pass, by the names that settings have for them."""

from __future__ import annotations

from functools import cache

import torch

AUTO = "auto"
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def fastest_precision(device: str) -> str:
    """The precision that a device of this process, `cpu` or `cuda`, is fastest in without a loss in training.

    It is bf16 on GPUs that compute in it (NVIDIA's since Ampere), and on CPUs with AMX; otherwise fp32.
    """
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu.get_capabilities().get("amx_bf16") else "fp32"


def resolved(precision: str, device: str) -> str:
    """A precision of `PRECISIONS`: for `auto` the device's fastest, otherwise the one that is given."""
    return fastest_precision(device) if precision == AUTO else precision


def autocast(device: str, precision: str) -> torch.autocast:
    """The context of a forward pass on a device, such as `cpu` or `cuda`, in a precision of `PRECISIONS`, or `auto`."""
    dtype = PRECISIONS[resolved(precision, device)]
    return torch.autocast(device, dtype, enabled=dtype is not None)
