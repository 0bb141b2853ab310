"""Viewer: one scan's slices with the boxes of its patterns, as one self-contained HTML page."""

from __future__ import annotations

import difflib
import io
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from raygenesis.archive.catalogue import read_catalogue, read_columns
from raygenesis.archive.intensity import limits, normalise
from raygenesis.archive.store import level_shape, read_regions, volume_folder
from raygenesis.cluster.progress import say
from raygenesis.errors import SettingsError
from raygenesis.patterns.reader import STORES, read_patterns, store_manifest
from raygenesis.report.page import render
from raygenesis.settings import IntensitySettings
from raygenesis.text.amounts import size
from raygenesis.workspace.files import Place, publish
from raygenesis.workspace.workspace import Workspace

MOST_VOXELS = 6 * 2**20  # of the pyramid level that is shown; some MiB as PNG, and within what browsers draw at once
ENDS = ("SI", "AP", "RL")  # of each axis: superior and inferior, anterior and posterior, right and left
COLUMNS = (
    "label", "reference", "coordinate", "rank", "scale", "split", "origin_mm", "extent_mm", "origin_voxels",
    "extent_voxels",
)  # fmt: skip


def view(workspace: Workspace, volume_id: str, path: Path, store: str = "patterns") -> int:
    """Write the page of a scan to `path`; returns the number of its patterns.

    store: "patterns", or "crops" for the random ones. Raises SettingsError for an unknown scan, or one without
    patterns, naming some that are there.
    """
    folder = workspace.folder(STORES[store])
    intensity = IntensitySettings.model_validate(store_manifest(folder).settings["intensity"])
    rows = read_catalogue(workspace.catalog, [volume_id])
    where = pc.field("volume_id") == volume_id
    patterns = read_patterns(folder, COLUMNS, where).to_pylist() if rows else []
    if not patterns:
        raise _not_there(workspace, folder, volume_id, known=bool(rows))
    patterns.sort(key=lambda row: [row[name] for name in ("reference", "coordinate", "scale", "rank")])
    level = level_shown(rows[0])
    voxels = read_level(workspace.volumes, rows[0], level, intensity)
    sides, content = mosaic(voxels)
    spacing = [step * factor for step, factor in zip(rows[0]["spacing_mm"], rows[0]["levels"][level], strict=True)]
    data = {"shape": voxels.shape, "spacing": spacing, "tiles": sides, "patterns": patterns}
    page = render("viewer.html.j2", {
        "row": rows[0], "level": level, "shape": voxels.shape, "spacing": spacing, "patterns": patterns,
        "store": store, "image": b64encode(content).decode(), "planes": _planes(voxels.ndim),
        # Within a script element: nothing in it ends the element.
        "data": json.dumps(data).replace("<", "\\u003c"),
    })  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--output {path} cannot be written ({error.strerror}): give another name") from None
    publish(path, lambda aside: aside.write_text(page, encoding="utf-8"))
    say("view", f"{len(patterns)} patterns of {volume_id}, level {level}, {size(path.stat().st_size)} → {path}")
    return len(patterns)


def level_shown(row: Mapping[str, Any]) -> int:
    """The finest pyramid level of a catalogue row's scan that a page holds, else the coarsest."""
    levels = range(len(row["levels"]))
    return next((level for level in levels if np.prod(level_shape(row, level)) <= MOST_VOXELS), levels[-1])


def read_level(volumes: Place, row: Mapping[str, Any], level: int, intensity: IntensitySettings) -> NDArray[np.uint8]:
    """A whole level in 256 greys, z y x (2D: y x). Raises ScanError if a chunk is damaged."""
    region = tuple(slice(0, side) for side in level_shape(row, level))
    (voxels,) = read_regions(volume_folder(volumes, row["volume_id"]), level, [region], intensity.channel)
    return np.rint(normalise(voxels, *limits(row, intensity)) * 255).astype(np.uint8)


def mosaic(voxels: NDArray[np.uint8]) -> tuple[tuple[int, int], bytes]:
    """The axial slices side by side in one PNG, and how many are in its columns and rows."""
    slices = voxels.reshape(-1, *voxels.shape[-2:])
    num, height, width = slices.shape
    across = min(num, max(1, round(np.sqrt(num * height / width))))
    down = -(-num // across)
    sheet = np.zeros((down * across, height, width), np.uint8)
    sheet[:num] = slices
    sheet = sheet.reshape(down, across, height, width).swapaxes(1, 2).reshape(down * height, across * width)
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, "PNG", optimize=True)
    return (down, across), out.getvalue()


def _planes(ndim: int) -> list[dict[str, Any]]:
    """The slices that are shown: the axis across them, and those that go down and to the right, both backwards.

    Backwards, because the archive's axes go to the top, the front and the right, and the patient's right is shown on
    the left. `ends` are what lies above, below, on the left and on the right.
    """
    if ndim == 2:
        return [{"name": "Image", "axis": None, "down": 0, "across": 1, "ends": {}}]
    planes = (("Axial", 0, 1, 2), ("Coronal", 1, 0, 2), ("Sagittal", 2, 0, 1))
    return [
        {
            "name": name, "axis": axis, "down": down, "across": across,
            "ends": dict(zip(("above", "below", "left", "right"), ENDS[down] + ENDS[across], strict=True)),
        }
        for name, axis, down, across in planes
    ]  # fmt: skip


def _not_there(workspace: Workspace, folder: Place, volume_id: str, known: bool) -> SettingsError:
    """What to say of an unknown scan, or one that no pattern was taken from."""
    if known:
        others = sorted(set(read_patterns(folder, ["volume_id"])["volume_id"].to_pylist()))
        what = f"no pattern in {folder} was taken from it; others have some"
    else:
        ids = read_columns(workspace.catalog, ["volume_id"])["volume_id"].to_pylist()
        others = difflib.get_close_matches(volume_id, ids, n=3) or ids
        what = f"no volume of {workspace.archive} is called that; there are {len(ids)}"
    return SettingsError(f"--volume {volume_id}: {what}, such as {', '.join(others[:3])}")
