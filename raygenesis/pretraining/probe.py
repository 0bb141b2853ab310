"""Measures of a pretrained encoder that do not depend on λ, or on how many classes it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional

from raygenesis.networks.encoder import ImageEncoder
from raygenesis.pretraining.restoration import restoration_error
from raygenesis.training.feeding import Batch, Samples
from raygenesis.training.order import held_out_batches

BATCH_SIZE = 32
NUM_QUERIES = 256  # whose similarities to all samples are computed at once


@torch.inference_mode()
def embed_samples(encoder: ImageEncoder, samples: Samples) -> torch.Tensor:
    """The encoder's vector of each uncorrupted cube, float32 [n, num_features] on the CPU, in the samples' order."""
    encoder.eval()
    device = next((weight.device for weight in encoder.parameters()), torch.device("cpu"))
    batches = held_out_batches(len(samples), BATCH_SIZE, layout=samples.layout)
    vectors = torch.cat([encoder.embed(batch.on(device).cubes).cpu() for batch in samples.stream([batches])])
    return vectors[torch.from_numpy(np.argsort(np.concatenate(batches)))]


def anatomy_retrieval(encoder: ImageEncoder, samples: Samples) -> float:
    """How well the encoder's vectors of the samples find the same place in other scans: `place_precision`."""
    return place_precision(embed_samples(encoder, samples), samples)


def place_precision(embedding: torch.Tensor, samples: Samples) -> float:
    """Mean average precision of finding the same place in other scans, in (0, 1]; NaN where no place is in two scans.

    It is 1 when the nearest cubes (cosine) of each cube, over all other scans, are those of its own place. Every place
    that the samples hold is used, so runs trained with different λ, K or C can be compared. An encoder without any
    sense of place scores about one over their number, more where there are few cubes.

    Args:
        embedding: [n, num_features], a row a sample.
        samples: The n samples.
    """
    # In float64: vectors of an encoder that has learnt little differ by less than float32 cosines can tell.
    vectors = functional.normalize(embedding.double())
    labels = torch.from_numpy(samples.columns["label"].astype(np.int64))
    _, scan_numbers = np.unique(samples.columns["volume_id"].astype(str), return_inverse=True)
    scans = torch.from_numpy(scan_numbers)
    precisions = []
    for queries in torch.arange(len(labels)).split(NUM_QUERIES):
        for query, similarity in zip(queries, vectors[queries] @ vectors.T, strict=True):
            others = scans != scans[query]
            order = similarity[others].argsort(descending=True, stable=True)
            hits = (labels[others] == labels[query])[order].double()
            if hits.any():
                precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
                precisions.append(float((precision * hits).sum() / hits.sum()))
    return float(np.mean(precisions)) if precisions else float("nan")


def mean_image_error(
    train: Samples, validation: Samples, masked: Callable[[Batch], torch.Tensor | None] = lambda _: None
) -> float:
    """Mean squared error, on held-out cubes, of always answering with the mean training cube.

    Args:
        train: What the mean is of.
        validation: The held-out cubes.
        masked: The voxels of a batch that count, bool like its cubes; all when it returns None.
    """
    total = np.zeros(train.shape, np.float64)
    for batch in _by_layout(train):
        total += batch.cubes.double().sum((0, 1)).numpy()
    mean = torch.from_numpy(total / len(train)).float()
    errors = [restoration_error(mean, batch.cubes, masked(batch)) for batch in _by_layout(validation)]
    return float(torch.cat(errors).mean())


def _by_layout(samples: Samples) -> Iterator[Batch]:
    """All samples, each once, as they are read best."""
    for batch in samples.stream([held_out_batches(len(samples), BATCH_SIZE, layout=samples.layout)]):
        yield batch.on("cpu")
