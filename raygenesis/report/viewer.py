"""Viewer: one scan's slices with the boxes of its patterns, as one self-contained HTML page."""

from __future__ import annotations

import difflib
import io
import json
import math
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from raygenesis.archive.catalogue import VolumeRecord, read_catalogue, read_columns
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
        "store": store, "image": b64encode(content).decode(), "planes": PLANES[voxels.ndim],
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


def level_shown(row: VolumeRecord) -> int:
    """The finest pyramid level of a volume of which a page can hold all voxels; otherwise the coarsest."""
    levels = range(len(row["levels"]))
    return next((level for level in levels if math.prod(level_shape(row, level)) <= MOST_VOXELS), levels[-1])


def read_level(volumes: Place, row: VolumeRecord, level: int, intensity: IntensitySettings) -> NDArray[np.uint8]:
    """A whole pyramid level in 256 greys, uint8 [z, y, x] (2D: [y, x]). Raises ScanError if a chunk is damaged."""
    region = tuple(slice(0, side) for side in level_shape(row, level))
    (voxels,) = read_regions(volume_folder(volumes, row["volume_id"]), level, [region], intensity.channel)
    return np.rint(normalise(voxels, *limits(row, intensity)) * 255).astype(np.uint8)


def mosaic(voxels: NDArray[np.uint8]) -> tuple[tuple[int, int], bytes]:
    """The slices of voxels [z, y, x] side by side in one PNG: how many there are down and across, and its content."""
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


@dataclass(frozen=True)
class ViewPlane:
    """Slices that are shown: the axis across them (3D), and those that go down and to the right, both backwards.

    Backwards, because the archive's axes go to the top, the front and the right, and the patient's right is shown on
    the left.
    """

    name: str
    axis: int | None
    down: int
    across: int

    @property
    def ends(self) -> dict[str, str]:
        """The letters of what lies on each side."""
        if self.axis is None:
            return {}
        return dict(zip(("above", "below", "left", "right"), ENDS[self.down] + ENDS[self.across], strict=True))


PLANES = {
    2: [ViewPlane("Image", None, 0, 1)],
    3: [ViewPlane("Axial", 0, 1, 2), ViewPlane("Coronal", 1, 0, 2), ViewPlane("Sagittal", 2, 0, 1)],
}


def _not_there(workspace: Workspace, folder: Place, volume_id: str, known: bool) -> SettingsError:
    """The error for an unknown scan, or for one from which no pattern was taken."""
    if known:
        others = sorted(set(read_patterns(folder, ["volume_id"])["volume_id"].to_pylist()))
        what = f"no pattern in {folder} was taken from it; others have some"
    else:
        ids = read_columns(workspace.catalog, ["volume_id"])["volume_id"].to_pylist()
        others = difflib.get_close_matches(volume_id, ids, n=3) or ids
        what = f"no volume of {workspace.archive} is called that; there are {len(ids)}"
    return SettingsError(f"--volume {volume_id}: {what}, such as {', '.join(others[:3])}")
