"""The batches of an epoch, as the loop puts them together."""

from __future__ import annotations

from raygenesis.training.order import Batching, Layout, Ordered, Rows, epoch_order, shares_of
from raygenesis.training.workers import ALONE, Workers


def training_batches(
    num_samples: int, batch_size: int, seed: int, epoch: int, workers: Workers = ALONE, num_pieces: int = 1,
    layout: Layout | None = None,
) -> list[list[Rows]]:  # fmt: skip
    """One worker's share of each batch, in pieces."""
    return shares_of(epoch_order(num_samples, seed, epoch, layout), Batching(batch_size, num_pieces), workers)


def paired_batches(pairs: Rows, batch_size: int, workers: Workers = ALONE, num_pieces: int = 1) -> list[list[Rows]]:
    """The same of pairs."""
    return shares_of(Ordered(pairs), Batching(batch_size, num_pieces), workers)
