"""What embedding, searching and cropping have to do."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from raygenesis.cluster.work import (
    CHECKPOINTS,
    FORWARD,
    ONE_NODE,
    WORKER_GIB,
    ArchiveSize,
    Load,
    Work,
    core_s,
    gpu_s,
    training_gib,
)
from raygenesis.discovery.embeddings import BLOCK_ROWS
from raygenesis.discovery.exact import BUILD_S, EXACT_S, QUERIES_COMPARED, READ_S, SEARCH_S, is_exact_cheaper
from raygenesis.discovery.neighbour_table import SCANS_PER_PART
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.operations import count_operations
from raygenesis.patterns.cells import DTYPE
from raygenesis.settings import AutoencoderSettings, DiscoverySettings, EmbeddingSettings, IndexSettings
from raygenesis.text.amounts import GIB, MIB
from raygenesis.workspace.manifest import AutoencoderCounts

AUTOENCODER = 1.6  # times what its load says: small layers and batches
ENCODE = 0.043  # of training the auto-encoder on a scan, by its load: its encoder alone, forward
COARSE_S_PER_SCAN = 0.0014  # to read a scan's coarse level
COMPARE_S_PER_SCAN = 0.1  # to compare a scan with those that it may be a copy of
CROP_S_PER_MEGAVOXEL = 0.0153
ROW_BYTES = 14  # of a neighbour of a scan, as it is stored: its id and its distance
PAIR_BYTES = 24  # of a search and a vector that are compared
STORED_OF_CUBES = 0.67  # the pattern store, of its cubes
AUTOENCODER_START_S, EMBED_START_S, CROP_START_S = 12.0, 5.0, 4.0


def autoencoder_work(
    scans: ArchiveSize, settings: AutoencoderSettings, validation_fraction: float, num_epochs: int | None = None
) -> Work:
    """Workers, one of which has the cores of its node, train for so many epochs, or as many as the settings allow."""
    training = min(scans.num_scans * (1 - validation_fraction), settings.max_volumes)
    validation = min(scans.num_scans * validation_fraction, settings.max_volumes)
    epochs = settings.num_epochs if num_epochs is None else num_epochs
    coarse = math.prod(settings.input_shape) * DTYPE.itemsize
    load, weights = _autoencoder_load(settings)
    scans_seen, workers = (training + FORWARD * validation) * epochs * AUTOENCODER, settings.num_workers
    return Work(
        "auto-encoder", start_s=AUTOENCODER_START_S, what=f"{training:,.0f} scans × {epochs} epochs",
        core_s=(0.0 if settings.use_gpu else scans_seen * core_s(load)) + (training + validation) * COARSE_S_PER_SCAN,
        most_cores=workers if workers > 1 else ONE_NODE,
        gpu_s=scans_seen * gpu_s(load) if settings.use_gpu else 0.0, most_gpus=workers,
        read_mib=(training + validation) * coarse / MIB,
        stored_mib=CHECKPOINTS * weights * 4 / MIB,
        memory_gib=2 * WORKER_GIB + (training + validation) * coarse / GIB + training_gib(load, settings.batch_size),
    )  # fmt: skip


def embed_work(scans: ArchiveSize, settings: EmbeddingSettings, autoencoder: AutoencoderSettings) -> Work:
    """A forward pass a scan, by the actors of the pool; reading runs beside them."""
    load, _ = _autoencoder_load(autoencoder)
    voxels = math.prod(autoencoder.input_shape)
    on_gpu = settings.num_gpus > 0
    part_gib = settings.volumes_per_part * voxels * (DTYPE.itemsize + 4) / GIB
    num_actors = settings.num_actors or math.ceil(scans.num_scans / settings.volumes_per_part)
    return Work(
        "embed", start_s=EMBED_START_S, what=f"{scans.num_scans:,} scans",
        core_s=scans.num_scans * (COARSE_S_PER_SCAN + (0 if on_gpu else ENCODE * core_s(load))),
        most_cores=num_actors + 1,
        gpu_s=scans.num_scans * ENCODE * gpu_s(load) if on_gpu else 0.0,
        most_gpus=math.ceil(num_actors * settings.num_gpus),
        read_mib=scans.num_scans * voxels * DTYPE.itemsize / MIB,
        stored_mib=scans.num_scans * autoencoder.latent_size * 4 / MIB,
        memory_gib_per_core=WORKER_GIB + part_gib,
    )  # fmt: skip


def neighbours_work(scans: ArchiveSize, settings: IndexSettings, size: int) -> Work:
    """Exact searches of all scans, or graphs of them where those are cheaper. size: numbers in an embedding."""
    number, k = scans.num_scans, settings.num_neighbours + 1
    exact = settings.method == "exact"
    if settings.method == "auto":
        exact = is_exact_cheaper(number, number, 0, size, k, settings)
    vectors_mib, rows_mib = number * size * 4 / MIB, number * settings.num_neighbours * ROW_BYTES / MIB
    num_parts = math.ceil(number / SCANS_PER_PART)
    compare_s = number * COMPARE_S_PER_SCAN
    if exact:
        search_s = number * size * (READ_S * num_parts + EXACT_S * number)
        return Work(
            "neighbours", f"{number:,} exact searches", compare_s + search_s,
            most_cores=num_parts, read_mib=vectors_mib * num_parts, stored_mib=rows_mib,
            memory_gib_per_core=WORKER_GIB + BLOCK_ROWS * (PAIR_BYTES * QUERIES_COMPARED + 12 * size) / GIB,
        )  # fmt: skip
    num_shards = math.ceil(number / settings.volumes_per_shard)
    return Work(
        "neighbours", f"HNSW graphs of {number:,} scans, and as many searches",
        core_s=compare_s
        + number * size * (settings.ef_construction * BUILD_S + num_shards * max(settings.ef, k) * SEARCH_S),
        most_cores=num_parts, read_mib=2 * vectors_mib,
        stored_mib=vectors_mib + number * settings.m * 10 / MIB + rows_mib,
        memory_gib_per_core=WORKER_GIB + 2 * settings.volumes_per_shard * size * 4 / GIB,
    )  # fmt: skip


def num_patterns(settings: DiscoverySettings, *, held_out: bool = True) -> int:
    """R × (K + held-out K) × C × scales, or those of training."""
    patients = settings.num_neighbours + held_out * settings.num_validation_neighbours
    return settings.num_references * patients * settings.num_coordinates * len(settings.scales)


def crops_per_scan(settings: DiscoverySettings, num_training: int) -> int:
    """Random crops of each scan: as set, or so many that those of training are at least as many as patterns would be.

    num_training: scans of training subjects.
    """
    if settings.num_crops is not None:
        return settings.num_crops
    return math.ceil(num_patterns(settings, held_out=False) / num_training)


def crop_work(settings: DiscoverySettings, num_training: int, num_held_out: int) -> Work:
    """Cut random crops of so many scans of training, and of so many that are held out."""
    number = crops_per_scan(settings, num_training) * (num_training + num_held_out)
    return discover_work(settings, number, "crop")


def discover_work(settings: DiscoverySettings, number: int | None = None, stage: str = "discover") -> Work:
    """Crop, resize and encode each pattern; or random crops."""
    number = num_patterns(settings) if number is None else number
    voxels = number * math.prod(settings.cube_shape)
    raw_mib = voxels * DTYPE.itemsize / MIB
    per_part = settings.patterns_per_part * math.prod(settings.cube_shape) * DTYPE.itemsize
    return Work(
        stage, f"{number:,} {'patterns' if stage == 'discover' else 'crops'}", start_s=CROP_START_S,
        core_s=voxels / 1e6 * CROP_S_PER_MEGAVOXEL,
        most_cores=math.ceil(number / settings.patterns_per_part),
        read_mib=raw_mib, stored_mib=raw_mib * STORED_OF_CUBES,
        memory_gib_per_core=WORKER_GIB + 2 * per_part / GIB,
    )  # fmt: skip


def autoencoder_work_done(
    counts: AutoencoderCounts, scans: ArchiveSize, settings: AutoencoderSettings, validation_fraction: float
) -> Work:
    """The work that a finished auto-encoder was, which was trained on some of the scans."""
    seen = replace(scans, num_scans=counts.training + counts.validation)
    return autoencoder_work(seen, settings, validation_fraction, counts.epochs)


@cache
def _autoencoder_load(settings: AutoencoderSettings) -> tuple[Load, int]:
    model = Autoencoder(settings.input_shape, settings.base_width, settings.latent_size)
    weights = sum(weight.numel() for weight in model.parameters())
    return count_operations(model, settings.input_shape), weights
