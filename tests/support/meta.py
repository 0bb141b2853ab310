"""Torch's `meta` device, on which nothing has a value: what asks for one, or mixes in a tensor of the CPU, raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from raygenesis.training.precision import PRECISIONS

CAST = (torch.conv2d, torch.conv3d, torch.conv_transpose2d, torch.conv_transpose3d, functional.linear, torch.matmul)


class Cast(TorchFunctionMode):
    """What autocast, which knows no meta tensors, does to convolutions and linear maps."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in CAST:
            args = [arg.to(self.dtype) if isinstance(arg, torch.Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))


def meta_autocast(device: str, precision: str) -> Any:
    """For `training.precision.autocast` on the meta device."""
    assert device == "meta"
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else Cast(dtype)
