"""What a network costs a sample, counted on shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raygenesis.cluster.work import Load

SAMPLES = 2  # batch norm wants more than one


def load_of(
    model: nn.Module, shape: Sequence[int], forward: Callable[..., Any] | None = None, num_images: int = 1
) -> Load:
    """The load of training on one sample, forward and backward; a third of it is the forward pass.

    A sample is `num_images` images of `shape`. forward: of the model; its call when None. Nothing is computed: the
    model moves to torch's meta device.
    """
    model = model.to("meta").train()
    put_out = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal put_out
        put_out += output.numel() if isinstance(output, torch.Tensor) else 0

    hooks = [part.register_forward_hook(count) for part in model.modules() if not list(part.children())]
    images = torch.empty(SAMPLES * num_images, 1, *shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        answers = (forward or model)(images)
        answers = answers if isinstance(answers, (tuple, list)) else (answers,)
        torch.stack([answer.sum() for answer in answers if isinstance(answer, torch.Tensor)]).sum().backward()
    for hook in hooks:
        hook.remove()
    return Load(counter.get_total_flops() / SAMPLES / 1e9, put_out / SAMPLES / 1e6)
