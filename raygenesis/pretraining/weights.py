"""Weights that leave: safetensors with their configuration and a model card, read back without Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from raygenesis._version import __version__
from raygenesis.errors import RaygenesisError
from raygenesis.pretraining.networks import Encoder, SemanticGenesis, UNet
from raygenesis.workspace import publish

ENCODER_FILE = "encoder.safetensors"
CARD_FILE = "model-card.md"
FORMAT = "raygenesis-1"


class WeightsError(RaygenesisError):
    """A file of weights that is not ours, or damaged."""


def export(model: SemanticGenesis, folder: Path, architecture: Mapping[str, int], facts: Mapping[str, Any]) -> Path:
    """Write the whole pretrained network as `encoder.safetensors` and describe it in `model-card.md`.

    architecture: `ndim`, `base_width`, `num_classes`; facts: what the card tells.
    """
    described = {"format": FORMAT, "version": __version__, "architecture": dict(architecture)}
    # One key: safetensors writes several in an order of its own each time, and the same network must be the same bytes.
    metadata = {"raygenesis": json.dumps(described, sort_keys=True)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    publish(folder / ENCODER_FILE, lambda aside: save_file(tensors, aside, metadata))
    publish(folder / CARD_FILE, lambda aside: aside.write_text(_card(architecture, facts)))
    return folder / ENCODER_FILE


def load_encoder(path: str | Path) -> Encoder:
    """The pretrained encoder as a torch module in evaluation mode; needs no Ray.

    `path` is `encoder.safetensors` or the run's folder. `encoder(images)` gives the features of each level and
    `encoder.embed(images)` one vector an image; images are float32 [n, 1, z, y, x] in [0, 1].
    """
    return load_network(path).encoder.eval()


def load_unet(path: str | Path, num_out: int) -> UNet:
    """The pretrained encoder and decoder with a new output layer of `num_out` channels, for segmentation."""
    pretrained = load_network(path)
    architecture = _architecture(_file(path))
    unet = UNet(num_out, architecture["ndim"], architecture["base_width"])
    unet.encoder.load_state_dict(pretrained.encoder.state_dict())
    kept = {name: value for name, value in pretrained.decoder.state_dict().items() if not name.startswith("output.")}
    unet.decoder.load_state_dict(kept, strict=False)
    return unet


def load_network(path: str | Path) -> SemanticGenesis:
    """The whole pretrained network, heads included. Raises WeightsError if the file is not one of ours."""
    file = _file(path)
    architecture = _architecture(file)
    model = SemanticGenesis(architecture["num_classes"], architecture["ndim"], architecture["base_width"])
    try:
        model.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{file} does not match its own description: {str(error).splitlines()[0]}") from None
    return model


def _file(path: str | Path) -> Path:
    path = Path(path)
    file = path / ENCODER_FILE if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"{file} does not exist: give a run's folder or its {ENCODER_FILE}")
    return file


def _architecture(file: Path) -> dict[str, int]:
    try:
        with safe_open(file, "pt") as opened:
            described = json.loads((opened.metadata() or {}).get("raygenesis", "{}"))
    except (SafetensorError, OSError):
        raise WeightsError(f"{file} is not a safetensors file") from None
    if described.get("format") != FORMAT:
        raise WeightsError(f"{file} was not written by raygenesis: its format is {described.get('format')!r}")
    return described["architecture"]


def _card(architecture: Mapping[str, int], facts: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in {**architecture, **facts}.items())
    return f"""# Semantic Genesis encoder

Pretrained by raygenesis {__version__} without labels: anatomical patterns were found among similar patients, and the
network learned to name their place and to restore them from corrupted copies (Haghighi et al., MICCAI 2020).

| | |
| --- | --- |
{rows}

Input: float32 [n, 1, z, y, x] (2D: y, x) scaled to [0, 1] as the run's `config.yaml` says, sides divisible by 8.

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
