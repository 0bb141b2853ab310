"""Learning to segment from a few cases, segmenting a whole scan, and scoring it; no Ray here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.metrics import compute_dice, compute_iou
from monai.networks.utils import one_hot
from numpy.typing import NDArray

from raygenesis.config import FinetuneSettings
from raygenesis.pretraining.networks import UNet
from raygenesis.transfer.target import Case

# Narrow convolutions run twice as fast on a CPU with channels last.
MEMORY_FORMAT = {2: torch.channels_last, 3: torch.channels_last_3d}


def train_segmenter(
    unet: UNet, cases: Sequence[Case], settings: FinetuneSettings, patch_shape: Sequence[int], seed: int,
    device: str = "cpu",
) -> list[float]:
    """Train in place for `num_steps` batches of random patches; returns the loss of each step.

    The loss is soft Dice over the foreground classes, each pooled over the batch: patches without it are common.
    """
    memory_format = MEMORY_FORMAT[len(patch_shape)]
    unet.to(device, memory_format=memory_format).train()
    optimizer = torch.optim.Adam(unet.parameters(), settings.learning_rate)
    loss_of = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    generator = np.random.default_rng(seed)
    foregrounds = [np.flatnonzero(case.label) for case in cases]
    losses = []
    for _ in range(settings.num_steps):
        images, labels = draw_patches(cases, foregrounds, patch_shape, settings.batch_size, generator)
        logits = unet(torch.from_numpy(images).to(device, memory_format=memory_format))
        loss = loss_of(logits, torch.from_numpy(labels).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def draw_patches(
    cases: Sequence[Case],
    foregrounds: Sequence[NDArray[np.int64]],
    patch_shape: Sequence[int],
    batch_size: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Images and labels [batch_size, 1, z, y, x] of random cases; every other patch is centred on foreground.

    foregrounds: flat indices of each case's foreground voxels. A centre too near the edge moves inwards.
    """
    patch = np.array(patch_shape)
    images, labels = [], []
    for number in range(batch_size):
        chosen = int(generator.integers(len(cases)))
        case, foreground = cases[chosen], foregrounds[chosen]
        room = np.array(case.label.shape) - patch
        if number % 2 == 0 and len(foreground):
            centre = np.unravel_index(generator.choice(foreground), case.label.shape)
            corner = np.clip(np.array(centre) - patch // 2, 0, room)
        else:
            corner = generator.integers(room + 1)
        window = tuple(slice(begin, begin + side) for begin, side in zip(corner, patch, strict=True))
        images.append(case.image[window])
        labels.append(case.label[window])
    return np.stack(images)[:, None], np.stack(labels)[:, None]


@torch.inference_mode()
def segment(
    unet: UNet, image: NDArray[np.float32], patch_shape: Sequence[int], batch_size: int
) -> NDArray[np.uint8]:
    """Classes of a whole image [z, y, x], at least of `patch_shape`: windows half overlapping, Gaussian weights."""
    weight = next(unet.parameters())
    whole = torch.tensor(image, device=weight.device)[None, None]
    logits = sliding_window_inference(whole, patch_shape, batch_size, unet.eval(), overlap=0.5, mode="gaussian")
    return logits.argmax(1)[0].to(torch.uint8).cpu().numpy()


def score(predicted: NDArray[np.uint8], label: NDArray[np.uint8], num_classes: int) -> dict[str, Any]:
    """Dice and IoU, each class's (background left out) and their mean.

    A class that is in neither counts 1, one that is predicted and not there 0.
    """
    masks = [one_hot(torch.tensor(classes)[None, None].long(), num_classes) for classes in (predicted, label)]
    dice = compute_dice(*masks, include_background=False, ignore_empty=False)[0].tolist()
    iou = compute_iou(*masks, include_background=False, ignore_empty=False)[0].tolist()
    return {
        "dice": float(np.mean(dice)), "iou": float(np.mean(iou)), "dice_per_class": dice, "iou_per_class": iou,
    }  # fmt: skip
