"""The order in which an epoch's samples come: of the seed and the epoch, whatever the workers, and wherever cells lie.

A store that is too large to be held is read once an epoch: its row groups, in random order, are dealt to a fixed number
of streams, in each of which samples are shuffled through a window, and a batch takes equally from the streams. Workers
own streams. This is the manner of MosaicML's streaming datasets ("py1e" of its shuffling algorithms).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raygenesis.settings.streams import EPOCH_ORDER
from raygenesis.training.workers import ALONE, Workers

NUM_STREAMS = 64

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Where samples lie. groups: the row group of each, int64 [n]; window: row groups that may be held at a time."""

    groups: Rows
    window: int


@dataclass(frozen=True)
class Batching:
    """How samples are put together. num_pieces: of a batch, which are learnt from one after the other."""

    batch_size: int
    num_pieces: int = 1


@dataclass(frozen=True)
class Ordered:
    """Units of samples that come together, int64 [n, rows of a unit], in order; streams: of each unit, if there are."""

    units: Rows
    streams: Rows | None = None


def cubes_of_epoch(num_samples: int, batch_size: int) -> tuple[int, int]:
    """Cubes in a batch of training, and in an epoch, which consists of whole batches, of one at least."""
    batch_size = min(batch_size, num_samples)
    return batch_size, num_samples // batch_size * batch_size


def epoch_order(num_samples: int, seed: int, epoch: int, layout: Layout | None = None) -> Ordered:
    """All samples in the order of an epoch: a permutation of them, where their row groups fit into the window."""
    generator = np.random.Generator(np.random.Philox(EPOCH_ORDER.sequence(seed, epoch)))
    if layout is None or len(np.unique(layout.groups)) <= layout.window:
        return Ordered(generator.permutation(num_samples)[:, np.newaxis])
    return _in_streams(layout, generator)


def _in_streams(layout: Layout, generator: np.random.Generator) -> Ordered:
    number = len(layout.groups)
    _, group, counts = np.unique(layout.groups, return_inverse=True, return_counts=True)
    rows = np.lexsort((generator.random(number), generator.permutation(len(counts))[group]))
    streams = np.arange(number) * NUM_STREAMS // number
    # A sample comes up to a window later than its group.
    span = layout.window * number / len(counts) / NUM_STREAMS
    rows = rows[np.lexsort((np.arange(number) + generator.uniform(0, span, number), streams))]
    # By turns, such that any few samples that follow each other are from streams far apart.
    turn = np.arange(number) - np.searchsorted(streams, streams)
    by_turns = np.lexsort((_reversed_bits()[streams], turn))
    return Ordered(rows[by_turns, np.newaxis], streams[by_turns])


def _reversed_bits() -> Rows:
    """The numbers of the streams with their bits in reverse order (van der Corput)."""
    num_bits = NUM_STREAMS.bit_length() - 1
    return np.array([int(f"{stream:0{num_bits}b}"[::-1], 2) for stream in range(NUM_STREAMS)])


def shares_of(ordered: Ordered, batching: Batching, workers: Workers = ALONE) -> list[list[Rows]]:
    """Rows of one worker's share of each global batch of an epoch, as lists of `num_pieces` arrays of row numbers.

    Batches are cut into pieces before these are shared, whatever the number of workers. The incomplete last batch is
    left out. Fewer samples than a batch make one smaller batch.
    """
    units, streams = ordered.units, ordered.streams
    size, num_units = cubes_of_epoch(len(units), batching.batch_size // units.shape[1])
    owners = None if streams is None else streams * workers.world_size // NUM_STREAMS
    return [
        [_share(units, owners, piece, workers) for piece in np.array_split(batch, batching.num_pieces)]
        for batch in (np.arange(start, start + size) for start in range(0, num_units, size))
    ]


def _share(units: Rows, owners: Rows | None, piece: Rows, workers: Workers) -> Rows:
    """One worker's share of a piece: what it owns, or an even part where there are no owners, or some own nothing."""
    if owners is not None and np.bincount(owners[piece], minlength=workers.world_size).all():
        return units[piece[owners[piece] == workers.rank]].ravel()
    return units[np.array_split(piece, workers.world_size)[workers.rank]].ravel()


def held_out_batches(
    num_samples: int, batch_size: int, workers: Workers = ALONE, layout: Layout | None = None
) -> list[Rows]:
    """Rows of one worker's share of all samples, by their row groups; each comes exactly once over the workers."""
    rows = np.arange(num_samples) if layout is None else np.argsort(layout.groups, kind="stable")
    rows = np.array_split(rows, workers.world_size)[workers.rank]
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
