"""Initialisations of a target's network: random weights, a run of ours, or a file of weights; and that network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.classifier import Classifier
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.network import PretextNetwork, UNet, build_encoder
from raygenesis.networks.slice_wise import SliceWiseEncoder, slice_wise
from raygenesis.networks.weights.loading import TORCH_SUFFIXES, copy_decoder, lacking, load_network
from raygenesis.networks.weights.native import ENCODER_FILE
from raygenesis.settings import NETWORK_DIVISORS, FinetuneSettings, PretrainingSettings
from raygenesis.workspace.artifacts import RUNS
from raygenesis.workspace.files import Place, as_place, on_disk, xxh3_of
from raygenesis.workspace.workspace import Workspace

# The name of random weights.
RANDOM = "random"

# Modes in which the encoder stays as it is.
PROBES = ("frozen", "probe", "knn")

# Between the sources of one initialisation, and between the fingerprints of their weights.
SEPARATOR = ","

# The name of an initialisation is part of files' names.
NAME = r"[A-Za-z0-9_.+-]+"


@dataclass(frozen=True)
class Initialisation:
    """What a target's network begins with.

    name: as tables have it. weights: a run's folder or a file; None for random weights in `architecture`. fingerprint:
    of the weights. random: the name of random weights of the same architecture, if they are compared. source: the
    number of the pretraining that the weights are of, where there are several with different seeds; others: the
    pretrainings after it.
    """

    name: str
    weights: Place | None
    architecture: Architecture
    fingerprint: str
    random: str | None = None
    source: int = 0
    others: tuple[Initialisation, ...] = ()

    @property
    def sources(self) -> tuple[Initialisation, ...]:
        """The pretrainings in order, each as an initialisation of its own."""
        return (replace(self, others=()), *self.others)

    @property
    def all_fingerprints(self) -> str:
        """The fingerprints of all sources' weights, as one text."""
        return SEPARATOR.join(each.fingerprint for each in self.sources)

    def of_trial(self, number: int) -> Initialisation:
        """What the trial of this number begins with: trials take the sources in turn."""
        return self.sources[number % len(self.sources)]


def find_initialisations(
    sources: Sequence[str], workspace: Workspace, pretraining: PretrainingSettings, ndim: int
) -> list[Initialisation]:
    """The initialisations for `random`, names of the workspace's runs, and files of weights; NAME=… gives one a name.

    Several sources with commas between them are pretrainings of one initialisation. `random` stands for random weights
    in each architecture of the others, the first of which is called so; without others it has the architecture of the
    settings, in `ndim` dimensions. Raises WorkspaceError or WeightsError where a source does not exist, SettingsError
    where two have one name or the sources of one do not go together.
    """
    found: list[Initialisation] = []
    for name, source in map(name_and_source, sources):
        if source == RANDOM:
            continue
        if name == RANDOM:
            raise SettingsError(f"{source} would be called {RANDOM!r}, as random weights are: name it, NAME={source}")
        found.append(_of_sources(name, sources_in(source), workspace))
    given = Architecture(
        ndim=ndim, network=pretraining.network, base_width=pretraining.base_width, norm=pretraining.norm
    )
    architectures = [_encoder_and_decoder(each.architecture) for each in found] or [given]
    for number, (name, source) in enumerate(map(name_and_source, sources)):
        if source == RANDOM:
            randoms = _randoms(architectures, name)
            names = {each.architecture: each.name for each in randoms}
            found = [
                replace(each, random=each.random or names[_encoder_and_decoder(each.architecture)]) for each in found
            ]
            found[number:number] = randoms
    all_names = [each.name for each in found]
    if len(set(all_names)) < len(all_names):
        twice = max(all_names, key=all_names.count)
        raise SettingsError(f"two initialisations are called {twice!r}: leave one out, or name it, NAME=START")
    return found


def _of_sources(name: str, sources: Sequence[str], workspace: Workspace) -> Initialisation:
    """The initialisation whose trials take these pretrainings in turn."""
    first, *others = (replace(_pretrained_by(name, each, workspace), source=n) for n, each in enumerate(sources))
    for source, other in zip(sources[1:], others, strict=True):
        if other.architecture != first.architecture:
            raise SettingsError(
                f"initialisation {name}: {sources[0]} and {source} are networks of different architectures: give only "
                "pretrainings that differ in their seed, and the others names of their own"
            )
        if sources.count(source) > 1:
            raise SettingsError(f"initialisation {name}: {source} is given twice: leave one out")
    return replace(first, others=tuple(others))


def _pretrained_by(name: str, source: str, workspace: Workspace) -> Initialisation:
    """The initialisation by one run of the workspace, or one file of weights."""
    if source == RANDOM:
        raise SettingsError(f"initialisation {name}: {RANDOM} is no pretraining: give it by itself, --from {RANDOM}")
    if is_path(source):
        path = as_place(source)
        path = path / ENCODER_FILE if path.is_dir() else path  # the run of another workspace
        architecture = load_network(path).architecture
        with on_disk(path) as local:  # xxh3, as trials that are there are known by it
            return Initialisation(name, path, architecture, xxh3_of(local))
    folder = workspace.run(source)
    manifest = RUNS.read(folder)
    if manifest is None:
        raise WorkspaceError(
            f"{folder} is not there or not finished: run `raygenesis pretrain` first, or say with --from what to start "
            "from, such as --from random"
        )
    return Initialisation(name, folder, load_network(folder).architecture, manifest.fingerprint)


def _randoms(architectures: Sequence[Architecture], name: str) -> list[Initialisation]:
    """Random weights for each architecture, called after what distinguishes it from the first."""
    different = list(dict.fromkeys(architectures))
    first, found = asdict(different[0]), []
    for architecture in different:
        other = {key: value for key, value in asdict(architecture).items() if value != first[key]}
        title = "-".join([name, *(f"{value}d" if key == "ndim" else str(value) for key, value in other.items())])
        found.append(Initialisation(title, None, architecture, repr(architecture), title))
    return found


def _encoder_and_decoder(architecture: Architecture) -> Architecture:
    """The architecture of encoder and decoder alone, whatever they were pretrained for."""
    return replace(architecture, head=None, num_classes=0, restores=True, skips=True, projection_size=0)


def name_and_source(text: str) -> tuple[str, str]:
    """The name of an initialisation and its source: as in `NAME=SOURCE`, or a name made of the source itself."""
    if given := re.fullmatch(f"({NAME})=(.+)", text):
        return given[1], given[2]
    names = (Path(each).name.partition(".")[0] if is_path(each) else each for each in sources_in(text))
    return re.sub(r"[^A-Za-z0-9_.+-]", "-", SEPARATOR.join(names)), text


def sources_in(source: str) -> list[str]:
    """The sources of one initialisation, which have commas between them; a path may hold some, if it exists."""
    is_one = SEPARATOR not in source or (is_path(source) and as_place(source).exists())
    return [source] if is_one else source.split(SEPARATOR)


def is_path(source: str) -> bool:
    """Whether the source of an initialisation is a path rather than a run's name."""
    return "/" in source or source.endswith((".safetensors", *TORCH_SUFFIXES))


def check_fits(initialisation: Initialisation, input_shape: Sequence[int], settings: FinetuneSettings) -> None:
    """Raise SettingsError if the network cannot take inputs of this shape, in this mode."""
    architecture, ndim, mode = initialisation.architecture, len(input_shape), settings.mode
    if architecture.ndim > ndim:
        raise SettingsError(
            f"initialisation {initialisation.name} is a {architecture.ndim}D network and the target's images are "
            f"{ndim}D: leave it out"
        )
    divisor = NETWORK_DIVISORS[architecture.network]
    in_plane = input_shape[-architecture.ndim :]
    if any(side % divisor for side in in_plane):
        raise SettingsError(
            f"finetune.input_shape={list(input_shape)}: initialisation {initialisation.name} ({architecture.network}) "
            f"needs sides that are multiples of {divisor}"
        )
    slices, voxels = input_shape[: -architecture.ndim], (side // divisor for side in in_plane)
    if architecture.norm == "batch-statistics" and mode in PROBES and math.prod([*slices, *voxels]) == 1:
        raise SettingsError(
            f"finetune.input_shape={list(input_shape)}: initialisation {initialisation.name} normalises an image by "
            "its own statistics, and a bottleneck of one voxel has none: give longer sides, or finetune.mode=full"
        )
    if mode == "probe" and settings.probe_features == "encoder+decoder" and architecture.network != "unet":
        raise SettingsError(
            f"finetune.probe_features=encoder+decoder reads the decoder of a U-Net, and initialisation "
            f"{initialisation.name} is of pretraining.network={architecture.network}: give finetune.probe_features="
            "encoder"
        )


def new_decoder(initialisation: Initialisation, is_taken: bool) -> str | None:
    """A sentence where a U-Net would have the initialisation's decoder and gets a new one; None elsewhere."""
    found = lacking(initialisation.architecture)
    if initialisation.weights is None or not is_taken or found is None:
        return None
    return f"initialisation {initialisation.name} holds {found}: its U-Net's begins with random weights"


def check_all_used(name: str, num_sources: int, num_trials: int) -> None:
    """Raise SettingsError if there are fewer trials than pretrainings of the initialisation of this name."""
    if num_trials < num_sources:
        raise SettingsError(
            f"finetune.num_trials={num_trials} is fewer than the {num_sources} pretrainings of {name}: raise it, or "
            "leave pretrainings out"
        )


def segmentation_network(initialisation: Initialisation, num_classes: int, mode: str, seed: int, ndim: int) -> UNet:
    """A U-Net whose new weights depend on the seed alone, so that initialisations differ only in their own weights.

    Encoder and, in modes `full` and `probe`, decoder (without its output layer) are the initialisation's, if it has one
    with skips (`new_decoder`). A 2D network for images of
    `ndim` 3 works slice by slice.
    """
    architecture = initialisation.architecture if mode in PROBES else _trained(initialisation.architecture)
    with _seeded(seed):
        unet = UNet(num_classes, architecture)
    pretrained = _pretrained(initialisation)
    if pretrained is not None:
        unet.encoder.load_state_dict(unet.encoder.state_dict() | pretrained.encoder.state_dict())
        if mode in ("full", "probe") and pretrained.unet_decoder is not None:
            copy_decoder(unet, pretrained.unet_decoder)
    return slice_wise(unet) if initialisation.architecture.ndim < ndim else unet


def target_encoder(initialisation: Initialisation, seed: int, ndim: int) -> ImageEncoder:
    """The initialisation's encoder; a 2D one for 3D images works slice by slice."""
    with _seeded(seed):
        encoder = build_encoder(initialisation.architecture)
    pretrained = _pretrained(initialisation)
    if pretrained is not None:
        encoder.load_state_dict(encoder.state_dict() | pretrained.encoder.state_dict())
    return SliceWiseEncoder(encoder) if initialisation.architecture.ndim < ndim else encoder


def classification_network(initialisation: Initialisation, num_out: int, seed: int, ndim: int) -> Classifier:
    """A classifier, or with one output a regressor, over the initialisation's encoder; its head is the seed's."""
    learning = replace(initialisation, architecture=_trained(initialisation.architecture))
    encoder = target_encoder(learning, seed, ndim)
    with _seeded(seed):
        return Classifier(encoder, num_out)


def _trained(architecture: Architecture) -> Architecture:
    """The architecture as it is trained on a target: norms of a batch's own statistics learn running ones, which are
    not among the weights. Otherwise an answer would depend on the other cases of its batch."""
    return replace(architecture, norm="batch") if architecture.norm == "batch-statistics" else architecture


def _pretrained(initialisation: Initialisation) -> PretextNetwork | None:
    if initialisation.weights is None:
        return None
    with _seeded(0):  # a network draws weights before it gets its own
        return load_network(initialisation.weights)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's generator with this seed, and afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
