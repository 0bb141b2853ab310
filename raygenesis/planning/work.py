"""What each stage has to do, in seconds of one core (or GPU) at the rates that are shipped, and in bytes.

The rates were measured on 2 cores (RATES_OF); for GPUs they are assumed, as none was at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from raygenesis.discovery.exact import BUILD_S, EXACT_S, READ_S, is_exact_cheaper
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.classifier import Classifier
from raygenesis.networks.load import Load, load_of
from raygenesis.networks.network import UNet, build_encoder
from raygenesis.patterns.cells import DTYPE
from raygenesis.pretraining.pretexts import PATTERNS, pretext_of
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import AutoencoderSettings, PretrainingSettings, Settings
from raygenesis.text.amounts import GIB, MIB
from raygenesis.transfer.initialisations import Initialisation, check_fits
from raygenesis.transfer.statistics import RANDOM

RATES_OF = "an AMD EPYC, 2 cores"
GPU_OF = "a GPU of 10 effective TFLOP/s, assumed and not measured"

# Training, forward and backward.
CORE_S_PER_GFLOP, CORE_S_PER_MEGA_ACTIVATION = 0.0056, 0.0119
GPU_S_PER_GFLOP, GPU_S_PER_MEGA_ACTIVATION = 1.0e-4, 2.7e-5
FORWARD = 1 / 3  # of training on a sample
AUTOENCODER = 1.6  # times what its load says: small layers and batches
ENCODE = 0.043  # of training the auto-encoder on a scan, by its load: its encoder alone, forward

INGEST_S_PER_SCAN, INGEST_S_PER_MIB = 0.017, 0.0078  # MiB of voxels
COARSE_S_PER_SCAN = 0.0014  # to read a scan's coarse level
CROP_S_PER_MEGAVOXEL = 0.0153
START_S = {"ingest": 6, "auto-encoder": 12, "embed": 5, "index": 0, "discover": 4, "crop": 4, "pretrain": 12,
           "sweep": 8, "finetune": 5}  # fmt: skip

STORED_OF_VOXELS = 0.75  # the archive, pyramids and all, of its voxels
STORED_OF_CUBES = 0.67  # the pattern store, of its cubes
CHECKPOINTS = 9  # times the weights: a run's checkpoints (weights, best ones, Adam's moments) and its encoder
WORKER_GIB = 0.6  # a process that has imported torch and Ray
ONE_NODE = -1  # `most_cores` of one process: the cores of its node


@dataclass(frozen=True)
class Scans:
    """An archive: how many scans, and the size of one: MiB of voxels, and MiB of its files."""

    number: int
    voxel_mib: float
    source_mib: float


@dataclass(frozen=True)
class Work:
    """What a stage has to do.

    what: in words; core_s: seconds on one core, of work that at most `most_cores` can share; gpu_s, most_gpus: the same
    of GPUs, instead of cores; read, stored: MiB from and to the workspace; memory_gib: held at once, by `most_cores`.
    """

    stage: str
    what: str
    core_s: float
    most_cores: float = math.inf
    gpu_s: float = 0.0
    most_gpus: int = 0
    read_mib: float = 0.0
    stored_mib: float = 0.0
    memory_gib: float = WORKER_GIB
    memory_gib_per_core: float = 0.0


def core_s(load: Load) -> float:
    """Seconds of one core to train on a sample."""
    return load.gflop * CORE_S_PER_GFLOP + load.mega_activations * CORE_S_PER_MEGA_ACTIVATION


def gpu_s(load: Load) -> float:
    """Seconds of one GPU to train on a sample."""
    return load.gflop * GPU_S_PER_GFLOP + load.mega_activations * GPU_S_PER_MEGA_ACTIVATION


def ingest(scans: Scans) -> Work:
    """Decode, hash, store: each scan alone."""
    voxels = scans.number * scans.voxel_mib
    return Work(
        "ingest", f"{scans.number:,} scans",
        core_s=scans.number * INGEST_S_PER_SCAN + voxels * INGEST_S_PER_MIB,
        read_mib=scans.number * scans.source_mib, stored_mib=voxels * STORED_OF_VOXELS,
        memory_gib_per_core=WORKER_GIB + 4 * scans.voxel_mib / 1024,
    )  # fmt: skip


def train_autoencoder(scans: Scans, settings: Settings, num_epochs: int | None = None) -> Work:
    """One worker, which has the cores of its node."""
    chosen = settings.autoencoder
    held_out = settings.validation_fraction
    training = min(scans.number * (1 - held_out), chosen.max_volumes)
    validation = min(scans.number * held_out, chosen.max_volumes)
    epochs = chosen.num_epochs if num_epochs is None else num_epochs
    coarse = math.prod(chosen.input_shape) * DTYPE.itemsize
    load, weights = _autoencoder_load(chosen)
    return Work(
        "auto-encoder", f"{training:,.0f} scans × {epochs} epochs",
        core_s=(training + FORWARD * validation) * epochs * AUTOENCODER * core_s(load)
        + (training + validation) * COARSE_S_PER_SCAN,
        most_cores=ONE_NODE,
        read_mib=(training + validation) * coarse / MIB,
        stored_mib=CHECKPOINTS * weights * 4 / MIB,
        memory_gib=2 * WORKER_GIB + (training + validation) * coarse / GIB + _training_gib(load, chosen.batch_size),
    )  # fmt: skip


def embed(scans: Scans, settings: Settings) -> Work:
    """A forward pass a scan, by the actors of the pool; reading runs beside them."""
    chosen = settings.embedding
    load, _ = _autoencoder_load(settings.autoencoder)
    voxels = math.prod(settings.autoencoder.input_shape)
    on_gpu = chosen.num_gpus > 0
    held = chosen.volumes_per_part * voxels * (DTYPE.itemsize + 4) / GIB
    num_actors = chosen.num_actors or math.ceil(scans.number / chosen.volumes_per_part)
    return Work(
        "embed", f"{scans.number:,} scans",
        core_s=scans.number * (COARSE_S_PER_SCAN + (0 if on_gpu else ENCODE * core_s(load))),
        most_cores=num_actors + 1,
        gpu_s=scans.number * ENCODE * gpu_s(load) if on_gpu else 0.0,
        most_gpus=math.ceil(num_actors * chosen.num_gpus),
        read_mib=scans.number * voxels * DTYPE.itemsize / MIB,
        stored_mib=scans.number * settings.autoencoder.latent_size * 4 / MIB,
        memory_gib_per_core=WORKER_GIB + held,
    )  # fmt: skip


def index(scans: Scans, settings: Settings) -> Work:
    """The references' exact search, or graphs of all scans where those are cheaper."""
    size, number = settings.autoencoder.latent_size, scans.number
    references, k = settings.discovery.num_references, settings.discovery.num_neighbours
    chosen = settings.index
    exact = chosen.method == "exact"
    if chosen.method == "auto":
        exact = is_exact_cheaper(number, references, 0, size, k, chosen)
    vectors_mib = number * size * 4 / MIB
    if exact:
        seconds = number * size * (READ_S + EXACT_S * references)
        return Work("index", f"{references:,} exact searches", seconds, 1, read_mib=vectors_mib)
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


def selected(settings: PretrainingSettings, counts: Mapping[str, float]) -> tuple[int, int]:
    """Rows to learn from, and held out, that the pretraining's K and C leave of a store of these counts."""

    def share(name: str) -> float:
        asked = getattr(settings, f"num_{name}")
        return 1.0 if asked is None else min(1.0, asked / counts[name])

    learnt, each = counts["patterns"] - counts["validation"], share("coordinates")
    return round(learnt * share("neighbours") * each), round(counts["validation"] * each)


def num_crops(scans: Scans, settings: Settings) -> int:
    """Random crops of all scans: as many as there would be patterns, unless it is said how many of each scan."""
    each = settings.discovery.num_crops
    return num_patterns(settings) if each is None else each * scans.number


def discover(settings: Settings, number: int | None = None, stage: str = "discover") -> Work:
    """Crop, resize and encode each pattern; or random crops."""
    number = num_patterns(settings) if number is None else number
    voxels = number * math.prod(settings.discovery.cube_shape)
    raw_mib = voxels * DTYPE.itemsize / MIB
    per_part = settings.discovery.patterns_per_part * math.prod(settings.discovery.cube_shape) * DTYPE.itemsize
    return Work(
        stage, f"{number:,} {'patterns' if stage == 'discover' else 'crops'}",
        core_s=voxels / 1e6 * CROP_S_PER_MEGAVOXEL,
        most_cores=math.ceil(number / settings.discovery.patterns_per_part),
        read_mib=raw_mib, stored_mib=raw_mib * STORED_OF_CUBES,
        memory_gib_per_core=WORKER_GIB + 2 * per_part / GIB,
    )  # fmt: skip


def pretrain(
    settings: Settings, learnt: int | None = None, held_out: int | None = None, num_epochs: int | None = None
) -> Work:
    """Classification alone, then jointly; each epoch also goes forward through what is held out.

    learnt, held_out: patterns; num_epochs: of all phases, if training ended early.
    """
    chosen = settings.pretraining
    to_learn, to_hold_out = _selected_of_patterns(settings)
    learnt, held_out = to_learn if learnt is None else learnt, to_hold_out if held_out is None else held_out
    task = _pretext_task(settings)
    encoding, restoring, weights = _pretraining_loads(task)
    total = task.num_epochs if num_epochs is None else num_epochs
    num_restoring = sum(map(task.restores, range(total)))
    load = encoding * (total - num_restoring) + restoring * num_restoring
    samples = learnt + FORWARD * held_out
    stored_mib = (learnt + held_out) * math.prod(settings.discovery.cube_shape) * DTYPE.itemsize * STORED_OF_CUBES / MIB
    in_memory = stored_mib / 1024 <= chosen.memory_gib
    workers = chosen.most_workers
    return Work(
        "pretrain", f"{learnt:,} {task.pretext.crops} × {total} epochs",
        core_s=0.0 if chosen.use_gpu else samples * core_s(load),
        most_cores=workers if workers > 1 else ONE_NODE,
        gpu_s=samples * gpu_s(load) if chosen.use_gpu else 0.0, most_gpus=workers,
        read_mib=stored_mib * (1 if in_memory else total),
        stored_mib=CHECKPOINTS * weights * 4 / MIB,
        memory_gib=2 * WORKER_GIB + (stored_mib / 1024 if in_memory else 0)
        + (0 if chosen.use_gpu else _training_gib(restoring, chosen.batch_size)),
    )  # fmt: skip


def sweep(settings: Settings, num_points: int = 8) -> Work:
    """As many short pretrainings as there are points; 8 is λ × K × C of the space that `sweep` brings along."""
    chosen, num_gpus = settings.sweep, settings.gpus_of_trial("sweep")
    trials = num_points * chosen.num_seeds
    changes = {name: getattr(chosen, name) for name in ("num_classification_epochs", "num_joint_epochs")}
    changes |= {"use_gpu": num_gpus > 0, "num_workers": 1}
    one = pretrain(settings.model_copy(update={"pretraining": settings.pretraining.model_copy(update=changes)}))
    return Work(
        "sweep", f"{trials} trials",
        core_s=trials * one.core_s, most_cores=trials,
        gpu_s=trials * one.gpu_s, most_gpus=math.ceil(trials * num_gpus),
        read_mib=trials * one.read_mib,
        memory_gib_per_core=WORKER_GIB + (0 if one.gpu_s else _training_gib_of(settings)),
    )  # fmt: skip


def finetune(
    settings: Settings, starts: Sequence[Initialisation], input_shape: tuple[int, ...], segments: bool
) -> Work:
    """Trials of each initialisation and number of labelled subjects: their steps; testing is not counted."""
    chosen, num_gpus = settings.finetune, settings.gpus_of_trial("finetune")
    trials = len(chosen.num_labelled) * chosen.num_trials
    trained = chosen.mode in ("full", "encoder") or (segments and chosen.mode == "frozen")
    samples = trials * trained * chosen.num_steps * chosen.batch_size
    loads = [_target_load(start.architecture, input_shape, segments) for start in starts]
    gib = max(_training_gib(load, chosen.batch_size) for load in loads)
    trials *= len(starts)
    return Work(
        "finetune", f"{trials} trials" + f" × {chosen.num_steps} steps" * trained,
        core_s=0.0 if num_gpus else samples * sum(map(core_s, loads)), most_cores=trials,
        gpu_s=samples * sum(map(gpu_s, loads)) if num_gpus else 0.0, most_gpus=math.ceil(trials * num_gpus),
        memory_gib_per_core=WORKER_GIB + (0 if num_gpus else gib),
    )  # fmt: skip


def default_finetune(settings: Settings) -> Work:
    """Where no target is known: to segment, from random weights and from a run of the settings."""
    chosen, shape = settings.pretraining, settings.finetune.input_shape or settings.discovery.cube_shape
    network = Architecture(
        ndim=settings.ndim, network=chosen.network, base_width=chosen.base_width, norm=chosen.norm
    )  # fmt: skip
    start = Initialisation(RANDOM, None, network, "")
    check_fits(start, shape, settings.finetune.mode)
    return finetune(settings, [start] * 2, shape, segments=True)


def pipeline(scans: Scans, settings: Settings) -> list[Work]:
    """Every stage of `raygenesis run`, in order, with the sweep and the fine-tuning that may follow."""
    if pretext_of(settings.pretraining).crops != PATTERNS:
        number, held_out = num_crops(scans, settings), settings.validation_fraction
        counts = {
            "patterns": number, "validation": number * held_out, "neighbours": scans.number * (1 - held_out),
            "coordinates": number / scans.number,
        }  # fmt: skip
        return [
            ingest(scans), discover(settings, number, "crop"),
            pretrain(settings, *selected(settings.pretraining, counts)), default_finetune(settings),
        ]  # fmt: skip
    return [
        ingest(scans), train_autoencoder(scans, settings), embed(scans, settings), index(scans, settings),
        discover(settings), pretrain(settings), sweep(settings), default_finetune(settings),
    ]  # fmt: skip


def _selected_of_patterns(settings: Settings) -> tuple[int, int]:
    """Of what discovery will store."""
    number, chosen = num_patterns(settings), settings.discovery
    counts = {
        "patterns": number, "validation": number - num_patterns(settings, held_out=False),
        "neighbours": chosen.num_neighbours, "coordinates": chosen.num_coordinates,
    }  # fmt: skip
    return selected(settings.pretraining, counts)


@cache
def _target_load(architecture: Architecture, input_shape: tuple[int, ...], segments: bool) -> Load:
    """Of a segmentation network, or of a classifier; of a 2D one on 3D images slice by slice."""
    network = UNet(2, architecture) if segments else Classifier(build_encoder(architecture), 2)
    slices, in_plane = input_shape[: -architecture.ndim], input_shape[-architecture.ndim :]
    return load_of(network, in_plane) * math.prod(slices)


@cache
def _autoencoder_load(settings: AutoencoderSettings) -> tuple[Load, int]:
    model = Autoencoder(settings.input_shape, settings.base_width, settings.latent_size)
    weights = sum(weight.numel() for weight in model.parameters())
    return load_of(model, settings.input_shape), weights


def _pretext_task(settings: Settings) -> PretextTask:
    plain = settings.pretraining.model_copy(update={"compile": False, "gradient_checkpointing": False})
    chosen = settings.discovery
    return PretextTask(plain, 0, chosen.cube_shape, chosen.num_references, chosen.num_coordinates)


@cache
def _pretraining_loads(task: PretextTask) -> tuple[Load, Load, int]:
    """Of encoder and head, and with the decoder, if there is one; and the number of weights."""
    model = task.build()
    weights = sum(weight.numel() for weight in model.parameters())
    num_images, *shape = task.shown_shape
    encoding, restoring = (
        load_of(model, shape, partial(model, restore=restore), num_images) for restore in (False, True)
    )
    return encoding, restoring, weights


def _training_gib(load: Load, batch_size: int) -> float:
    """Activations of a batch, kept for the backward pass, and as much again for gradients."""
    return 2 * load.mega_activations * 1e6 * 4 * batch_size / GIB


def _training_gib_of(settings: Settings) -> float:
    _, restoring, _ = _pretraining_loads(_pretext_task(settings))
    return _training_gib(restoring, settings.pretraining.batch_size)
