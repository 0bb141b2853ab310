"""Volumes are OME-Zarr 0.5 for others too: ngff-zarr validates and reads them without a line of our code."""

from __future__ import annotations

from pathlib import Path

import ngff_zarr
import numpy as np
import pytest

from raygenesis.archive.store import write_volume
from raygenesis.archive.volume import Volume
from raygenesis.config import ArchiveSettings
from tests.archive.nifti import grey

SETTINGS = ArchiveSettings(coarse_size=16, chunk=16, shard=32)


@pytest.mark.parametrize(
    ("shape", "ndim", "dims"),
    [((37, 50, 41), 3, "zyx"), ((3, 20, 33, 40), 3, "czyx"), ((50, 41), 2, "yx"), ((3, 50, 41), 2, "cyx")],
)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_an_independent_reader_validates_and_reads(tmp_path: Path, shape, ndim: int, dims: str, dtype: str) -> None:
    voxels = grey(shape, dtype)
    affine = np.diag([0.5, 0.75, 2.5, 1.0])
    folder = tmp_path / "a.ome.zarr"
    write_volume(folder, Volume(voxels, affine, ndim=ndim), {}, SETTINGS)
    read = ngff_zarr.from_ngff_zarr(str(folder), validate=True, version="0.5")
    finest = read.images[0]
    assert "".join(finest.dims) == dims
    assert np.array_equal(np.asarray(finest.data), voxels)
    spacing = dict(zip("xyz", (0.5, 0.75, 2.5), strict=True))
    for image in read.images:
        for axis in dims.replace("c", ""):
            factor = finest.data.shape[dims.index(axis)] / image.data.shape[dims.index(axis)]
            steps = round(image.scale[axis] / spacing[axis])
            assert image.axes_units[axis] == "millimeter" and steps in (1, 2, 4, 8) and abs(factor - steps) < 0.4
            assert image.translation[axis] == pytest.approx(spacing[axis] * (steps - 1) / 2)
    assert len(read.images) > 1
