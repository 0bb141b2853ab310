"""The moving average of a model's weights and buffers."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """Move an average towards the model, whose weights and buffers it takes over at first.

    As `AveragedModel.update_parameters` does, which copies its counter to the device and waits for that each time.
    """
    own_tensors, new_tensors = (chain(each.parameters(), each.buffers()) for each in (average.module, model))
    pairs = list(zip(own_tensors, new_tensors, strict=True))
    if average.n_averaged == 0:
        for own, new in pairs:
            own.copy_(new)
    else:
        update = get_ema_multi_avg_fn(decay)
        for is_float in (True, False):
            chosen = [pair for pair in pairs if pair[0].is_floating_point() == is_float]
            if chosen:
                update([own for own, _ in chosen], [new for _, new in chosen], average.n_averaged)
    average.n_averaged += 1
