"""Puzzles: what a head has to answer, as a table.

A puzzle makes questions from a batch of cubes, float32 [n, channels, *shape], and grades the head's answers. What it
draws belongs to the sample (`Draws`), not to the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from raygenesis.errors import SettingsError
from raygenesis.pretraining.draws import Draws
from raygenesis.training.devices import send

# Of the Rubik's cube: permutations to tell apart, and the least distance of pieces in voxels (Zhuang 2019).
MOST_ORDERS = 100
GAP = 10


class Questions(NamedTuple):
    """What a puzzle asks of a batch of n cubes.

    images: what the network sees, float32 [n × images of each, channels, z, y, x]; answers: what its head should
    answer, int64 [n] or [n, several].
    """

    images: torch.Tensor
    answers: torch.Tensor


@dataclass(frozen=True)
class Puzzle:
    """A puzzle on cubes of one shape.

    Attributes:
        shape: Sides of a cube, z y x (2D: y x).
        divisor: What the network needs sides to be multiples of.
        num_labels: Number of pseudo-labels of the store, R × C.
        head: Name of the head that answers it, in `HEADS`.
    """

    shape: tuple[int, ...]
    divisor: int
    num_labels: int
    head: ClassVar[str] = "classification"

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise SettingsError if cubes of this shape do not fit the puzzle."""

    @property
    def num_classes(self) -> int:
        """Classes that a head's accuracy counts."""
        raise NotImplementedError

    @property
    def shown_shape(self) -> tuple[int, ...]:
        """What the network sees of a cube: [images of each, z, y, x] (2D: without z)."""
        return 1, *self.shape

    def ask(self, cubes: torch.Tensor, labels: torch.Tensor, draws: Draws) -> Questions:
        """Make the questions of a batch.

        Args:
            cubes: float32 [n, channels, *shape] in [0, 1], not modified.
            labels: Pseudo-labels of the cubes, int64 [n], on their device; without meaning for random crops.
            draws: Random streams of the n samples, on the CPU.
        """
        raise NotImplementedError

    def grade(self, logits: torch.Tensor, answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and accuracy of each sample, float32 [n], from the head's logits [n, ...] and the right answers."""
        return functional.cross_entropy(logits, answers, reduction="none"), (logits.argmax(1) == answers).float()


class Label(Puzzle):
    """Name the pattern: its pseudo-label (paper section 2.2)."""

    @property
    def num_classes(self) -> int:
        return self.num_labels

    def ask(self, cubes: torch.Tensor, labels: torch.Tensor, draws: Draws) -> Questions:
        return Questions(cubes, labels)


class Rotation(Puzzle):
    """Say by how many quarter turns a cube was turned in its slice plane: a cheap control."""

    def check(self) -> None:
        if self.shape[-1] != self.shape[-2]:
            raise SettingsError(
                f"discovery.cube_shape={list(self.shape)}: the pretext task rotation turns cubes in the slice plane, "
                "so their last two sides must be equal"
            )

    @property
    def num_classes(self) -> int:
        return 4

    def ask(self, cubes: torch.Tensor, labels: torch.Tensor, draws: Draws) -> Questions:
        turns = (draws.uniform("quarter turns", ()) * 4).long()
        turned = cubes.clone()
        for number in (1, 2, 3):
            at = send((turns == number).nonzero().squeeze(1), cubes.device)
            turned.index_copy_(0, at, cubes.index_select(0, at).rot90(number, (-2, -1)))
        return Questions(turned, send(turns, cubes.device))


class RubiksCube(Puzzle):
    """Say in which order the 2×2×2 (2D: 2×2) pieces of a cube are, and which were turned (Zhuang et al., MICCAI 2019).

    The parts of the cube lie GAP voxels apart or more, each piece at a random place in its part, and each is scaled to
    [0, 1], so that neither edges nor intensities tell. Half of them are turned by 180°, about the horizontal or the
    vertical axis. The answers are the number of the order, then a 0 or 1 for each piece and axis.
    """

    head: ClassVar[str] = "rubiks-cube"

    def check(self) -> None:
        if min(self.piece) < self.divisor:
            least = math.ceil((2 * self.divisor + GAP) / self.divisor) * self.divisor  # the network's multiple as well
            raise SettingsError(
                f"discovery.cube_shape={list(self.shape)} is too small for the pretext task rubiks-cube with this "
                f"network: each side needs at least {least} voxels"
            )

    @property
    def part(self) -> tuple[int, ...]:
        """Sides of the part of a cube that a piece lies in."""
        return tuple((side - GAP) // 2 for side in self.shape)

    @property
    def piece(self) -> tuple[int, ...]:
        """Sides of a piece."""
        return tuple(side // self.divisor * self.divisor for side in self.part)

    @property
    def num_classes(self) -> int:
        return len(orders(2 ** len(self.shape)))

    @property
    def shown_shape(self) -> tuple[int, ...]:
        return 2 ** len(self.shape), *self.piece

    def ask(self, cubes: torch.Tensor, labels: torch.Tensor, draws: Draws) -> Questions:
        n, channels, ndim, device = len(cubes), cubes.shape[1], len(self.shape), cubes.device
        known = orders(2**ndim)
        order = (draws.uniform("order", ()) * len(known)).long()
        corner = torch.cartesian_prod(*(torch.arange(2),) * ndim)
        whole, part, piece = (torch.tensor(sides) for sides in (self.shape, self.part, self.piece))
        start = corner * (whole - part) + (draws.uniform("places", (2**ndim, ndim)) * (part - piece + 1)).long()
        # Place p shows piece known[order, p].
        start = start.gather(1, known[order].unsqueeze(2).expand(-1, -1, ndim))
        turn = draws.uniform("turns", (2**ndim,))
        horizontal, vertical = turn < 0.25, (turn >= 0.25) & (turn < 0.5)
        order, start, horizontal, vertical = (send(each, device) for each in (order, start, horizontal, vertical))
        voxel = torch.zeros((n, 2**ndim) + (1,) * ndim, dtype=torch.int64, device=device)
        for axis, (side, length) in enumerate(zip(self.piece, self.shape, strict=True)):
            # Half a turn about an axis mirrors the others.
            mirrored = horizontal & (axis != ndim - 1) | vertical & (axis != ndim - 2)
            step = torch.arange(side, device=device)
            along = start[:, :, axis, None] + torch.where(mirrored.unsqueeze(2), side - 1 - step, step)
            voxel = voxel * length + along.view(n, 2**ndim, *(side if other == axis else 1 for other in range(ndim)))
        voxel = voxel.flatten(1).unsqueeze(1).expand(-1, channels, -1)
        pieces = cubes.flatten(2).gather(2, voxel).view(n, channels, 2**ndim, -1).transpose(1, 2)
        low, high = pieces.amin((2, 3), keepdim=True), pieces.amax((2, 3), keepdim=True)
        pieces = (pieces - low) / (high - low).clamp(min=1e-6)
        answers = torch.cat([order.unsqueeze(1), horizontal.long(), vertical.long()], 1)
        return Questions(pieces.reshape(n * 2**ndim, channels, *self.piece), answers)

    def grade(self, logits: torch.Tensor, answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Half the cross-entropy of the order and half that of the turns; the accuracy is that of the order."""
        loss, accuracy = super().grade(logits[:, : self.num_classes], answers[:, 0])
        turns = functional.binary_cross_entropy_with_logits(
            logits[:, self.num_classes :], answers[:, 1:].to(logits.dtype), reduction="none"
        )
        return 0.5 * loss + 0.5 * turns.mean(1), accuracy


@lru_cache(maxsize=2)
def orders(num_pieces: int) -> torch.Tensor:
    """Permutations of the pieces, int64 [at most MOST_ORDERS, num_pieces], each as far as can be from those before it.

    The distance is Hamming's: the number of pieces in other places.
    """
    every = np.array(list(permutations(range(num_pieces))), np.int8)
    chosen = [0]
    distance = np.full(len(every), num_pieces + 1)
    while len(chosen) < min(MOST_ORDERS, len(every)):
        distance = np.minimum(distance, (every != every[chosen[-1]]).sum(1))
        chosen.append(int(distance.argmax()))
    return torch.from_numpy(every[chosen].astype(np.int64))


PUZZLES: dict[str, type[Puzzle]] = {"label": Label, "rotation": Rotation, "rubiks-cube": RubiksCube}
