"""Weights published for the earlier systems (Models Genesis, Semantic Genesis, TransVW), read and written."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import nn

from raygenesis.errors import RaygenesisError
from raygenesis.pretraining.networks import ClassificationHead, Decoder, Encoder, widths_of
from raygenesis.workspace import publish

PARTS = {"encoder": "encoder", "decoder": "decoder", "head": "classification head"}
LEVELS = {
    "down_tr64": "encoder.levels.0", "down_tr128": "encoder.levels.1",
    "down_tr256": "encoder.levels.2", "down_tr512": "encoder.levels.3",
    "up_tr256": "decoder.levels.0", "up_tr128": "decoder.levels.1", "up_tr64": "decoder.levels.2",
}  # fmt: skip
LAYERS = {"ops.0.conv1": 0, "ops.0.bn1": 1, "ops.1.conv1": 3, "ops.1.bn1": 4}
# Their layer → ours; what follows it (weight, bias, running_mean, …) is the same in both.
OURS = {
    **{f"{level}.{layer}": f"{ours}.{number}" for level, ours in LEVELS.items() for layer, number in LAYERS.items()},
    "up_tr256.up_conv": "decoder.ups.0", "up_tr128.up_conv": "decoder.ups.1", "up_tr64.up_conv": "decoder.ups.2",
    "out_tr.final_conv": "decoder.output",
    "clc_out.conv1": "head.conv.0", "clc_out.bn1": "head.conv.1", "clc_out.fc1": "head.linear",
}  # fmt: skip
THEIRS = {ours: theirs for theirs, ours in OURS.items()}
FIRST, LINEAR = "encoder.levels.0.0.weight", "head.linear.weight"


class WeightsError(RaygenesisError):
    """A file of weights that is not ours, or damaged."""


@dataclass(frozen=True)
class Released:
    """What a published file gave.

    state: our names → tensors, float32 (the batch norms' counters int64); taken: their names of these, without the
    prefixes of wrappers; left: their name → why it was not taken; missing: the parts of ours that `state` lacks.
    """

    state: dict[str, torch.Tensor]
    taken: list[str]
    left: dict[str, str]
    missing: list[str]

    @property
    def base_width(self) -> int:
        """Channels of the first convolution, 32 in theirs."""
        return len(self.state[FIRST])

    @property
    def num_classes(self) -> int | None:
        """Classes of the classification head; None without one."""
        return len(self.state[LINEAR]) if LINEAR in self.state else None

    @property
    def has_decoder(self) -> bool:
        return PARTS["decoder"] not in self.missing


def read_released(path: str | Path) -> Released:
    """The 3D network in a file of the earlier systems, in our names.

    The encoder must be whole; a decoder or a classification head that is not is left. Nothing in the file is run.
    Raises WeightsError if the file is not there, is no torch file, holds objects other than tensors, holds another
    network, or holds numbers that are not finite.
    """
    path = Path(path)
    found = _tensors(path)
    renamed = {name: ours for name in found if (ours := _rename(name, OURS))}
    if not any(".conv1." in name for name in renamed):
        listed = f"begin with {', '.join(list(found)[:3])}" if found else "are none"
        raise WeightsError(f"{path} holds no convolution of the U-Net of Models Genesis: the names in it {listed}")

    expected = _expected({ours: found[name] for name, ours in renamed.items()})
    taken: list[str] = []
    left = {name: _no_place(name) for name, value in found.items() if _is_tensor(value)}
    missing = []
    for part, title in PARTS.items():
        wanted = {_rename(ours, THEIRS): value for ours, value in expected.items() if ours.startswith(f"{part}.")}
        reason = _misfit(found, wanted)
        if reason and part == "encoder":
            raise WeightsError(f"{path} does not hold a whole encoder: {reason}")
        if reason:
            missing.append(title)
            left |= {name: f"the {title} is not whole: {reason}" for name in left if name in wanted}
        else:
            taken += wanted
    left = {name: reason for name, reason in left.items() if name not in taken}

    state = {renamed[name]: _plain(found[name]) for name in taken}
    for name in taken:
        if not state[renamed[name]].isfinite().all():
            raise WeightsError(f"{path} holds numbers that are not finite, in {name}: its training had diverged")
    return Released(state, taken, left, missing)


def write_released(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Write the state of a 3D U-Net of ours as the earlier systems' code loads it: {"state_dict": their names}.

    Its norm must be `batch` or `batch-statistics`: a state does not tell the latter from `instance` or `group`.
    Raises WeightsError if `state` holds anything but a whole encoder and, if at all, a whole decoder and head.
    """
    path = Path(path)
    state = _running_statistics(state) | dict(state)
    expected = _expected(state)
    if foreign := [name for name in state if name not in expected]:
        raise WeightsError(f"{path} is not written: {foreign[0]} has no place in the U-Net of Models Genesis")
    for part in PARTS:
        wanted = {name: value for name, value in expected.items() if name.startswith(f"{part}.")}
        if (part == "encoder" or not wanted.keys().isdisjoint(state)) and (reason := _misfit(state, wanted)):
            raise WeightsError(f"{path} is not written: {reason}")
    tensors = {_rename(name, THEIRS): _plain(value.cpu()) for name, value in state.items()}
    save_torch({"state_dict": tensors}, path)


def save_torch(content: Mapping[str, Any], path: Path) -> None:
    """Publish a torch file; the same content gives the same bytes."""

    def write(aside: Path) -> None:
        # Through an open file: by itself torch.save writes the name aside into the file.
        with aside.open("wb") as file:
            torch.save(content, file)

    publish(path, write)


def summary(released: Released) -> list[str]:
    """Printed lines: what was taken, what is missing, and what was left by its first name and reason."""
    counts = Counter(name.partition(".")[0] for name in released.state)
    lines = [f"taken: {', '.join(f'{title} {counts[part]} tensors' for part, title in PARTS.items() if counts[part])}"]
    if released.missing:
        lines.append(f"missing: {', '.join(released.missing)}")
    groups = Counter((name.partition(".")[0], reason) for name, reason in released.left.items())
    for (prefix, reason), num in groups.items():
        lines.append(f"{prefix}.*: {num} tensor{'s' if num > 1 else ''}, {reason}")
    return lines


def _tensors(path: Path) -> dict[str, Any]:
    """The state dict in a file, its names without the prefixes of the modules that wrapped the network."""
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = re.sub(r"^(module\.|classficationNet\.)+", "", str(key))
        if name in found:
            raise WeightsError(f"{path} holds {name} twice, under different prefixes: keep one of the two networks")
        found[name] = value
    return found


def _load(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: give a .pt or .pth file of Models Genesis or its successors")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch, about a pickle's protocol
            return torch.load(path, weights_only=True, map_location="cpu")
    except PermissionError:
        raise WeightsError(f"{path} may not be read: ask its owner for the permission") from None
    except Exception as error:  # a damaged stream of pickled bytes can end in any of them
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named or (isinstance(error, UnpicklingError) and is_zipfile(path)):
            listed = f" ({named[1]})" if named else ""
            raise WeightsError(
                f"{path} holds pickled objects other than tensors{listed} and is not opened, because such files can "
                "run code: have its owner load it and save the tensors alone, torch.save(model.state_dict(), file)"
            ) from None
        raise WeightsError(f"{path} is not a torch file, or is damaged: give one written by torch.save") from None


def _rename(name: str, layers: Mapping[str, str]) -> str | None:
    """The tensor's name in the other layout, None where its layer has none."""
    layer, _, tensor = name.rpartition(".")
    return f"{layers[layer]}.{tensor}" if layer in layers else None


def _expected(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Names and shapes (tensors without content) of our network with the width and classes of `state`."""
    base_width, num_classes = _length(state.get(FIRST)), _length(state.get(LINEAR))
    with torch.device("meta"):
        parts = {
            "encoder": Encoder(3, base_width),
            "decoder": Decoder(3, base_width),
            "head": ClassificationHead(3, widths_of(base_width)[-1], num_classes),
        }
        return nn.ModuleDict(parts).state_dict()


def _running_statistics(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of new batch norms, for the norm `batch-statistics`, which keeps none: theirs has them and ignores them."""
    statistics = {}
    for layer, theirs in THEIRS.items():
        weight = state.get(f"{layer}.weight")
        if theirs.endswith(".bn1") and weight is not None:
            statistics[f"{layer}.running_mean"] = torch.zeros_like(weight)
            statistics[f"{layer}.running_var"] = torch.ones_like(weight)
            statistics[f"{layer}.num_batches_tracked"] = torch.tensor(0)
    return statistics


def _length(value: Any) -> int:
    return max(1, len(value)) if _is_tensor(value) and value.ndim else 1


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _misfit(found: Mapping[str, Any], wanted: Mapping[str, torch.Tensor]) -> str | None:
    """Why what was found is not what is wanted, by the first tensor where it shows; None if it is."""
    for name, like in wanted.items():
        value = found.get(name)
        if not _is_tensor(value):
            return f"{name} is missing"
        if value.shape != like.shape:
            return f"{name} has shape {list(value.shape)} where {list(like.shape)} fits the rest"
        both_float = value.is_floating_point() and like.is_floating_point()
        if value.layout != torch.strided or value.is_meta or not (both_float or value.dtype == like.dtype):
            return f"{name} is not a dense tensor of {str(like.dtype).removeprefix('torch.')}"
    return None


def _plain(value: torch.Tensor) -> torch.Tensor:
    """A contiguous copy that shares memory with nothing; floating-point numbers as float32."""
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def _no_place(name: str) -> str:
    is_unet = name.startswith(("down_tr", "up_tr", "out_tr.", "clc_out."))
    return "no such tensor here" if is_unet else "no such head here"
