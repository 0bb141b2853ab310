"""Weights published for the earlier systems (Models Genesis, Semantic Genesis, TransVW), read and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raygenesis.errors import WeightsError
from raygenesis.networks.heads import ClassificationHead
from raygenesis.networks.unet import Decoder, Encoder, widths_of
from raygenesis.networks.weights.torch_files import finite, is_tensor, misfit, plain, save_torch, told
from raygenesis.workspace.files import Place

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


def released_in(found: Mapping[str, Any], path: Place) -> Released:
    """The 3D network among the tensors of a file (`read_tensors`) of the earlier systems, in our names.

    The encoder must be whole; a decoder or a classification head that is not is left. path: what errors name. Raises
    WeightsError if the file holds another network, or numbers that are not finite.
    """
    renamed = {name: ours for name in found if (ours := _rename(name, OURS))}
    if not is_released(found):
        listed = f"begin with {', '.join(list(found)[:3])}" if found else "are none"
        raise WeightsError(f"{path} holds no convolution of the U-Net of Models Genesis: the names in it {listed}")

    expected = _expected({ours: found[name] for name, ours in renamed.items()})
    taken: list[str] = []
    left = {name: _no_place(name) for name, value in found.items() if is_tensor(value)}
    missing = []
    for part, title in PARTS.items():
        wanted = {
            _rename(ours, THEIRS) or ours: value for ours, value in expected.items() if ours.startswith(f"{part}.")
        }
        reason = misfit(found, wanted)
        if reason and part == "encoder":
            raise WeightsError(f"{path} does not hold a whole encoder: {reason}")
        if reason:
            missing.append(title)
            left |= {name: f"the {title} is not whole: {reason}" for name in left if name in wanted}
        else:
            taken += wanted
    left = {name: reason for name, reason in left.items() if name not in taken}

    theirs = {name: plain(found[name]) for name in taken}
    finite(theirs, path)
    return Released({renamed[name]: value for name, value in theirs.items()}, taken, left, missing)


def is_released(found: Mapping[str, Any]) -> bool:
    """Whether a convolution of the earlier systems' network is among what was found."""
    return any(".conv1." in name and _rename(name, OURS) for name in found)


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
        if (part == "encoder" or not wanted.keys().isdisjoint(state)) and (reason := misfit(state, wanted)):
            raise WeightsError(f"{path} is not written: {reason}")
    tensors = {_rename(name, THEIRS): plain(value.cpu()) for name, value in state.items()}
    save_torch({"state_dict": tensors}, path)


def summary(released: Released) -> list[str]:
    """Printed lines: what was taken, what is missing, and what was left by its first name and reason."""
    counts = Counter(name.partition(".")[0] for name in released.state)
    lines = [f"taken: {', '.join(f'{title} {counts[part]} tensors' for part, title in PARTS.items() if counts[part])}"]
    if released.missing:
        lines.append(f"missing: {', '.join(released.missing)}")
    return lines + told(released.left)


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
    return max(1, len(value)) if is_tensor(value) and value.ndim else 1


def _no_place(name: str) -> str:
    is_unet = name.startswith(("down_tr", "up_tr", "out_tr.", "clc_out."))
    return "no such tensor here" if is_unet else "no such head here"
