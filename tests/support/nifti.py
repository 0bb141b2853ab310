"""NIfTI files made byte by byte, right or wrong on purpose."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import ArrayLike, NDArray

HEADER_BYTES = 348
AFFINE = np.array([[0, 0, 3.0, -10], [-1, 0, 0, 40], [0, 2, 0, 5], [0, 0, 0, 1]])  # stored P S R


def nifti_bytes(
    voxels: NDArray[Any], affine: ArrayLike | None = None, big_endian: bool = False, **fields: Any
) -> bytes:
    """An uncompressed NIfTI-1 file of these voxels; `fields` are then forced into its header, sensible or not."""
    header = nibabel.Nifti1Header(endianness=">" if big_endian else "<")
    header.set_data_dtype(voxels.dtype)
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else np.asarray(affine), header)
    content = image.to_bytes()
    header = nibabel.Nifti1Header(content[:HEADER_BYTES], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[HEADER_BYTES:]


def write_nifti(path: Path, voxels: NDArray[Any], affine: ArrayLike | None = None, **fields: Any) -> Path:
    """Write it, packed if the name ends in .gz; the same content always gives the same bytes."""
    content = nifti_bytes(voxels, affine, **fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an array read from the old file may still be mapped
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.suffix.lower() == ".gz" else content)
    return path


def grey(shape: tuple[int, ...], dtype: Any = np.int16, seed: int = 0) -> NDArray[Any]:
    """Voxels from 0 to 119 in random order, never all the same."""
    return (np.random.default_rng(seed).permutation(int(np.prod(shape))) % 120).reshape(shape).astype(dtype)


def add_scan(scans: Path, number: int, suffix: str = ".nii.gz") -> Path:
    """One of several scans that differ, under a name of BIDS."""
    voxels = grey((9, 12, 10), seed=number)
    return write_nifti(scans / f"sub-{number:02d}" / f"sub-{number:02d}_T1w{suffix}", voxels, AFFINE)


def make_scans(scans: Path, count: int) -> Path:
    for number in range(count):
        add_scan(scans, number)
    return scans
