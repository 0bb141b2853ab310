"""Pairs: two patterns of one class from different patients, which lie in one batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raygenesis.settings.streams import PAIRS


def epoch_pairs(classes: NDArray[np.int64], patients: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """The pairs of an epoch, in its order, from the seed and the epoch alone; see `pair_up`."""
    return pair_up(classes, patients, PAIRS.generator(seed, epoch))


def pair_up(
    classes: NDArray[np.int64], patients: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Pair patterns of one class from different patients at random, as many of them as can be.

    Each pattern is in one pair at most. Left out are an odd pattern of a class, and what a patient has of a class
    beyond what all others have together.

    Args:
        classes: Class of each pattern, int64 [n].
        patients: Patient of each pattern, int64 [n].
        generator: What decides who is paired with whom, and in which order pairs come.

    Returns:
        Numbers of patterns, int64 [p, 2]; pairs in random order, and each in random order.
    """
    order = generator.permutation(len(classes))
    bounds = np.flatnonzero(np.diff(np.sort(classes))) + 1
    of_classes = np.split(order[np.argsort(classes[order], kind="stable")], bounds)
    pairs = np.concatenate([_of_class(rows, patients[rows], generator) for rows in of_classes])
    swapped = generator.random(len(pairs)) < 0.5
    pairs[swapped] = pairs[swapped, ::-1]
    return generator.permutation(pairs)


def _of_class(
    rows: NDArray[np.int64], patients: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Pair the rows of one class, which come in random order: int64 [p, 2]."""
    _, patient, counts = np.unique(patients, return_inverse=True, return_counts=True)
    largest = int(counts.argmax())
    surplus = max(0, 2 * int(counts[largest]) - len(rows))
    kept = np.ones(len(rows), bool)
    kept[np.flatnonzero(patient == largest)[:surplus]] = False
    # Patients one after the other: as none has more than half of the rows, half of them further on lies another's.
    turn = generator.permutation(len(counts))[patient[kept]]
    rows = rows[kept][np.argsort(turn, kind="stable")]
    half = len(rows) // 2
    return np.stack([rows[:half], rows[half : 2 * half]], 1)
