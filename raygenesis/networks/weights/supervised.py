"""Weights published for supervised networks, from the user's own file: MedicalNet, ImageNet ResNets, I3D.

A layout is recognised by the tensors' names and shapes; its names are those of our encoder but for the first part of
ours. RGB is turned into grey by summing the first convolution's weights, which gives what three equal channels give;
how a network's images were scaled when it was trained is not known here: it is given images in [0, 1] like all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from raygenesis.errors import WeightsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import build_encoder
from raygenesis.networks.weights.torch_files import check_finite, first_mismatch, float_copy, is_tensor, unused_lines
from raygenesis.workspace.files import Place, as_place

KNOWN = "Models Genesis, MedicalNet, ResNets of torchvision and timm, and I3D"
# (blocks of each layer, convolutions of a block, whether shortcuts have weights) → our network.
RESNETS: dict[tuple[tuple[int, ...], int, bool], str] = {
    ((1, 1, 1, 1), 2, True): "resnet10",
    ((2, 2, 2, 2), 2, False): "resnet18",
    ((2, 2, 2, 2), 2, True): "resnet18-b",
    ((3, 4, 6, 3), 2, False): "resnet34",
    ((3, 4, 6, 3), 2, True): "resnet34-b",
    ((3, 4, 6, 3), 3, True): "resnet50",
    ((3, 4, 23, 3), 3, True): "resnet101",
    ((3, 8, 36, 3), 3, True): "resnet152",
    ((3, 24, 36, 3), 3, True): "resnet200",
}
COUNTER = ".num_batches_tracked"
TENSORFLOW = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")


@dataclass(frozen=True)
class Supervised:
    """The encoder of a published file.

    Attributes:
        title: Name of the layout.
        state: float32 tensors by the names of our encoder.
        unused: Why each other tensor of the file is not used, by its name.
        notes: What differs from the code that the weights come from.
    """

    title: str
    architecture: Architecture
    state: dict[str, torch.Tensor]
    unused: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def summary(self) -> list[str]:
        """Lines that say which tensors are used, what differs, what is missing, and which tensors are not used."""
        num_used = sum(not name.endswith(COUNTER) for name in self.state)
        return [
            f"{self.title}, taken: encoder {num_used} tensors",
            *self.notes,
            "missing: decoder",
            *unused_lines(self.unused),
        ]


@dataclass(frozen=True)
class SupervisedLayout:
    """A published layout.

    Attributes:
        first: Name of the weight of the convolution that sees the image.
        channels: Numbers of input channels that it may have.
        heads: First parts of names that may be left out.
    """

    title: str
    architecture: Architecture
    first: str
    channels: tuple[int, ...]
    heads: tuple[str, ...]
    notes: tuple[str, ...] = ()


def parse_supervised(state: Mapping[str, object], path: Place) -> Supervised:
    """Find the encoder of a published supervised network among the tensors of a file.

    Every tensor of our encoder must be there in its shape, and every tensor of theirs have a place or be of a head.

    Args:
        state: What `read_state_dict` returns.
        path: The file, for error messages.

    Raises:
        WeightsError: The layout is not known, or the file holds another network or numbers that are not finite.
    """
    layout = _layout(state, path)
    theirs = {name: value for name, value in state.items() if is_tensor(value)}
    first = theirs[layout.first]
    if first.ndim < 2 or first.shape[1] not in layout.channels:
        raise WeightsError(
            f"{path}: {layout.first} has shape {list(first.shape)}, and {layout.title} takes images of "
            f"{' or '.join(map(str, layout.channels))} channel(s)"
        )

    with torch.device("meta"):
        ours = build_encoder(layout.architecture).state_dict()
    wanted = {name.partition(".")[2]: value for name, value in ours.items()}
    wanted[layout.first] = wanted[layout.first].repeat_interleave(first.shape[1], 1)
    # Files older than torch 0.4.1 have no counters of batches; nothing depends on them.
    counters = {name: torch.tensor(0) for name in wanted if name.endswith(COUNTER)}
    if reason := first_mismatch(counters | theirs, wanted):
        raise WeightsError(f"{path} does not hold a whole encoder of {layout.title}: {reason}")
    unused = {name: "no such head here" for name in theirs if name not in wanted}
    if foreign := [name for name in unused if name.partition(".")[0] not in layout.heads]:
        raise WeightsError(f"{path} holds another network than {layout.title}: {foreign[0]} has no place in it")

    used = {name: float_copy((counters | theirs)[name]) for name in wanted}
    check_finite(used, path)
    used[layout.first] = used[layout.first].sum(1, keepdim=True)
    encoder = {name: used[name.partition(".")[2]] for name in ours}
    grey = ("its three input channels are summed to one: RGB to grey",) if first.shape[1] == 3 else ()
    return Supervised(layout.title, layout.architecture, encoder, unused, layout.notes + grey)


def refuse_tensorflow(path: Place) -> None:
    """Raise WeightsError for a TensorFlow checkpoint: one of its files, what these begin with, or their folder."""
    is_one = TENSORFLOW.search(path.name) or as_place(f"{path}.index").is_file()
    if is_one or (path.is_dir() and any(path.glob("*.ckpt*.index"))):
        raise WeightsError(
            f"{path} is a TensorFlow checkpoint, as NiftyNet publishes its dense V-Net: it cannot be read without "
            "TensorFlow, and no network here has its layers; start from MedicalNet, or for I3D from its torch port"
        )


def _layout(state: Mapping[str, object], path: Place) -> SupervisedLayout:
    if is_tensor(state.get("Conv3d_1a_7x7.conv3d.weight")):
        return SupervisedLayout(
            "I3D", _encoder_alone(3, "i3d"), "Conv3d_1a_7x7.conv3d.weight", channels=(1, 3), heads=("logits",)
        )
    first = state.get("conv1.weight")
    if is_tensor(first) and first.ndim in (4, 5) and "layer1.0.conv1.weight" in state:
        return _resnet_layout(state, first.ndim - 2, path)
    listed = f"begin with {', '.join(list(state)[:3])}" if state else "are none"
    raise WeightsError(
        f"{path} was not written by raygenesis and has no published layout that is known ({KNOWN}): its names {listed}"
    )


def _resnet_layout(state: Mapping[str, object], ndim: int, path: Place) -> SupervisedLayout:
    blocks = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{number}.")}) for number in range(1, 5)
    )
    convolutions = 3 if "layer1.0.conv3.weight" in state else 2
    has_weights = any(".downsample." in name for name in state)
    network = RESNETS.get((blocks, convolutions, has_weights))
    if network is None:
        raise WeightsError(
            f"{path} holds a {ndim}D ResNet of {blocks} blocks of {convolutions} convolutions, shortcuts "
            f"{'with' if has_weights else 'without'} weights: those that are known are {', '.join(RESNETS.values())}"
        )
    title = f"{'ImageNet' if ndim == 2 else 'MedicalNet'} {network}"
    notes = () if ndim == 2 else ("layer3 and layer4 halve the sides here; MedicalNet's own code dilates them instead",)
    # A 3D ResNet of three channels has learnt from videos, with other strides.
    channels = (1, 3) if ndim == 2 else (1,)
    return SupervisedLayout(
        title, _encoder_alone(ndim, network), "conv1.weight", channels, heads=("fc", "conv_seg"), notes=notes
    )


def _encoder_alone(ndim: int, network: str) -> Architecture:
    return Architecture(ndim=ndim, network=network, restores=False)
