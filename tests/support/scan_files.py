"""Scans in files of any format: written, read whole, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raygenesis.archive.formats.readers import read_scan, read_scan_geometry
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError


def one(path: Path, **options: Any) -> Volume:
    """The only volume of a file, after its geometry has been found to agree with it."""
    volumes = read_scan([path], **options)
    found = read_scan_geometry([path], *([options["fourth_axis"]] if "fourth_axis" in options else []))
    assert found == [(volume.shape, pytest.approx(volume.spacing_mm)) for volume in volumes]
    (volume,) = volumes
    return volume


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ScanError) as fault:
        read_scan([path], **options)
    said = str(fault.value)
    assert "\n" not in said and len(said) < 250
    return said


def write_array(path: Path, voxels: NDArray[Any], side_car: Any = None) -> Path:
    if path.suffix == ".npy":
        np.save(path, voxels)
    else:
        np.savez_compressed(path, voxels=voxels)
    if side_car is not None:
        path.with_suffix(".json").write_text(side_car if isinstance(side_car, str) else json.dumps(side_car))
    return path
