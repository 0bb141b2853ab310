"""Predicted label maps as NIfTI, each on its scan's own voxels; and slices for the report."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import io_orientation, ornt_transform
from numpy.typing import NDArray

from raygenesis.archive.intake.survey import without_ending
from raygenesis.transfer.cases import Case, CaseGrid, nearest
from raygenesis.transfer.results import in_file_name
from raygenesis.workspace.files import Place, below, on_disk, publish


def write_prediction(folder: Place, case: Case, predicted: NDArray[np.uint8]) -> Place:
    """Write a predicted label map as `<case>.nii.gz`; returns its path.

    It holds the scan's own voxels, in the order of the scan's file where that is NIfTI; of a region, the region's
    voxels at their place in the scan. Each voxel has the class of the nearest voxel that was predicted. Raises
    RaygenesisError for a case whose name leads out of the folder.
    """
    grid = case.grid
    assert grid is not None
    classes = on_grid(predicted[grid.within], grid).T  # x y z
    path = below(folder, f"{without_ending(case.name)}.nii.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.atleast_3d(classes), grid.affine)
    source = grid.source
    if source is not None and source.name.endswith((".nii", ".nii.gz")):
        scan: Any = nibabel.load(source)
        image = image.as_reoriented(ornt_transform(io_orientation(image.affine), io_orientation(scan.affine)))
    publish(path, lambda aside: aside.write_bytes(_gzipped(image)))
    return path


def on_grid(inside: NDArray[np.uint8], grid: CaseGrid) -> NDArray[np.uint8]:
    """The classes of a grid's voxels, by the nearest voxel that was predicted; background where none shows them."""
    sides = np.array(inside.shape, float)
    origin, extent = grid.origin or [0.0] * inside.ndim, grid.extent or grid.shape
    first, length = -np.array(origin) / extent * sides, np.array(grid.shape) / extent * sides
    classes = inside[np.ix_(*nearest(inside.shape, grid.shape, first.tolist(), length.tolist()))]
    for axis, (side, begin, span) in enumerate(zip(grid.shape, origin, extent, strict=True)):
        centres = np.arange(side) + 0.5
        is_outside = (centres < begin) | (centres > begin + span)
        classes[(slice(None),) * axis + (is_outside,)] = 0
    return classes


def write_example(
    folder: Place, initialisation: str, labelled: int | str, case: Case, predicted: NDArray[np.uint8]
) -> None:
    """Write the slice of a case with the most foreground: image float32, label and prediction uint8, [y, x]."""
    label = case.label
    assert label is not None
    at = int(np.sum(label > 0, (1, 2)).argmax()) if label.ndim == 3 else ...
    slices: dict[str, NDArray[Any]] = {
        "image": case.image[at].astype(np.float32), "label": label[at], "prediction": predicted[at],
    }  # fmt: skip
    publish(_example_path(folder, initialisation, labelled), lambda aside: _save(aside, slices))


def join_examples(folder: Place, initialisations: Sequence[str], labelled: int | str) -> None:
    """Write `example.npz`: image, label, and the prediction of each initialisation after so many labelled subjects."""
    joined: dict[str, NDArray[Any]] = {}
    for name in initialisations:
        with on_disk(_example_path(folder, name, labelled)) as local, np.load(local) as arrays:
            joined |= {"image": arrays["image"], "label": arrays["label"], f"prediction_{name}": arrays["prediction"]}
    publish(folder / "example.npz", lambda aside: _save(aside, joined))


def _example_path(folder: Place, initialisation: str, labelled: int | str) -> Place:
    return folder / f"example-{initialisation}-{in_file_name(labelled)}.npz"


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add its suffix to it
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # one of the names could be an option's


def _gzipped(image: nibabel.Nifti1Image) -> bytes:
    return gzip.compress(image.to_bytes(), mtime=0)
