"""Volumes are OME-Zarr 0.5 for others too: ngff-zarr validates and reads them without a line of our code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ngff_zarr
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from ngff_zarr.rfc4 import RAS

from raygenesis.archive.grid import Grid
from raygenesis.archive.store import write_volume
from raygenesis.archive.volume import Volume
from raygenesis.settings import ArchiveSettings
from tests.support.nifti import grey

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
    # Of a single image nobody knows the plane; RFC-4 has only what is known.
    expected = {name: RAS[name] for name in "zyx"} if ndim == 3 else None
    assert all((image.axes_orientations or None) == expected for image in read.images)
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


def test_the_orientation_is_valid_by_rfc_4_and_that_of_the_affine(tmp_path: Path) -> None:
    stored = np.zeros((5, 6, 7), np.int16)  # x y z of a file that counts to the left, to the back and up
    stored[4, 5, 6] = 1  # the most left, posterior, superior voxel
    voxels, affine = Grid(stored.shape, np.diag([-1.0, -2.0, 3.0, 1.0])).turned(stored)
    write_volume(tmp_path / "a.ome.zarr", Volume(voxels, affine), {}, SETTINGS)
    group = json.loads((tmp_path / "a.ome.zarr" / "zarr.json").read_text())
    (image,) = group["attributes"]["ome"]["multiscales"]
    schema = json.loads((Path(ngff_zarr.__file__).parent / "spec/rfc/4/orientation.schema.json").read_text())
    Draft202012Validator(schema).validate({"axes": image["axes"]})
    ways = [axis["orientation"]["value"].split("-to-") for axis in image["axes"]]
    assert all(axis["orientation"]["type"] == "anatomical" for axis in image["axes"])
    at = dict(zip("zyx", (int(place[0]) for place in np.nonzero(voxels)), strict=True))
    ends = {
        axis["name"]: way[1] if at[axis["name"]] == side - 1 else way[0]
        for axis, way, side in zip(image["axes"], ways, voxels.shape, strict=True)
    }
    assert ends == {"z": "superior", "y": "posterior", "x": "left"}


# What neuroglancer's `zarr3://` reads, of data types, codecs (whole ones, within shards, and of a shard's index) and
# units of OME axes; all seen in it with a volume of an archive.
TYPES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32)} | {"uint64", "float32"}
CODECS = {"sharding_indexed", "bytes", "blosc", "crc32c", "gzip", "zstd", "transpose"}


@pytest.mark.parametrize(("shape", "ndim"), [((37, 50, 41), 3), ((3, 20, 33, 40), 3), ((50, 41), 2)])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_neuroglancer_and_napari_find_what_they_need(tmp_path: Path, shape, ndim: int, dtype: str) -> None:
    folder = tmp_path / "a.ome.zarr"
    write_volume(folder, Volume(grey(shape, dtype), np.diag([0.5, 0.75, 2.5, 1.0]), ndim=ndim), {}, SETTINGS)
    group = json.loads((folder / "zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"], group["attributes"]["ome"]["version"]) == (3, "group", "0.5")
    (image,) = group["attributes"]["ome"]["multiscales"]
    space = [axis for axis in image["axes"] if axis["type"] == "space"]
    assert [axis["unit"] for axis in space] == ["millimeter"] * ndim
    assert "".join(axis["name"] for axis in image["axes"]) == "c" * (len(shape) - ndim) + "zyx"[-ndim:]
    for level in image["datasets"]:
        array = json.loads((folder / level["path"] / "zarr.json").read_text())
        assert array["data_type"] in TYPES and array["chunk_grid"]["name"] == "regular"
        assert array["chunk_key_encoding"]["name"] == "default" and not array.get("storage_transformers")
        assert array["dimension_names"] == [axis["name"] for axis in image["axes"]]
        assert {codec["name"] for codec in codecs_of(array["codecs"])} <= CODECS
        kinds = [transform["type"] for transform in level["coordinateTransformations"]]
        assert kinds in (["scale"], ["scale", "translation"])


def codecs_of(codecs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for codec in codecs:
        yield codec
        for inner in ("codecs", "index_codecs"):
            yield from codecs_of(codec.get("configuration", {}).get(inner, []))
