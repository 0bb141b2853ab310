"""Saving and loading what describes a whole scan; no Ray here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from raygenesis.errors import WeightsError
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.principal_components import PrincipalComponents
from raygenesis.networks.scan_encoders import PretrainedScanEncoder, ScanEncoder
from raygenesis.networks.weights.loading import network_of
from raygenesis.networks.weights.native import ENCODER_FILE
from raygenesis.networks.weights.safetensors_files import build_described, read_safetensors, write_safetensors
from raygenesis.workspace.files import Place, as_place

AUTOENCODER_FILE, COMPONENTS_FILE = "autoencoder.safetensors", "pca.safetensors"  # in the artifacts' folders
FORMAT = "raygenesis-scan-encoder-1"
KINDS: dict[str, type[Autoencoder] | type[PrincipalComponents]] = {
    "autoencoder": Autoencoder, "pca": PrincipalComponents
}  # fmt: skip


def save_scan_encoder(
    path: Place,
    kind: Literal["autoencoder", "pca"],
    state: Mapping[str, torch.Tensor],
    architecture: Mapping[str, object],
) -> None:
    """Publish a safetensors file that `load_scan_encoder` reads.

    kind: of the module; state: its state dictionary; architecture: arguments of the module's class, as JSON has them.
    """
    write_safetensors(path, state, {"format": FORMAT, "kind": kind, "architecture": architecture})


def load_scan_encoder(path: str | Place, input_shape: Sequence[int] = ()) -> ScanEncoder:
    """An auto-encoder, principal components or a pretraining run's encoder, in evaluation mode.

    path: a file, or the folder of a run. input_shape: the shape in which a run's encoder takes a whole scan; the other
    kinds have their own. Raises WeightsError if the file is not there, damaged, none of these, or for another number of
    dimensions.
    """
    path = as_place(path)
    file = path if path.is_file() else path / ENCODER_FILE
    if not file.is_file():
        raise WeightsError(f"encoder {file} does not exist: give the file of an encoder, or the folder of a run")
    description, state = read_safetensors(file, "encoder")
    if description.get("format") == FORMAT:
        return _described(file, description, state)
    encoder = network_of(file, description, state).encoder.eval()
    ndim = next(encoder.parameters()).ndim - 2
    if input_shape and len(input_shape) != ndim:
        raise WeightsError(f"{file} takes {ndim}D images, and the scans are {len(input_shape)}D")
    return PretrainedScanEncoder(encoder, input_shape).eval()


def _described(file: Place, description: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> ScanEncoder:
    """The module that a file of FORMAT describes. Raises WeightsError if its tensors are others."""

    def build() -> Autoencoder | PrincipalComponents:
        return KINDS[description["kind"]](**description["architecture"])

    return build_described(file, "encoder", build, state).eval()
