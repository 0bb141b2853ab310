"""Networks written for other code: torch files with the names of the library that a network is known from."""

from __future__ import annotations

from pathlib import Path

from raygenesis.errors import WeightsError
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.loading import load_network
from raygenesis.networks.weights.released import write_released
from raygenesis.networks.weights.torch_files import write_torch
from raygenesis.workspace.files import Place


def export_to_library(path: str | Place, output: Path) -> str:
    """Write a network as a torch file with the names of the code that it is known from.

    A 3D U-Net is written as the code of Models Genesis and Semantic Genesis loads it, MONAI's networks as MONAI does.

    Args:
        path: As for `load_encoder`.
        output: The torch file to write.

    Returns:
        What can load the file, in words.

    Raises:
        WeightsError: There is no such code, or the weights cannot be read.
    """
    model = load_network(path)
    if not model.architecture.skips:
        raise WeightsError(
            f"{path} holds a decoder without skips, which no other code has: use raygenesis.load_encoder"
        )
    if model.architecture.network == "unet":
        return _export_to_genesis(model, path, output)
    return _export_to_monai(model, path, output)


def _export_to_monai(model: PretextNetwork, path: str | Place, output: Path) -> str:
    from raygenesis.networks.monai_networks import monai_class, monai_state  # MONAI takes seconds to import

    network = model.architecture.network
    name = monai_class(network)
    if name is None:
        raise WeightsError(f"{path} is a {network}, which MONAI has not: use raygenesis.load_unet")
    if model.decoder is None:
        raise WeightsError(f"{path} holds no decoder, and MONAI's network of that name has one")
    write_torch({key: value.contiguous() for key, value in monai_state(model.state_dict()).items()}, output)
    return f"monai.networks.nets.{name}: load_state_dict(torch.load(file, weights_only=True))"


def _export_to_genesis(model: PretextNetwork, path: str | Place, output: Path) -> str:
    architecture = model.architecture
    if architecture.ndim == 2 or architecture.norm not in ("batch", "batch-statistics"):
        raise WeightsError(
            f"{path} is a {architecture.ndim}D U-Net with {architecture.norm} norm: only 3D ones with batch norm have "
            "the layout of the published code; load it with raygenesis.load_unet"
        )
    exported = {
        name: value for name, value in model.state_dict().items()
        if name.startswith(("encoder.", "decoder.")) or (
            name.startswith("head.") and architecture.head == "classification"
        )
    }  # fmt: skip
    write_released(exported, output)
    known_as = "the published code of Models Genesis and Semantic Genesis: its `state_dict`"
    if architecture.norm == "batch":
        known_as += (
            "; in evaluation that code normalises by each batch's own statistics and gives other answers than here (a "
            "network trained with pretraining.norm=batch-statistics gives the same answers)"
        )
    return known_as
