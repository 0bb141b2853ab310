"""Safetensors files that describe what they hold, read and written in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from raygenesis.errors import WeightsError
from raygenesis.networks.weights.torch_files import first_mismatch
from raygenesis.workspace.files import Place, on_disk, publish
from raygenesis.workspace.manifest import Tree

# One key for the whole description: safetensors writes several in an order of its own each time, and the same content
# must give the same bytes.
KEY = "raygenesis"

Module = TypeVar("Module", bound=nn.Module)


def build_described(file: Place, kind: str, build: Callable[[], Module], tensors: Mapping[str, torch.Tensor]) -> Module:
    """Build the module that a file describes, with the tensors of the file.

    It is built on torch's meta device first, where it takes no memory whatever a description says, and its shapes are
    compared with the tensors: what is built then is no larger than the file.

    Args:
        file: The file, for error messages.
        kind: What the file is to hold, as `read_safetensors` has it.
        build: Builds the module, with any weights.
        tensors: The module's state dictionary.

    Raises:
        WeightsError: Nothing can be built as the file describes, or its tensors are those of another module.
    """
    try:
        with torch.device("meta"):
            expected = build().state_dict()
    except Exception:  # a description may hold anything
        raise WeightsError(f"{file} does not describe its {kind}") from None
    foreign = next((f"{name} has no place in it" for name in tensors if name not in expected), None)
    if reason := foreign or first_mismatch(tensors, expected):
        raise WeightsError(f"{file} does not match its own description: {reason}")
    model = build()
    model.load_state_dict(tensors)
    return model


def read_safetensors(file: Place, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read a safetensors file.

    Args:
        file: The file, on a disk or in an object store.
        kind: What the file is to hold, as error messages say it: "network", "encoder".

    Returns:
        The description that `write_safetensors` put into the file, empty for a file that others wrote; and the tensors
        by name, on the CPU.

    Raises:
        WeightsError: The file is no safetensors file or is damaged, or has a description that is not JSON.
    """
    try:
        with on_disk(file) as local, safe_open(local, "pt") as opened:
            description = json.loads((opened.metadata() or {}).get(KEY, "{}"))
            if not isinstance(description, dict):
                raise ValueError
            return description, load_file(local)
    except (SafetensorError, OSError):
        raise WeightsError(f"{file} is not a safetensors file, or is damaged") from None
    except ValueError:
        raise WeightsError(f"{file} does not describe its {kind}") from None


def write_safetensors(path: Place, tensors: Mapping[str, torch.Tensor], description: Tree) -> None:
    """Publish a safetensors file; the same content gives the same bytes.

    Args:
        path: Where to write, on a disk or in an object store.
        tensors: Tensors by name; copied to the CPU and made contiguous.
        description: JSON tree that `read_safetensors` returns.
    """
    metadata = {KEY: json.dumps(description, sort_keys=True)}
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    publish(path, lambda aside: save_file(on_cpu, aside, metadata))
