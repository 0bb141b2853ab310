"""What embedding, searching and cropping have to do."""

from __future__ import annotations

import math
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
from raygenesis.discovery.exact import BUILD_S, EXACT_S, READ_S, is_exact_cheaper
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.operations import count_operations
from raygenesis.patterns.cells import DTYPE
from raygenesis.settings import AutoencoderSettings, Settings
from raygenesis.text.amounts import GIB, MIB

AUTOENCODER = 1.6  # times what its load says: small layers and batches
ENCODE = 0.043  # of training the auto-encoder on a scan, by its load: its encoder alone, forward
COARSE_S_PER_SCAN = 0.0014  # to read a scan's coarse level
CROP_S_PER_MEGAVOXEL = 0.0153
STORED_OF_CUBES = 0.67  # the pattern store, of its cubes
AUTOENCODER_START_S, EMBED_START_S, CROP_START_S = 12.0, 5.0, 4.0


def autoencoder_work(scans: ArchiveSize, settings: Settings, num_epochs: int | None = None) -> Work:
    """One worker, which has the cores of its node."""
    chosen = settings.autoencoder
    held_out = settings.validation_fraction
    training = min(scans.num_scans * (1 - held_out), chosen.max_volumes)
    validation = min(scans.num_scans * held_out, chosen.max_volumes)
    epochs = chosen.num_epochs if num_epochs is None else num_epochs
    coarse = math.prod(chosen.input_shape) * DTYPE.itemsize
    load, weights = _autoencoder_load(chosen)
    return Work(
        "auto-encoder", start_s=AUTOENCODER_START_S, what=f"{training:,.0f} scans × {epochs} epochs",
        core_s=(training + FORWARD * validation) * epochs * AUTOENCODER * core_s(load)
        + (training + validation) * COARSE_S_PER_SCAN,
        most_cores=ONE_NODE,
        read_mib=(training + validation) * coarse / MIB,
        stored_mib=CHECKPOINTS * weights * 4 / MIB,
        memory_gib=2 * WORKER_GIB + (training + validation) * coarse / GIB + training_gib(load, chosen.batch_size),
    )  # fmt: skip


def embed_work(scans: ArchiveSize, settings: Settings) -> Work:
    """A forward pass a scan, by the actors of the pool; reading runs beside them."""
    chosen = settings.embedding
    load, _ = _autoencoder_load(settings.autoencoder)
    voxels = math.prod(settings.autoencoder.input_shape)
    on_gpu = chosen.num_gpus > 0
    held = chosen.volumes_per_part * voxels * (DTYPE.itemsize + 4) / GIB
    num_actors = chosen.num_actors or math.ceil(scans.num_scans / chosen.volumes_per_part)
    return Work(
        "embed", start_s=EMBED_START_S, what=f"{scans.num_scans:,} scans",
        core_s=scans.num_scans * (COARSE_S_PER_SCAN + (0 if on_gpu else ENCODE * core_s(load))),
        most_cores=num_actors + 1,
        gpu_s=scans.num_scans * ENCODE * gpu_s(load) if on_gpu else 0.0,
        most_gpus=math.ceil(num_actors * chosen.num_gpus),
        read_mib=scans.num_scans * voxels * DTYPE.itemsize / MIB,
        stored_mib=scans.num_scans * settings.autoencoder.latent_size * 4 / MIB,
        memory_gib_per_core=WORKER_GIB + held,
    )  # fmt: skip


def index_work(scans: ArchiveSize, settings: Settings) -> Work:
    """The references' exact search, or graphs of all scans where those are cheaper."""
    size, number = settings.autoencoder.latent_size, scans.num_scans
    references, k = settings.discovery.num_references, settings.discovery.num_neighbours
    chosen = settings.index
    exact = chosen.method == "exact"
    if chosen.method == "auto":
        exact = is_exact_cheaper(number, references, 0, size, k, chosen)
    vectors_mib = number * size * 4 / MIB
    if exact:
        seconds = number * size * (READ_S + EXACT_S * references)
        return Work("index", f"{references:,} exact searches", seconds, most_cores=1, read_mib=vectors_mib)
    return Work(
        "index", f"HNSW graphs of {number:,} scans",
        core_s=number * size * chosen.ef_construction * BUILD_S,
        most_cores=math.ceil(number / chosen.volumes_per_shard),
        read_mib=vectors_mib, stored_mib=vectors_mib + number * chosen.m * 10 / MIB,
        memory_gib_per_core=WORKER_GIB + 2 * chosen.volumes_per_shard * size * 4 / GIB,
    )  # fmt: skip


def num_patterns(settings: Settings, *, held_out: bool = True) -> int:
    """R × (K + held-out K) × C × scales, or those of training."""
    chosen = settings.discovery
    patients = chosen.num_neighbours + held_out * chosen.num_validation_neighbours
    return chosen.num_references * patients * chosen.num_coordinates * len(chosen.scales)


def num_crops(scans: ArchiveSize, settings: Settings) -> int:
    """Random crops of all scans: as many as there would be patterns, unless it is said how many of each scan."""
    each = settings.discovery.num_crops
    return num_patterns(settings) if each is None else each * scans.num_scans


def discover_work(settings: Settings, number: int | None = None, stage: str = "discover") -> Work:
    """Crop, resize and encode each pattern; or random crops."""
    number = num_patterns(settings) if number is None else number
    voxels = number * math.prod(settings.discovery.cube_shape)
    raw_mib = voxels * DTYPE.itemsize / MIB
    per_part = settings.discovery.patterns_per_part * math.prod(settings.discovery.cube_shape) * DTYPE.itemsize
    return Work(
        stage, f"{number:,} {'patterns' if stage == 'discover' else 'crops'}", start_s=CROP_START_S,
        core_s=voxels / 1e6 * CROP_S_PER_MEGAVOXEL,
        most_cores=math.ceil(number / settings.discovery.patterns_per_part),
        read_mib=raw_mib, stored_mib=raw_mib * STORED_OF_CUBES,
        memory_gib_per_core=WORKER_GIB + 2 * per_part / GIB,
    )  # fmt: skip


@cache
def _autoencoder_load(settings: AutoencoderSettings) -> tuple[Load, int]:
    model = Autoencoder(settings.input_shape, settings.base_width, settings.latent_size)
    weights = sum(weight.numel() for weight in model.parameters())
    return count_operations(model, settings.input_shape), weights
