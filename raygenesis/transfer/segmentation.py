"""Training a segmentation network on a few cases, and segmenting whole scans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from numpy.typing import NDArray
from torch import nn

from raygenesis.transfer.cases import Case
from raygenesis.transfer.learning import MEMORY_FORMAT, TrainingOutcome, to_device, train
from raygenesis.transfer.metrics import SegmentedCase, overlap
from raygenesis.transfer.setup import TrialSetup


def train_segmenter(
    unet: nn.Module, cases: Sequence[Case], setup: TrialSetup, seed: int, validation: Sequence[Case] = ()
) -> TrainingOutcome:
    """Train a segmentation network in place on batches of random patches of `setup.form.input_shape`.

    The loss is soft Dice over the foreground classes, each pooled over the batch, as patches without a class are
    common. validation: cases by whose mean Dice the best weights are kept.
    """
    settings, patch_shape, device = setup.settings, setup.form.input_shape, setup.device
    to_device(unet, device)
    foregrounds = [np.flatnonzero(case.label) for case in cases if case.label is not None]

    def draw_batch(generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = draw_patches(cases, foregrounds, patch_shape, settings.batch_size, generator)
        on_device = torch.from_numpy(images).to(device, memory_format=MEMORY_FORMAT[images.ndim])
        return on_device, torch.from_numpy(labels).to(device)

    def validate() -> float:
        predicted = (segment(unet, case.image, patch_shape, settings.batch_size) for case in validation)
        pairs = zip(validation, predicted, strict=True)
        return float(np.mean([overlap_of(case, found, setup.num_classes).dice for case, found in pairs]))

    loss_of = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    return train(unet, draw_batch, loss_of, settings, seed, validate if validation else None)


def draw_patches(
    cases: Sequence[Case],
    foregrounds: Sequence[NDArray[np.int64]],
    patch_shape: Sequence[int],
    batch_size: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw images and labels [batch_size, 1, z, y, x] of random cases; every other patch is centred on foreground.

    foregrounds: flat indices of each case's foreground voxels. A centre that is too near the edge moves inwards.
    """
    patch = np.array(patch_shape)
    images, labels = [], []
    for number in range(batch_size):
        chosen = int(generator.integers(len(cases)))
        case, label, foreground = cases[chosen], cases[chosen].label, foregrounds[chosen]
        assert label is not None
        room = np.array(label.shape) - patch
        if number % 2 == 0 and len(foreground):
            centre = np.unravel_index(generator.choice(foreground), label.shape)
            corner = np.clip(np.array(centre) - patch // 2, 0, room)
        else:
            corner = generator.integers(room + 1)
        window = tuple(slice(begin, begin + side) for begin, side in zip(corner, patch, strict=True))
        images.append(case.image[window])
        labels.append(label[window])
    return np.stack(images)[:, None].astype(np.float32), np.stack(labels)[:, None]


@torch.inference_mode()
def segment(
    unet: nn.Module, image: NDArray[np.floating], patch_shape: Sequence[int], batch_size: int
) -> NDArray[np.uint8]:
    """Segment a whole image [z, y, x] of at least `patch_shape`; returns the class of each voxel.

    Sliding windows of `patch_shape`, `batch_size` at a time, overlap by half; their logits are averaged with Gaussian
    weights.
    """
    weight = next(unet.parameters())
    whole = torch.tensor(image, dtype=torch.float32, device=weight.device)[None, None]
    logits = sliding_window_inference(whole, patch_shape, batch_size, unet.eval(), overlap=0.5, mode="gaussian")
    assert isinstance(logits, torch.Tensor)
    return logits.argmax(1)[0].to(torch.uint8).cpu().numpy()


def overlap_of(case: Case, predicted: NDArray[np.uint8], num_classes: int) -> SegmentedCase:
    """Compare a predicted label map with the case's label, without the padding round the scan."""
    assert case.grid is not None and case.label is not None
    within = case.grid.within
    found = overlap(predicted[within], case.label[within], num_classes)
    return SegmentedCase(case.name, case.subject, **vars(found))
