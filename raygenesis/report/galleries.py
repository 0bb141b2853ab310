"""The pictures of the page: scans, reconstructions, classes, restored cubes, predictions."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
import torch
from matplotlib.colors import to_hex

from raygenesis.archive.catalogue import read_catalogue
from raygenesis.archive.source import read_coarse
from raygenesis.discovery.cubes import size_mm
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.networks.scan_encoders import restore
from raygenesis.networks.weights.loading import load_network
from raygenesis.networks.weights.scan_encoders import AUTOENCODER_FILE, load_scan_encoder
from raygenesis.patterns.cells import decode
from raygenesis.patterns.reader import TRAINING_COLUMNS, predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.pretraining.task import VALIDATION_EPOCH, PretextTask
from raygenesis.report.artifact import MEND_A_SCAN, Row
from raygenesis.report.pictures import (
    CORONAL,
    SCAN_PIXELS,
    Gallery,
    Picture,
    mid_slice,
    picture,
    plane_words,
    scan_picture,
)  # fmt: skip
from raygenesis.settings import IntensitySettings, Settings
from raygenesis.text.amounts import several
from raygenesis.training.feeding import Samples
from raygenesis.workspace.files import Place, on_disk
from raygenesis.workspace.workspace import Workspace

Drawn = TypeVar("Drawn")

MOST_CLASSES = MOST_COLUMNS = 8
MOST_BOXES = 44
NUM_CORRUPTED = 6
PLANES = {0: "axial", CORONAL: "coronal", 2: "sagittal"}
PLANE_PIXELS, PLANE_INCHES = 256, 2.2  # of the reference with all boxes
OVERLAY = np.array([[0.95, 0.45, 0.1], [0.2, 0.65, 1.0], [0.25, 0.8, 0.4], [0.85, 0.4, 0.85], [0.95, 0.85, 0.2]])


def drawn_of(draw: Callable[[Row], Drawn], rows: Sequence[Row]) -> tuple[list[Drawn], str]:
    """What is drawn of scans by their catalogue rows, and a sentence about those that are damaged, if any are."""
    drawn, faults = [], []
    for row in rows:
        try:
            drawn.append(draw(row))
        except ScanError as error:
            faults.append(str(error))
    more = f" ({several(len(faults), 'scans')} of {len(rows)})" if len(rows) > 1 else ""
    return drawn, f"{faults[0]}{more}; {MEND_A_SCAN}." if faults else ""


def reference_row(workspace: Workspace, manifest: Row) -> Row:
    """The catalogue row of a store's reference 0. Raises WorkspaceError if the archive no longer has it."""
    name = manifest.references[0]["volume_id"]
    rows = read_catalogue(workspace.catalog, [name])
    if not rows:
        raise WorkspaceError(
            f"{workspace.archive} no longer has the reference {name}: ingest its scan again, or remove "
            f"{workspace.patterns} and run `raygenesis discover`"
        )
    return rows[0]


def contact_sheet(volumes: Place, rows: Sequence[Row], intensity: IntensitySettings) -> tuple[Gallery | None, str]:
    """The mid-slices of some scans under their volume ids, and what `drawn_of` says of damaged ones."""

    def draw(row: Row) -> Picture:
        return scan_picture(volumes, row, intensity, f"Mid-slice of {row['volume_id']}", row["volume_id"])

    shown, fault = drawn_of(draw, rows)
    note = plane_words(max((len(row["shape"]) for row in rows), default=3))
    return Gallery("Contact sheet", in_rows(shown), note=note) if shown else None, fault


def in_rows(pictures: Sequence[Picture]) -> list[Sequence[Picture]]:
    """So many pictures a row as a page is wide."""
    return [pictures[first : first + MOST_COLUMNS] for first in range(0, len(pictures), MOST_COLUMNS)]


def reconstructions(
    folder: Place, volumes: Place, rows: Sequence[Row], manifest: Row
) -> tuple[Gallery | None, str]:  # fmt: skip
    """Held-out scans as the auto-encoder sees them, and below as it restores them from their embeddings.

    And what `drawn_of` says of damaged ones.
    """
    intensity = IntensitySettings.model_validate(manifest.settings["intensity"])
    model = load_scan_encoder(folder / AUTOENCODER_FILE)

    def draw(row: Row) -> list[Picture]:
        scan = read_coarse(volumes, row, model.input_shape, intensity)
        restored = restore(model, scan)
        size, name = size_mm(row)[[0, -1]].tolist(), row["volume_id"]
        error = float(np.square(restored - scan).mean())
        return [
            picture(mid_slice(voxels), f"{what} of {name}", note, extent=size, pixels=SCAN_PIXELS)
            for what, voxels, note in (
                ("Input", scan, name), ("Reconstruction", restored, f"error {error:.4g}"),
            )
        ]  # fmt: skip

    columns, fault = drawn_of(draw, rows)
    if not columns:
        return None, fault
    note = f"Held-out scans; {plane_words(len(model.input_shape)).lower()}"
    shown = list(zip(*columns, strict=True))
    return Gallery("Auto-encoder reconstructions", shown, names=("input", "restored"), note=note), fault


def coordinate_boxes(workspace: Workspace, manifest: Row) -> Gallery:
    """The mid-planes of reference 0 and the boxes of its coordinates projected on them."""
    where = (pc.field("reference") == 0) & (pc.field("rank") == 0) & (pc.field("scale") == 0)
    columns = ("coordinate", "origin_mm", "extent_mm")
    boxes = read_patterns(workspace.patterns, columns, predicate(TRAINING) & where).sort_by("coordinate").to_pylist()
    row = reference_row(workspace, manifest)
    intensity = IntensitySettings.model_validate(manifest.settings["intensity"])
    planes = PLANES if len(row["shape"]) == 3 else {CORONAL: "image"}
    shown = []
    for plane, name in planes.items():
        alt = f"{name} mid-plane of the reference with the boxes of {len(boxes)} coordinates".capitalize()
        about = (alt, name.capitalize(), plane, boxes[:MOST_BOXES])
        shown.append(scan_picture(workspace.volumes, row, intensity, *about, pixels=PLANE_PIXELS))
    note = "Mid-planes of the reference and the boxes of its coordinates, projected on them"
    return Gallery("Where the classes lie", [shown], note=note, inches=PLANE_INCHES)


def classes(folder: Place, manifest: Row) -> dict[int, list[Picture]]:
    """By class (up to 8): the mid-slices of the reference's cube and of its nearest neighbours'."""
    where = (pc.field("label") < MOST_CLASSES) & (pc.field("scale") == 0)
    columns = ("label", "rank", "extent_mm", "cube")
    table = read_patterns(folder, columns, predicate(TRAINING, MOST_COLUMNS) & where)
    rows: dict[int, list[Picture]] = {}
    for pattern in table.sort_by([("label", "ascending"), ("rank", "ascending")]).to_pylist():
        cube = decode(pattern["cube"], tuple(manifest.cube_shape))
        whose = f"neighbour {pattern['rank']}" if pattern["rank"] else "the reference"
        extent = (pattern["extent_mm"][0], pattern["extent_mm"][-1])
        note = f"rank {pattern['rank']}" if pattern["rank"] else "reference"
        shown = picture(mid_slice(cube), f"Class {pattern['label']}, {whose}", note, extent=extent)
        rows.setdefault(pattern["label"], []).append(shown)
    return rows


@torch.inference_mode()
def restorations(run: Place, store: Place, task: PretextTask, settings: Settings) -> list[dict[str, Any]]:
    """Held-out cubes: original, as the run corrupts them in validation, and as its network restores them."""
    where = predicate(VALIDATION, None, settings.pretraining.num_coordinates)
    ids = np.sort(read_patterns(store, ("pattern_id",), where)["pattern_id"].to_numpy())
    chosen = ids[np.unique(np.linspace(0, len(ids) - 1, NUM_CORRUPTED).astype(int))] if len(ids) else ids
    table = read_patterns(store, TRAINING_COLUMNS, pc.field("pattern_id").isin(chosen.tolist()))
    samples = Samples([table], task.sample_key, task.sample_shape)
    if not len(samples):
        return []
    posed = task.pose(samples.batch(np.arange(len(samples))), VALIDATION_EPOCH)
    prediction = load_network(run).eval()(posed.shown)
    extent = [settings.discovery.scales[0].extent_mm[axis] for axis in (0, -1)]
    out = []
    for number in range(len(samples)):
        row: dict[str, int | None] = {"label": None, "guess": None}
        of = "a random crop"
        if posed.answers is not None and prediction.logits is not None:
            row = {"label": int(posed.answers[number]), "guess": int(prediction.logits[number].argmax())}
            of = f"a pattern of class {row['label']}"
        shown = [
            picture(mid_slice(cubes[number, 0].numpy()), f"{what}, {of}", extent=extent)
            for what, cubes in (
                ("Original", posed.original), ("Corrupted", posed.shown), ("Restored", prediction.restored),
            )
        ]  # fmt: skip
        mse = float((prediction.restored[number] - posed.original[number]).square().mean())
        out.append({**row, "mse": mse, "pictures": shown})
    return out


def example(
    path: Place, spacing_mm: Sequence[float], title: str, labelled: int | str | None, names: Sequence[str]
) -> Gallery:  # fmt: skip
    """A test scan's slice of a target task, with its label and each initialisation's prediction over it.

    labelled: with how many labelled subjects they learnt, where that is known. names: of the classes, without the
    background; numbers where there are none.
    """
    try:
        with on_disk(path) as local, np.load(local) as arrays:
            held = {name: array if array.ndim == 2 else array[len(array) // 2] for name, array in arrays.items()}
    except (zipfile.BadZipFile, ValueError, EOFError):
        raise WorkspaceError(
            f"{path} is damaged: remove it and manifest.json beside it, and run the same command again; trials are kept"
        ) from None
    image = np.clip(held.pop("image").astype(np.float32), 0, 1)
    extent = [side * step for side, step in zip(image.shape, spacing_mm[-2:], strict=True)]
    shown = [picture(image[::-1, ::-1], "Test image", "Image", extent=extent, pixels=SCAN_PIXELS)]
    there = sorted({int(number) for array in held.values() for number in np.unique(array)} - {0})
    for name, classes_there in held.items():
        colours = OVERLAY[(classes_there.astype(int) - 1) % len(OVERLAY)]
        painted = np.where((classes_there > 0)[..., None], 0.45 * image[..., None] + 0.55 * colours, image[..., None])
        name = name.removeprefix("prediction_")
        note = ("Label" if name == "label" else f"Predicted, {name}") + ": nothing" * (not classes_there.any())
        alt = f"{note} over the test image"
        shown.append(picture(painted[::-1, ::-1], alt, note, extent=extent, pixels=SCAN_PIXELS))
    plane = "An axial slice of a test scan" if len(spacing_mm) == 3 else "A test image"
    learnt = f", predicted by networks that learnt from {labelled} labelled subjects" if labelled else ""
    legend = [
        (names[number - 1] if number <= len(names) else f"class {number}", to_hex(OVERLAY[(number - 1) % len(OVERLAY)]))
        for number in there
    ]
    return Gallery(title, in_rows(shown), note=plane + learnt, legend=legend)
