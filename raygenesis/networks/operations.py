"""What a network costs a sample in operations and activations, counted on shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raygenesis.cluster.work import Load

NUM_SAMPLES = 2  # batch norm needs more than one


def count_operations(
    model: nn.Module, shape: Sequence[int], forward: Callable[..., Any] | None = None, num_images: int = 1
) -> Load:
    """Count the operations and activations of training on one sample, forward and backward.

    Nothing is computed: the model moves to torch's meta device. A third of the operations is the forward pass.

    Args:
        model: The network; images are [n, 1, *shape].
        shape: Spatial sides of an image.
        forward: What is called with the images; the model itself when None.
        num_images: Images that one sample consists of.
    """
    model = model.to("meta").train()
    num_activations = 0

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal num_activations
        num_activations += output.numel() if isinstance(output, torch.Tensor) else 0

    hooks = [layer.register_forward_hook(add) for layer in model.modules() if not list(layer.children())]
    images = torch.empty(NUM_SAMPLES * num_images, 1, *shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        outputs = (forward or model)(images)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        torch.stack([output.sum() for output in outputs if isinstance(output, torch.Tensor)]).sum().backward()
    for hook in hooks:
        hook.remove()
    return Load(counter.get_total_flops() / NUM_SAMPLES / 1e9, num_activations / NUM_SAMPLES / 1e6)
