"""Contrast of pairs: what the student sees in a pattern, with what the teacher sees in its partner.

The teacher is the moving average of the student's weights (MoCo, He et al. 2020; BYOL, Grill et al. 2020).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from raygenesis.networks.layers import frozen_statistics, swap_pairs
from raygenesis.networks.network import PretextNetwork
from raygenesis.training.workers import gather_rows

TEMPERATURE = 0.1
PROJECTION_SIZE = 128
NO_CLASS = -1


class Contrast(NamedTuple):
    """The contrast of each pattern, and that of embeddings that are all alike, float32 [n]."""

    loss: torch.Tensor
    chance: torch.Tensor


@torch.no_grad()
def taught(teacher: PretextNetwork, images: torch.Tensor) -> torch.Tensor:
    """What the teacher says of images [n, 1, z, y, x]: projected embeddings [n, d], without a gradient.

    Batch norms use the batch's own statistics, as the student's do, since averaged ones lag behind the weights; their
    running statistics stay as they are.
    """
    teacher.train()
    with frozen_statistics(teacher.encoder):  # the only norms that are asked
        return teacher.project(images)


def contrast(projected: torch.Tensor, keys: torch.Tensor, classes: torch.Tensor, num_patterns: int = 0) -> Contrast:
    """InfoNCE (van den Oord et al. 2018) of pairs, each pattern against its partner and all patterns of other classes.

    Similarity is the cosine over TEMPERATURE. Patterns of the same class are no negatives. Negatives are those of all
    workers' shares of the piece.

    Args:
        projected: The student's embeddings, float32 [n, d], in pairs one after the other.
        keys: The teacher's embeddings of the same patterns, float32 [n, d].
        classes: Their classes, int64 [n].
        num_patterns: The most patterns that the piece has over all workers; only needed where there are several.
    """
    vectors, keys = functional.normalize(projected), functional.normalize(keys)
    positive = (vectors * swap_pairs(keys)).sum(1, keepdim=True) / TEMPERATURE
    every, of_class = gather_rows(keys, num_patterns, 0), gather_rows(classes, num_patterns, NO_CLASS)
    is_negative = (classes.unsqueeze(1) != of_class) & (of_class != NO_CLASS)
    negative = (vectors @ every.T / TEMPERATURE).masked_fill(~is_negative, -torch.inf)
    loss = torch.cat([positive, negative], 1).logsumexp(1) - positive.squeeze(1)
    return Contrast(loss, is_negative.sum(1).add(1).float().log())


def class_sums(projected: torch.Tensor, classes: torch.Tensor, num_classes: int) -> dict[str, torch.Tensor]:
    """Sums from which `separation` is computed, float64: of unit vectors of each class, and of how many there are."""
    vectors = functional.normalize(projected.double())
    sums = vectors.new_zeros(num_classes, vectors.shape[1]).index_add(0, classes, vectors)
    return {"class_sums": sums, "class_counts": functional.one_hot(classes, num_classes).sum(0).double()}


def separation(sums: torch.Tensor, counts: torch.Tensor) -> float:
    """The share of the variance of unit vectors that lies between classes (the correlation ratio η²), in [0, 1].

    It is 1 where all patterns of a class, whosever they are, have one vector and classes have different ones, and 0
    where all vectors are equal. By chance it is about one over the number of patterns of a class.

    Args:
        sums, counts: Of `class_sums`, float64 [num_classes, d] and [num_classes], of all patterns, on any scale.
    """
    total = counts.sum()
    mean_square = (sums.square().sum(1) / counts.clamp(min=1e-12)).sum() / total
    square_of_mean = (sums.sum(0) / total).square().sum()
    variance = 1 - square_of_mean
    return float(((mean_square - square_of_mean) / variance).clamp(0, 1)) if variance > 1e-12 else 0.0
