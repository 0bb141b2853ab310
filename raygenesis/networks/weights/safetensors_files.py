"""Safetensors files that describe what they hold, read and written in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from raygenesis.errors import WeightsError
from raygenesis.workspace.files import Place, on_disk, publish
from raygenesis.workspace.manifest import Tree

# One key for the whole description: safetensors writes several in an order of its own each time, and the same content
# must give the same bytes.
KEY = "raygenesis"


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
