"""Training a segmentation network on a few cases, and segmenting whole scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from raygenesis.settings import FinetuneSettings
from raygenesis.training.devices import send
from raygenesis.training.precision import autocast
from raygenesis.transfer.augmentation import augment, margin_of
from raygenesis.transfer.cases import Case
from raygenesis.transfer.learning import MEMORY_FORMAT, TrainingOutcome, to_device, train
from raygenesis.transfer.metrics import SegmentedCase, overlap
from raygenesis.transfer.setup import TrialSetup

# One patch of so many is drawn anywhere, whatever is there.
ANYWHERE = 3
# Of a class in a case no more voxels than this are centres of patches: an even sample is as good, and bounds memory.
MAX_CENTRES = 10_000
# Share of a window that the next one covers again, in testing and in the validations of a training.
OVERLAP, VALIDATION_OVERLAP = 0.5, 0.0


def train_segmenter(
    unet: nn.Module, cases: Sequence[Case], setup: TrialSetup, seed: int, validation: Sequence[Case] = ()
) -> TrainingOutcome:
    """Train a segmentation network in place on batches of random patches of `setup.form.input_shape`.

    validation: cases by whose mean Dice the best weights are kept.
    """
    settings, patch_shape, device = setup.settings, setup.form.input_shape, setup.device
    augmentation = setup.augmentation
    to_device(unet, device)
    centres = find_centres(cases)
    margin = margin_of(patch_shape) if augmentation else (0,) * len(patch_shape)

    def draw_batch(generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = draw_patches(cases, centres, patch_shape, settings.batch_size, generator, margin)
        images, labels = (send(torch.from_numpy(array), device) for array in drawn)
        if augmentation is not None:
            images, changed = augment(images, labels, augmentation, generator)
            assert changed is not None
            labels = changed
        return images.contiguous(memory_format=MEMORY_FORMAT[images.ndim]), labels

    def validate() -> float:
        predicted = (
            segment(unet, case.image, patch_shape, settings.batch_size, settings.precision, VALIDATION_OVERLAP)
            for case in validation
        )
        pairs = zip(validation, predicted, strict=True)
        return float(np.mean([overlap_of(case, found, setup.num_classes).dice for case, found in pairs]))

    return train(unet, draw_batch, _loss(settings), settings, seed, validate if validation else None)


def _loss(settings: FinetuneSettings) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Soft Dice over the foreground classes, each pooled over the batch, as patches without a class are common.

    By `finetune.loss` cross-entropy of all classes is added.
    """
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    if settings.loss == "dice":
        return dice
    balanced = settings.class_balance == "weights"
    return lambda logits, labels: dice(logits, labels) + cross_entropy(logits, labels, balanced)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, balanced: bool) -> torch.Tensor:
    """Mean cross-entropy of logits [n, classes, …] and labels [n, 1, …].

    balanced: a voxel weighs by the inverse root of the number of voxels of its class in the batch. Background, which is
    nearly all of it, would otherwise keep small structures from being found at all in a short training.
    """
    classes = labels[:, 0].long()
    ones = classes.new_ones(1).expand(classes.numel())
    counts = classes.new_zeros(logits.shape[1]).scatter_add_(0, classes.flatten(), ones)
    weight = counts.clamp(min=1).to(logits.dtype).rsqrt() if balanced else None
    return functional.cross_entropy(logits, classes, weight)


@dataclass(frozen=True)
class ClassCentres:
    """Where patches of one class may be centred: the cases that have it, and flat indices of its voxels in each."""

    cases: tuple[int, ...]
    voxels: tuple[NDArray[np.int32], ...]


def find_centres(cases: Sequence[Case]) -> list[ClassCentres]:
    """The centres of patches of each foreground class that the cases have, in the order of the classes."""
    found: dict[int, dict[int, NDArray[np.int32]]] = {}
    for number, case in enumerate(cases):
        assert case.label is not None
        label = case.label.ravel()
        foreground = np.flatnonzero(label).astype(np.int32)
        foreground = foreground[np.argsort(label[foreground], kind="stable")]
        values, begins = np.unique(label[foreground], return_index=True)
        for value, voxels in zip(values.tolist(), np.split(foreground, begins[1:]), strict=False):
            step = -(-len(voxels) // MAX_CENTRES)
            found.setdefault(value, {})[number] = voxels[::step].copy()  # and not a view that keeps all
    return [ClassCentres(tuple(found[value]), tuple(found[value].values())) for value in sorted(found)]


def draw_patches(
    cases: Sequence[Case], centres: Sequence[ClassCentres], patch_shape: Sequence[int], batch_size: int,
    generator: np.random.Generator, margin: Sequence[int] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:  # fmt: skip
    """Draw images and labels [batch_size, 1, z, y, x]; of every three patches one lies anywhere in any case.

    The others are centred on a voxel of a class that is drawn evenly from `centres`, in one of the cases that have it.
    A centre that is too near the edge moves inwards. margin: voxels that each patch is cut larger by on either side of
    an axis; beyond a case's edge there is what lies on the edge.
    """
    patch = np.array(patch_shape)
    around = np.zeros_like(patch) if margin is None else np.array(margin)
    images, labels = [], []
    for number in range(batch_size):
        if number % ANYWHERE == ANYWHERE - 1 or not centres:
            case = cases[int(generator.integers(len(cases)))]
            corner = generator.integers(np.array(case.image.shape) - patch + 1)
        else:
            of_class = centres[int(generator.integers(len(centres)))]
            chosen = int(generator.integers(len(of_class.cases)))
            case = cases[of_class.cases[chosen]]
            centre = np.unravel_index(generator.choice(of_class.voxels[chosen]), case.image.shape)
            corner = np.clip(np.array(centre) - patch // 2, 0, np.array(case.image.shape) - patch)
        assert case.label is not None
        window = np.ix_(*(
            np.clip(np.arange(begin - more, begin + side + more), 0, whole - 1)
            for begin, side, more, whole in zip(corner, patch, around, case.image.shape, strict=True)
        ))  # fmt: skip
        images.append(case.image[window])
        labels.append(case.label[window])
    return np.stack(images)[:, None].astype(np.float32), np.stack(labels)[:, None]


@torch.inference_mode()
def segment(
    unet: nn.Module, image: NDArray[np.floating], patch_shape: Sequence[int], batch_size: int, precision: str = "fp32",
    overlap: float = OVERLAP,
) -> NDArray[np.uint8]:  # fmt: skip
    """Segment a whole image [z, y, x] of at least `patch_shape`; returns the class of each voxel.

    Sliding windows of `patch_shape`, `batch_size` at a time, overlap by a share of their sides; their logits are
    averaged with Gaussian weights. precision: as `finetune.precision` has it.
    """
    weight = next(unet.parameters())
    whole = torch.tensor(image, dtype=torch.float32, device=weight.device)[None, None]
    unet.eval()
    with autocast(weight.device.type, precision):
        logits = sliding_window_inference(
            whole, patch_shape, batch_size, lambda windows: unet(windows).float(), overlap, mode="gaussian"
        )
    assert isinstance(logits, torch.Tensor)
    return logits.argmax(1)[0].to(torch.uint8).cpu().numpy()


def overlap_of(case: Case, predicted: NDArray[np.uint8], num_classes: int) -> SegmentedCase:
    """Compare a predicted label map with the case's label, without the padding round the scan."""
    assert case.grid is not None and case.label is not None
    within = case.grid.within
    found = overlap(predicted[within], case.label[within], num_classes)
    return SegmentedCase(case.name, case.subject, **vars(found))
