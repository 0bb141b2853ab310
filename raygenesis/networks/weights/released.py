"""Weights published for the earlier systems (Models Genesis, Semantic Genesis, TransVW), read and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from raygenesis.errors import WeightsError
from raygenesis.networks.heads import ClassificationHead
from raygenesis.networks.unet import UNetDecoder, UNetEncoder, level_widths
from raygenesis.networks.weights.torch_files import (
    check_finite,
    check_stored,
    first_mismatch,
    float_copy,
    is_tensor,
    unused_lines,
    write_torch,
)
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
    """The tensors of a published file.

    Attributes:
        state: Tensors by our names, float32 (the batch norms' counters int64).
        used: Their names of these, without the prefixes of wrappers.
        unused: Why each other tensor of the file is not used, by its name.
        missing: Parts of our network that the file lacks.
    """

    state: dict[str, torch.Tensor]
    used: list[str]
    unused: dict[str, str]
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


def parse_released(state: Mapping[str, object], path: Place) -> Released:
    """Find the 3D U-Net of the earlier systems among the tensors of a file.

    The encoder must be whole; a decoder or a classification head that is not is left out.

    Args:
        state: What `read_state_dict` returns.
        path: The file, for error messages.

    Raises:
        WeightsError: The file holds another network, or numbers that are not finite.
    """
    renamed = {name: ours for name in state if (ours := _rename(name, OURS))}
    if not is_released(state):
        listed = f"begin with {', '.join(list(state)[:3])}" if state else "are none"
        raise WeightsError(f"{path} holds no convolution of the U-Net of Models Genesis: the names in it {listed}")

    expected = _expected({ours: state[name] for name, ours in renamed.items()})
    tensors = {name: value for name, value in state.items() if is_tensor(value)}
    used: list[str] = []
    unused = {name: _reason_unknown(name) for name in tensors}
    missing = []
    for part, title in PARTS.items():
        wanted = {
            _rename(ours, THEIRS) or ours: value for ours, value in expected.items() if ours.startswith(f"{part}.")
        }
        reason = first_mismatch(state, wanted)
        if reason and part == "encoder":
            raise WeightsError(f"{path} does not hold a whole encoder: {reason}")
        if reason:
            missing.append(title)
            unused |= {name: f"the {title} is not whole: {reason}" for name in unused if name in wanted}
        else:
            used += wanted
    unused = {name: reason for name, reason in unused.items() if name not in used}

    check_stored({name: tensors[name] for name in used}, path)
    theirs = {name: float_copy(tensors[name]) for name in used}
    check_finite(theirs, path)
    return Released({renamed[name]: value for name, value in theirs.items()}, used, unused, missing)


def is_released(state: Mapping[str, object]) -> bool:
    """Whether a state dict holds a convolution of the earlier systems' network."""
    return any(".conv1." in name and _rename(name, OURS) for name in state)


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
        if (part == "encoder" or not wanted.keys().isdisjoint(state)) and (reason := first_mismatch(state, wanted)):
            raise WeightsError(f"{path} is not written: {reason}")
    tensors = {_rename(name, THEIRS): float_copy(value.cpu()) for name, value in state.items()}
    write_torch({"state_dict": tensors}, path)


def summary(released: Released) -> list[str]:
    """Lines that say which tensors are used, which parts are missing, and which tensors are not used and why."""
    counts = Counter(name.partition(".")[0] for name in released.state)
    lines = [f"taken: {', '.join(f'{title} {counts[part]} tensors' for part, title in PARTS.items() if counts[part])}"]
    if released.missing:
        lines.append(f"missing: {', '.join(released.missing)}")
    return lines + unused_lines(released.unused)


def _rename(name: str, layers: Mapping[str, str]) -> str | None:
    """The tensor's name in the other layout, None where its layer has none."""
    layer, _, tensor = name.rpartition(".")
    return f"{layers[layer]}.{tensor}" if layer in layers else None


def _expected(state: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Names and shapes (tensors without content) of our network with the width and classes of `state`."""
    base_width, num_classes = _length(state.get(FIRST)), _length(state.get(LINEAR))
    with torch.device("meta"):
        parts = {
            "encoder": UNetEncoder(3, base_width),
            "decoder": UNetDecoder(3, base_width),
            "head": ClassificationHead(3, level_widths(base_width)[-1], num_classes),
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


def _length(value: object) -> int:
    return max(1, len(value)) if is_tensor(value) and value.ndim else 1


def _reason_unknown(name: str) -> str:
    is_unet = name.startswith(("down_tr", "up_tr", "out_tr.", "clc_out."))
    return "no such tensor here" if is_unet else "no such head here"
