"""Figures of training beyond its losses, and sentences that say why it fails."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raygenesis.text.amounts import several
from raygenesis.training.records import EpochRow

# Epochs of a phase that training gets before it is judged, by the best of its last ones.
GRACE_EPOCHS = 5

# An embedding of which a smaller share is variance, or of a smaller effective rank, has collapsed.
LEAST_VARIANCE, LEAST_RANK = 1e-3, 1.5
# A learnt accuracy lies this many times above chance, or half-way to 1; a learnt error this share below the baseline's.
TIMES_CHANCE, SHARE_OF_BASELINE = 1.5, 0.98
MOST_GRADIENT_GROWTH = 1e3


def moments(embedding: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums from which `spread_of` is computed, float64: of vectors [n, d], and of their outer products [d, d]."""
    vectors = embedding.double()
    return {"embedding": vectors.sum(0), "outer": vectors.T @ vectors}


def spread_of(mean: torch.Tensor, outer: torch.Tensor) -> dict[str, float]:
    """Figures of the spread of vectors, from the means of their `moments`.

    Returns:
        embedding_variance: Share of the mean squared length that is variance, 0 where all vectors are equal.
        effective_rank: Exponential of the entropy of the normalised singular values (RankMe, Garrido et al., ICML
            2023), 1 where all vectors are multiples of one.
    """
    length = outer.trace()
    if length <= 0:
        return {"embedding_variance": 0.0, "effective_rank": 1.0}
    singular = torch.linalg.eigvalsh(outer).clamp(min=0).sqrt()
    share = singular / singular.sum()
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    return {
        "embedding_variance": float((1 - mean.square().sum() / length).clamp(0, 1)),
        "effective_rank": float(entropy.exp()),
    }


def warnings(history: Sequence[EpochRow], chance: float | None, at_end: bool = False) -> dict[str, str]:
    """What goes wrong in training, a sentence by kind.

    Kinds are `embedding`, `classification`, `restoration`, `contrast` and `gradient`.

    Args:
        history: A row an epoch.
        chance: Accuracy of guessing; None where nothing is classified.
        at_end: Whether training is over, so that few epochs are judged too.
    """
    recent = [row for row in history if row["phase"] == history[-1]["phase"]][-GRACE_EPOCHS:]
    found = {}
    if recent and (at_end or len(recent) == GRACE_EPOCHS):
        found = {
            "embedding": _collapsed(recent[-1]), "classification": _at_chance(recent, chance),
            "restoration": _not_restored(recent), "contrast": _not_contrasted(recent),
        }  # fmt: skip
    found["gradient"] = _exploded(history)
    return {kind: sentence for kind, sentence in found.items() if sentence}


def _collapsed(row: EpochRow) -> str | None:
    variance, rank = row.get("val_embedding_variance"), row.get("val_effective_rank")
    if variance is None or rank is None or (variance >= LEAST_VARIANCE and rank >= LEAST_RANK):
        return None
    return (
        f"the embedding has collapsed: held-out cubes differ in hardly any direction (variance is {variance:.1e} of "
        f"the squared length, effective rank {rank:.2f}); lower pretraining.learning_rate, or take another pretext task"
    )


def _at_chance(recent: Sequence[EpochRow], chance: float | None) -> str | None:
    if chance is None:
        return None
    accuracy = max(row["val_accuracy"] for row in recent)
    if accuracy >= min(TIMES_CHANCE * chance, (1 + chance) / 2):
        return None
    return (
        f"nothing is learnt from classification so far: in the last {several(len(recent), 'epochs')} held-out accuracy "
        f"was {accuracy:.3f} at best and guessing gives {chance:.3f}; train longer, lower pretraining.learning_rate, "
        "or look at what the classes show (report)"
    )


def _not_restored(recent: Sequence[EpochRow]) -> str | None:
    """Compared with the better of two answers without learning."""
    row = min(recent, key=lambda row: row.get("val_restoration") or 0.0)
    if row["phase"] == "classification" or row.get("val_restoration") is None:
        return None
    answers = {"a cube's mean value everywhere": row["val_blank"]}
    if row["val_identity"] > 0:  # an auto-encoder's input is what it has to answer
        answers["the corrupted cube as it is"] = row["val_identity"]
    answer, error = min(answers.items(), key=lambda item: item[1])
    if row["val_restoration"] < SHARE_OF_BASELINE * error:
        return None
    return (
        f"nothing is learnt from restoration so far: in the last {several(len(recent), 'epochs')} the held-out error "
        f"was {row['val_restoration']:.4f} at best and answering {answer} gives {error:.4f}; train longer, or lower "
        "pretraining.learning_rate"
    )


def _not_contrasted(recent: Sequence[EpochRow]) -> str | None:
    """Compared with embeddings that are all alike, on training pairs: held-out patterns have no partners."""
    pairs = [(row.get("train_contrast"), row.get("train_contrast_chance")) for row in recent]
    known = [(loss, chance) for loss, chance in pairs if loss is not None and chance is not None]
    if not known or any(loss < SHARE_OF_BASELINE * chance for loss, chance in known):
        return None
    loss, chance = min(known)
    return (
        f"nothing is learnt from contrast so far: in the last {several(len(recent), 'epochs')} the loss of training "
        f"pairs was {loss:.3f} at best and embeddings that are all identical give {chance:.3f}; train longer, lower "
        "pretraining.learning_rate, or raise pretraining.batch_size"
    )


def _exploded(history: Sequence[EpochRow]) -> str | None:
    norms = [norm for row in history if (norm := row.get("train_gradient_norm")) is not None]
    if len(norms) < 2:
        return None
    first, last = norms[0], norms[-1]
    if 0 < last <= MOST_GRADIENT_GROWTH * max(first, 1e-12):
        return None
    return (
        f"the gradient's norm went from {first:.1e} to {last:.1e}: "
        + ("nothing flows back any more" if last == 0 else "training diverges")
        + "; lower pretraining.learning_rate"
    )
