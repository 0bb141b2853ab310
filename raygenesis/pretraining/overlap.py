"""Classes whose boxes overlap: how much volume they share, and a classification loss that allows for it.

Patterns of 64 mm at places 14 to 20 mm apart share two thirds of their volume and more. Plain cross-entropy asks the
network to tell such near-copies apart as if they had nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch.nn import functional

from raygenesis.errors import SettingsError
from raygenesis.workspace.manifest import PatternsManifest, StoreManifest

# Another class that shares more of the volume than this is left out by `ignore`: there is then more to be seen in both
# cubes than in one of them alone. Neighbours along one axis are left out, those along a diagonal are not.
MOST_SHARED = 0.5


@dataclass(frozen=True)
class ClassBoxes:
    """Where the boxes of a store's classes lie.

    The box of a class is centred at its coordinate in the reference, and of the extent of a scale; jitter is left out.
    A sample is compared at its own scale: all boxes then have its extent.

    Attributes:
        centres_mm: Of each reference and each coordinate in use, [R][C][ndim], from the corner of the reference.
        extents_mm: Of each scale, [S][ndim].
    """

    centres_mm: tuple[tuple[tuple[float, ...], ...], ...]
    extents_mm: tuple[tuple[float, ...], ...]


def class_boxes(store: StoreManifest, num_coordinates: int, overlap: str) -> ClassBoxes:
    """The boxes of the classes of a store, of its first coordinates.

    overlap: the setting that asks for them. Raises SettingsError if the store's manifest does not say where they lie.
    """
    references = store.references if isinstance(store, PatternsManifest) else ()
    if not references or len(references) != store.counts.references:
        raise SettingsError(
            f"pretraining.overlap={overlap}: the pattern store does not say where its classes lie (an earlier version "
            "wrote it); leave it out, or discover again"
        )
    return ClassBoxes(
        tuple(tuple(map(tuple, reference.centres_mm[:num_coordinates])) for reference in references),
        tuple(tuple(map(float, scale["extent_mm"])) for scale in store.settings["discovery"]["scales"]),
    )


@lru_cache(maxsize=8)
def shared_volume(boxes: ClassBoxes, device: torch.device) -> torch.Tensor:
    """The share of a box's volume that two classes of a reference have in common, float32 [S, R, C, C] in [0, 1]."""
    centres = torch.tensor(boxes.centres_mm, dtype=torch.float64)
    extents = torch.tensor(boxes.extents_mm, dtype=torch.float64)
    distance = (centres.unsqueeze(2) - centres.unsqueeze(1)).abs()
    sides = 1 - distance / extents.view(len(extents), 1, 1, 1, -1)
    return sides.clamp(min=0).prod(-1).float().to(device)


def shares_of(boxes: ClassBoxes, labels: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What share of each sample's box lies in the box of each class, float32 [n, R × C]; 1 for its own class.

    Classes of different references share nothing: they lie in different patients.

    Args:
        boxes: Of all classes.
        labels: Classes of the samples, reference × C + coordinate, int64 [n].
        scales: Numbers of their scales, int64 [n].
    """
    table = shared_volume(boxes, labels.device)
    _, num_references, num_coordinates, _ = table.shape
    reference, coordinate = labels // num_coordinates, labels % num_coordinates
    shares = table.new_zeros(len(labels), num_references, num_coordinates)
    shares[torch.arange(len(labels), device=labels.device), reference] = table[scales, reference, coordinate]
    return shares.flatten(1)


def soft_cross_entropy(logits: torch.Tensor, answers: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each sample, float32 [n], against its shares (`shares_of`) as a distribution over classes.

    Targets are the overlap of boxes as in VoCo (Wu et al., CVPR 2024); no network reaches 0, but their entropy at best.
    """
    targets = shares / shares.sum(1, keepdim=True)
    return -(targets * logits.log_softmax(1)).sum(1)


def cross_entropy_without_overlapping(
    logits: torch.Tensor, answers: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of each sample, float32 [n], without the other classes that share more than MOST_SHARED with it.

    Negatives that are too alike are left out, as in Adam (Hosseinzadeh Taher et al., 2023), which tells them by their
    embeddings.
    """
    own = functional.one_hot(answers, logits.shape[1]).bool()
    return functional.cross_entropy(
        logits.masked_fill((shares > MOST_SHARED) & ~own, -torch.inf), answers, reduction="none"
    )


# By the name of the setting pretraining.overlap: logits [n, R × C], answers int64 [n], shares [n, R × C] → losses [n].
OverlapLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
OVERLAP_LOSSES: dict[Literal["soft", "ignore"], OverlapLoss] = {
    "soft": soft_cross_entropy, "ignore": cross_entropy_without_overlapping,
}  # fmt: skip
