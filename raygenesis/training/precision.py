"""Precisions of a forward pass, by the names that settings have for them."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: str, precision: str) -> torch.autocast:
    """The context of a forward pass on a device, such as `cpu` or `cuda`, in a precision of `PRECISIONS`."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device, dtype, enabled=dtype is not None)
