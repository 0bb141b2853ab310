"""What describes a whole scan by a vector: the auto-encoder, principal components, or a pretrained network.

All are torch modules with `input_shape` and `encode`: float32 [n, 1, *input_shape] in [0, 1] → [n, latent_size].
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from raygenesis.errors import RaygenesisError
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.training.feeding import Samples
from raygenesis.workspace.files import Place, as_place, on_disk, publish

if TYPE_CHECKING:
    from raygenesis.networks.encoder import ImageEncoder

FORMAT = "raygenesis-scan-encoder-1"

# Of the first component's variance.
LEAST_VARIANCE = 1e-5


class EncoderError(RaygenesisError):
    """A file that is no encoder of ours, or damaged; or scans that give none."""


class PrincipalComponents(nn.Module):
    """The linear baseline: the directions in which coarse scans vary most."""

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(self, input_shape: Sequence[int], latent_size: int) -> None:
        super().__init__()
        self.input_shape, self.latent_size = tuple(input_shape), latent_size
        self.register_buffer("mean", torch.zeros(math.prod(self.input_shape)))
        self.register_buffer("components", torch.zeros(latent_size, math.prod(self.input_shape)))

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        return (volumes.flatten(1) - self.mean) @ self.components.T

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """The scans as the components restore them."""
        return (self.encode(volumes) @ self.components + self.mean).reshape(volumes.shape)


class Pretrained(nn.Module):
    """The encoder of a pretraining run, which sees the whole scan as one image."""

    def __init__(self, encoder: ImageEncoder, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.input_shape = encoder, tuple(input_shape)

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.encoder.embed(volumes)


ScanEncoder = Autoencoder | PrincipalComponents | Pretrained


def fit_components(samples: Samples, latent_size: int) -> PrincipalComponents:
    """Principal components of all the samples.

    Fewer than there are samples, and none along which these hardly vary: rounding would decide where it points.
    """
    scans = samples.batch(np.arange(len(samples))).cubes.flatten(1)
    mean = scans.mean(0)
    scans -= mean
    # There are fewer scans than voxels: the eigenvectors of scans × scans give those of voxels × voxels.
    values, vectors = torch.linalg.eigh((scans @ scans.T).double())
    size = min(latent_size, len(scans) - 1, int((values > LEAST_VARIANCE * values[-1]).sum()))
    if not size:
        raise EncoderError(f"the {len(scans)} training scans do not differ: add scans, or choose another encoder")
    values, vectors = values.flip(0)[:size], vectors.flip(1)[:, :size]
    components = (vectors / values.sqrt()).float().T @ scans
    # An eigenvector's sign is free: its largest number is made positive.
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    model = PrincipalComponents(samples.shape, size)
    model.mean, model.components = mean, components * largest.sign()
    return model.eval()


def save_encoder(path: Place, kind: str, state: dict[str, torch.Tensor], architecture: dict[str, Any]) -> None:
    """Write weights with what `load_scan_encoder` needs to build their module."""
    described = json.dumps({"format": FORMAT, "kind": kind, "architecture": architecture}, sort_keys=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    publish(path, lambda aside: save_file(tensors, aside, {"raygenesis": described}))


def load_scan_encoder(path: str | Place, input_shape: Sequence[int] | None = None) -> ScanEncoder:
    """An auto-encoder, principal components or a pretraining run's encoder, in evaluation mode; needs no Ray.

    input_shape: what a run's encoder is given a whole scan as; the others know their own.
    Raises EncoderError if the file is none of ours.
    """
    path = as_place(path)
    file = path if path.is_file() else path / "encoder.safetensors"
    described, state = _read(file)
    if described.get("format") != FORMAT:
        return _pretrained(file, input_shape or ())
    kinds = {"autoencoder": Autoencoder, "pca": PrincipalComponents}
    try:
        model = kinds[described["kind"]](**described["architecture"])
        model.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError) as error:
        raise EncoderError(f"{file} does not match its own description: {str(error).splitlines()[0]}") from None
    return model.eval()


def restore(model: ScanEncoder, scan: NDArray[np.float32]) -> NDArray[np.float32]:
    """A scan of the model's input shape as its vector gives it back."""
    with torch.inference_mode():
        return model(torch.from_numpy(scan)[None, None])[0, 0].numpy()


def _pretrained(file: Place, input_shape: Sequence[int]) -> Pretrained:
    from raygenesis import load_encoder  # a later stage's, by the package's own door

    try:
        encoder = load_encoder(file)
    except RaygenesisError as error:
        raise EncoderError(str(error)) from None
    ndim = next(encoder.parameters()).ndim - 2
    if input_shape and len(input_shape) != ndim:
        raise EncoderError(f"{file} takes {ndim}D images, and the scans are {len(input_shape)}D")
    return Pretrained(encoder, input_shape).eval()


def _read(file: Place) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the file says of itself, and its tensors."""
    if not file.is_file():
        raise EncoderError(f"encoder {file} does not exist: give the file of an encoder, or the folder of a run")
    try:
        with on_disk(file) as local, safe_open(local, "pt") as opened:
            described = json.loads((opened.metadata() or {}).get("raygenesis", "{}"))
            return described if isinstance(described, dict) else {}, load_file(local)
    except (SafetensorError, OSError, ValueError):
        raise EncoderError(f"encoder {file} is not a safetensors file of raygenesis") from None
