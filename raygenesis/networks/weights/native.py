"""Our own format of weights: `encoder.safetensors` with its architecture, and a model card beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch

from raygenesis._version import __version__
from raygenesis.errors import WeightsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.safetensors_files import build_described, write_safetensors
from raygenesis.settings import NETWORK_DIVISORS
from raygenesis.workspace.files import Place, publish
from raygenesis.workspace.manifest import Tree

ENCODER_FILE = "encoder.safetensors"
CARD_FILE = "model-card.md"
FORMAT = "raygenesis-2"


def save_network(model: PretextNetwork, folder: Place, facts: Mapping[str, object]) -> Place:
    """Write a pretrained network as `encoder.safetensors` and describe it in `model-card.md`.

    Args:
        model: The network, on any device.
        folder: Where both files are published.
        facts: Rows of the card's table besides the architecture, by name.

    Returns:
        The path of the weights.
    """
    description = {"format": FORMAT, "version": __version__, "architecture": asdict(model.architecture)}
    write_safetensors(folder / ENCODER_FILE, model.state_dict(), description)
    publish(folder / CARD_FILE, lambda aside: aside.write_text(_card(model.architecture, facts)))
    return folder / ENCODER_FILE


def restore_network(file: Place, description: Tree, tensors: Mapping[str, torch.Tensor]) -> PretextNetwork:
    """Build the network of a file from its description and tensors, as `read_safetensors` returns them.

    Raises:
        WeightsError: The file is of another format, or its tensors are not those of its description.
    """
    architecture = _architecture(file, description)
    return build_described(file, "network", lambda: PretextNetwork(architecture), tensors)


def _architecture(file: Place, description: Tree) -> Architecture:
    if description["format"] != FORMAT:
        raise WeightsError(
            f"{file} was not written by this version of raygenesis: its format is {description['format']!r}, and "
            f"{FORMAT!r} is read"
        )
    try:
        return Architecture(**description["architecture"])
    except (KeyError, TypeError):
        raise WeightsError(f"{file} does not describe its network") from None


def _card(architecture: Architecture, facts: Mapping[str, object]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in {**asdict(architecture), **facts}.items())
    return f"""# Pretrained encoder

Pretrained by raygenesis {__version__} without labels, by the pretext task named below.

| | |
| --- | --- |
{rows}

Input: float32 [n, 1, z, y, x] (2D: y, x) scaled to [0, 1] as the run's `config.yaml` says, sides
divisible by {NETWORK_DIVISORS[architecture.network]}.

```python
import raygenesis
encoder = raygenesis.load_encoder("encoder.safetensors")   # features of each level; encoder.embed(x): one vector
unet = raygenesis.load_unet("encoder.safetensors", num_out=3)   # encoder and decoder for segmentation
```

Not a medical device. Check on your own data before use.
"""
