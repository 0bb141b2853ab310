"""Torch files: opened so that no code in them runs, checked tensor by tensor, and written."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeGuard
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch

from raygenesis.errors import WeightsError
from raygenesis.workspace.files import Place, on_disk, publish

# What tensors may take in memory however little of them is stored.
SMALL_BYTES = 2**28


def read_state_dict(path: Place) -> dict[str, object]:
    """Read the state dict of a torch file, names `without_wrappers`; no code in the file is run.

    Raises:
        WeightsError: The file is missing, is no torch file, or holds pickled objects other than tensors.
    """
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    return without_wrappers(content, path)


def without_wrappers(content: Mapping[Any, object], path: Place) -> dict[str, object]:
    """The state dict without the prefixes of modules that wrapped the network (`module.`)."""
    state: dict[str, object] = {}
    for key, value in content.items():
        name = re.sub(r"^(module\.|classficationNet\.)+", "", str(key))
        if name in state:
            raise WeightsError(f"{path} holds {name} twice, under different prefixes: keep one of the two networks")
        state[name] = value
    return state


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor)


def first_mismatch(state: Mapping[str, object], expected: Mapping[str, torch.Tensor]) -> str | None:
    """Why a state dict does not hold the expected tensors, by the first that is missing or of another shape or dtype.

    None if it holds them all; it may hold others.
    """
    for name, like in expected.items():
        value = state.get(name)
        if not is_tensor(value):
            return f"{name} is missing"
        if value.shape != like.shape:
            return f"{name} has shape {list(value.shape)} where {list(like.shape)} fits the rest"
        both_float = value.is_floating_point() and like.is_floating_point()
        if value.layout != torch.strided or value.is_meta or not (both_float or value.dtype == like.dtype):
            return f"{name} is not a dense tensor of {str(like.dtype).removeprefix('torch.')}"
    return None


def float_copy(value: torch.Tensor) -> torch.Tensor:
    """A contiguous copy that shares memory with nothing; floating-point tensors become float32."""
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def check_stored(state: Mapping[str, torch.Tensor], path: Place) -> None:
    """Raise WeightsError if a state dict takes far more memory than what is stored of it.

    A tensor of strides of 0 may have any shape, and one number in the file.
    """
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    if claimed > max(SMALL_BYTES, 2 * sum(storages.values())):
        raise WeightsError(
            f"{path} holds {sum(storages.values()):,} bytes of numbers for tensors of {claimed:,} bytes: have its "
            "owner save copies of them"
        )


def check_finite(state: Mapping[str, torch.Tensor], path: Place) -> None:
    """Raise WeightsError if a tensor of a state dict holds NaN or infinity."""
    for name, value in state.items():
        if not value.isfinite().all():
            raise WeightsError(f"{path} holds numbers that are not finite, in {name}: its training had diverged")


def unused_lines(unused: Mapping[str, str]) -> list[str]:
    """Lines that list unused tensors (name → reason), by the first part of the name and the reason."""
    groups = Counter((name.partition(".")[0], reason) for name, reason in unused.items())
    return [f"{prefix}.*: {num} tensor{'s' if num > 1 else ''}, {reason}" for (prefix, reason), num in groups.items()]


def write_torch(content: Mapping[str, object], path: Path) -> None:
    """Publish a torch file; the same content gives the same bytes."""

    def write(aside: Path) -> None:
        # Through an open file: by itself torch.save writes the name aside into the file.
        with aside.open("wb") as file:
            torch.save(content, file)

    publish(path, write)


def _is_packed(local: Path) -> bool:
    """Whether a torch file is an archive some parts of which may be larger than the file."""
    try:
        with ZipFile(local) as parts:
            return any(part.compress_type != ZIP_STORED for part in parts.infolist())
    except (BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # of the older format, or torch says what is wrong with it


def _load(path: Place) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: give a .pt or .pth file that was published")
    with on_disk(path) as local:
        return _load_local(local, path)


def _load_local(local: Path, path: Place) -> Any:
    """`path` is what messages call the file."""
    if _is_packed(local):
        raise WeightsError(f"{path} holds packed parts, which torch.save does not write: have its owner save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch, about a pickle's protocol
            return torch.load(local, weights_only=True, map_location="cpu")
    except PermissionError:
        raise WeightsError(f"{path} may not be read: ask its owner for the permission") from None
    except Exception as error:  # a damaged stream of pickled bytes can end in any of them
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named or (isinstance(error, UnpicklingError) and is_zipfile(local)):
            listed = f" ({named[1]})" if named else ""
            raise WeightsError(
                f"{path} holds pickled objects other than tensors{listed} and is not opened, because such files can "
                "run code: have its owner load it and save the tensors alone, torch.save(model.state_dict(), file)"
            ) from None
        raise WeightsError(f"{path} is not a torch file, or is damaged: give one written by torch.save") from None
