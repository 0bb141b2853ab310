"""Networks from files of weights, ours or published ones; needs no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch

from raygenesis.cluster.progress import say
from raygenesis.errors import WeightsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.decoder import ImageDecoder
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.network import PretextNetwork, UNet, num_parameters
from raygenesis.networks.weights.native import ENCODER_FILE, restore_network
from raygenesis.networks.weights.released import is_released, parse_released, summary
from raygenesis.networks.weights.safetensors_files import read_safetensors
from raygenesis.networks.weights.supervised import parse_supervised, refuse_tensorflow
from raygenesis.networks.weights.torch_files import read_state_dict, without_wrappers
from raygenesis.workspace.files import Place, as_place
from raygenesis.workspace.manifest import Tree

TORCH_SUFFIXES = (".pt", ".pth", ".tar")


def load_encoder(path: str | Place) -> ImageEncoder:
    """Load a pretrained encoder in evaluation mode.

    `encoder(images)` gives the features of each level and `encoder.embed(images)` one vector an image; images are
    float32 [n, 1, z, y, x] in [0, 1].

    Args:
        path: `encoder.safetensors`, the folder of a run, or a file published for Models Genesis or Semantic Genesis, or
            of a supervised network (MedicalNet, a ResNet of torchvision or timm, I3D).

    Raises:
        WeightsError: The file is none of these.
    """
    return load_network(path).encoder.eval()


def load_unet(path: str | Place, num_out: int) -> UNet:
    """Load a pretrained encoder and decoder for segmentation, with a new output layer of `num_out` channels.

    Where the pretext task had no decoder, or one without skips, a new one with random weights is built, and a line says
    so. `path` and errors are those of `load_encoder`.
    """
    pretrained = load_network(path)
    unet = UNet(num_out, pretrained.architecture)
    unet.encoder.load_state_dict(pretrained.encoder.state_dict())
    if pretrained.unet_decoder is None:
        say("weights", f"{path} holds {lacking(pretrained.architecture)}: the U-Net's begins with random weights")
        return unet
    copy_decoder(unet, pretrained.unet_decoder)
    return unet


def lacking(architecture: Architecture) -> str | None:
    """Why weights give a U-Net no decoder, in words; None if they do."""
    if not architecture.restores:
        return "no decoder"
    return None if architecture.skips else "a decoder without skips"


def copy_decoder(unet: UNet, pretrained: ImageDecoder) -> None:
    """Copy the weights of a pretrained decoder into a U-Net, except for its output layer, which stays as it is."""
    output = f"{pretrained.output_layer}."
    weights = {name: value for name, value in pretrained.state_dict().items() if not name.startswith(output)}
    unet.decoder.load_state_dict(weights, strict=False)


def load_network(path: str | Place) -> PretextNetwork:
    """Load a whole pretrained network, heads included.

    Of a published file, lines say which tensors were used and which were not. `path` and errors are those of
    `load_encoder`.
    """
    file = _weights_file(path)
    if file.suffix in TORCH_SUFFIXES:
        return _load_published(file, read_state_dict(file))
    description, tensors = read_safetensors(file, "network")
    return network_of(file, description, tensors)


def network_of(file: Place, description: Tree, tensors: Mapping[str, torch.Tensor]) -> PretextNetwork:
    """The network of a safetensors file, ours or a published one, from what `read_safetensors` returns of it."""
    if "format" not in description:
        return _load_published(file, without_wrappers(tensors, file))
    return restore_network(file, description, tensors)


def describe(path: str | Place) -> list[str]:
    """Lines that say what a file of weights holds."""
    model = load_network(path)
    architecture = ", ".join(f"{key} {value}" for key, value in asdict(model.architecture).items())
    return [f"{_weights_file(path)}: {architecture}", f"{num_parameters(model):,} parameters"]


def _load_published(file: Place, state: Mapping[str, object]) -> PretextNetwork:
    if is_released(state):
        return _load_released(file, state)
    published = parse_supervised(state, file)
    model = PretextNetwork(published.architecture)
    model.encoder.load_state_dict(published.state)
    for line in published.summary():
        say("weights", line)
    return model


def _load_released(file: Place, state: Mapping[str, object]) -> PretextNetwork:
    released = parse_released(state, file)
    architecture = Architecture(
        base_width=released.base_width, norm="batch-statistics", num_classes=released.num_classes or 0,
        head="classification" if released.num_classes else None, restores=released.has_decoder,
    )  # fmt: skip
    model = PretextNetwork(architecture)
    # Running statistics are left out: the published network never uses them.
    model.load_state_dict({name: released.state[name] for name in model.state_dict()})
    for line in summary(released):
        say("weights", line)
    return model


def _weights_file(path: str | Place) -> Place:
    path = as_place(path)
    refuse_tensorflow(path)
    file = path / ENCODER_FILE if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"{file} does not exist: give a run's folder, its {ENCODER_FILE} or a published file")
    return file
