"""Weights that leave and come back: safetensors with architecture and model card, and other layouts; no Ray here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raygenesis._version import __version__
from raygenesis.cluster.progress import say
from raygenesis.errors import WeightsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.network import PretextNetwork, UNet
from raygenesis.networks.weights.released import is_released, released_in, summary, write_released
from raygenesis.networks.weights.safetensors_files import read_safetensors, write_safetensors
from raygenesis.networks.weights.supervised import refuse_tensorflow, supervised_in
from raygenesis.networks.weights.torch_files import read_tensors, save_torch, unwrapped
from raygenesis.settings import NETWORK_DIVISORS
from raygenesis.workspace.files import Place, as_place, publish

ENCODER_FILE = "encoder.safetensors"
CARD_FILE = "model-card.md"
FORMAT = "raygenesis-2"
TORCH = (".pt", ".pth", ".tar")  # endings of files that others published, beside their safetensors


def export(model: PretextNetwork, folder: Place, facts: Mapping[str, Any]) -> Place:
    """Write the whole pretrained network as `encoder.safetensors` and describe it in `model-card.md`.

    facts: what the card tells.
    """
    architecture = asdict(model.architecture)
    described = {"format": FORMAT, "version": __version__, "architecture": architecture}
    write_safetensors(folder / ENCODER_FILE, model.state_dict(), described)
    publish(folder / CARD_FILE, lambda aside: aside.write_text(_card(architecture, facts)))
    return folder / ENCODER_FILE


def load_encoder(path: str | Place) -> ImageEncoder:
    """The pretrained encoder as a torch module in evaluation mode; needs no Ray.

    `path` is `encoder.safetensors`, the run's folder, or a file published for Models Genesis or Semantic Genesis, or of
    a supervised network (MedicalNet, a ResNet of torchvision or timm, I3D).
    `encoder(images)` gives the features of each level and `encoder.embed(images)` one vector an image; images are
    float32 [n, 1, z, y, x] in [0, 1]. Raises WeightsError if the file is none of these.
    """
    return load_network(path).encoder.eval()


def load_unet(path: str | Place, num_out: int) -> UNet:
    """The pretrained encoder and decoder with a new output layer of `num_out` channels, for segmentation.

    `path` as for `load_encoder`. Where the pretext task had no decoder a new one is made, and a line says so.
    """
    pretrained = load_network(path)
    unet = UNet(num_out, pretrained.architecture)
    unet.encoder.load_state_dict(pretrained.encoder.state_dict())
    if pretrained.decoder is None:
        say("weights", f"{path} holds no decoder: the U-Net's begins with random weights")
        return unet
    give_decoder(unet, pretrained.decoder)
    return unet


def give_decoder(unet: UNet, pretrained: nn.Module) -> None:
    """Load a pretrained decoder but for its output layer, which stays as it is."""
    last = f"{pretrained.last}."
    kept = {name: value for name, value in pretrained.state_dict().items() if not name.startswith(last)}
    unet.decoder.load_state_dict(kept, strict=False)


def load_network(path: str | Place) -> PretextNetwork:
    """The whole pretrained network, heads included; `path` as for `load_encoder`.

    Of a published file it prints what was taken and what was not.
    """
    file = _file(path)
    if file.suffix in TORCH:
        return _load_published(file, read_tensors(file))
    described, tensors = read_safetensors(file, "network")
    if "format" not in described:
        return _load_published(file, unwrapped(tensors, file))
    architecture = _architecture(file, described)
    model = PretextNetwork(architecture)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{file} does not match its own description: {str(error).splitlines()[0]}") from None
    return model


def describe(path: str | Place) -> list[str]:
    """Lines that say what a file of weights holds."""
    model = load_network(path)
    architecture = ", ".join(f"{key} {value}" for key, value in asdict(model.architecture).items())
    return [f"{_file(path)}: {architecture}", f"{num_parameters(model):,} parameters"]


def export_to_library(path: str | Place, output: Path) -> str:
    """Write a network as a torch file with the names of the code it is known from; returns what it was written for.

    A 3D U-Net as the code of Models Genesis and Semantic Genesis loads it, MONAI's networks as MONAI does.
    Raises WeightsError where there is no such code.
    """
    model = load_network(path)
    architecture = model.architecture
    if architecture.network != "unet":
        from raygenesis.networks.monai_networks import class_of, whole_state  # MONAI takes seconds to import

        kind = class_of(architecture.network)
        if kind is None:
            raise WeightsError(f"{path} is a {architecture.network}, which MONAI has not: use raygenesis.load_unet")
        if model.decoder is None:
            raise WeightsError(f"{path} holds no decoder, and MONAI's network of that name has one")
        tensors = {name: value.contiguous() for name, value in whole_state(model.state_dict()).items()}
        save_torch(tensors, output)
        return f"monai.networks.nets.{kind}: load_state_dict(torch.load(file, weights_only=True))"
    if architecture.ndim == 2 or architecture.norm not in ("batch", "batch-statistics"):
        raise WeightsError(
            f"{path} is a {architecture.ndim}D U-Net with {architecture.norm} norm: only 3D ones with batch norm have "
            "the layout of the published code; load it with raygenesis.load_unet"
        )
    of_unet = {
        name: value for name, value in model.state_dict().items()
        if not name.startswith("head.") or architecture.head == "classification"
    }  # fmt: skip
    write_released(of_unet, output)
    known_as = "the published code of Models Genesis and Semantic Genesis: its `state_dict`"
    if architecture.norm == "batch":
        known_as += (
            "; in evaluation that code normalises by each batch's own statistics and answers otherwise than here (a "
            "network trained with pretraining.norm=batch-statistics answers alike)"
        )
    return known_as


def _load_published(file: Place, found: Mapping[str, Any]) -> PretextNetwork:
    if is_released(found):
        return _load_released(file, found)
    published = supervised_in(found, file)
    model = PretextNetwork(published.architecture)
    model.encoder.load_state_dict(published.state)
    for line in published.summary():
        say("weights", line)
    return model


def _load_released(file: Place, found: Mapping[str, Any]) -> PretextNetwork:
    released = released_in(found, file)
    architecture = Architecture(
        base_width=released.base_width, norm="batch-statistics", num_classes=released.num_classes or 0,
        head="classification" if released.num_classes else None, restores=released.has_decoder,
    )  # fmt: skip
    model = PretextNetwork(architecture)
    # Running statistics are left: the published network never uses them.
    model.load_state_dict({name: released.state[name] for name in model.state_dict()})
    for line in summary(released):
        say("weights", line)
    return model


def _file(path: str | Place) -> Place:
    path = as_place(path)
    refuse_tensorflow(path)
    file = path / ENCODER_FILE if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"{file} does not exist: give a run's folder, its {ENCODER_FILE} or a published file")
    return file


def _architecture(file: Place, described: Mapping[str, Any]) -> Architecture:
    if described["format"] != FORMAT:
        raise WeightsError(
            f"{file} was not written by this version of raygenesis: its format is {described['format']!r}, and "
            f"{FORMAT!r} is read"
        )
    try:
        return Architecture(**described["architecture"])
    except (KeyError, TypeError):
        raise WeightsError(f"{file} does not describe its network") from None


def _card(architecture: Mapping[str, int], facts: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in {**architecture, **facts}.items())
    return f"""# Pretrained encoder

Pretrained by raygenesis {__version__} without labels, by the pretext task named below.

| | |
| --- | --- |
{rows}

Input: float32 [n, 1, z, y, x] (2D: y, x) scaled to [0, 1] as the run's `config.yaml` says, sides
divisible by {NETWORK_DIVISORS[architecture["network"]]}.

```python
import raygenesis
encoder = raygenesis.load_encoder("encoder.safetensors")   # features of each level; encoder.embed(x): one vector
unet = raygenesis.load_unet("encoder.safetensors", num_out=3)   # encoder and decoder for segmentation
```

Not a medical device. Check on your own data before use.
"""


def num_parameters(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
