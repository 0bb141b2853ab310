"""Which galleries the page shows: scans, reconstructions, classes, restored cubes, predictions."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
import torch
from matplotlib.colors import to_hex

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue, split_by_subject
from raygenesis.archive.coarse import read_coarse
from raygenesis.discovery.cubes import size_mm
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.networks.scan_encoders import restore
from raygenesis.networks.weights.loading import load_network
from raygenesis.networks.weights.scan_encoders import AUTOENCODER_FILE, load_scan_encoder
from raygenesis.patterns.cells import decode
from raygenesis.patterns.reader import TRAINING_COLUMNS, predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.pretraining.restoration import restoration_error
from raygenesis.pretraining.task import VALIDATION_EPOCH, PretextTask
from raygenesis.report.parts import MEND_A_SCAN, ScanPictures
from raygenesis.report.pictures import (
    CORONAL,
    SCAN_PIXELS,
    Gallery,
    PatternBox,
    Picture,
    SliceSpec,
    mid_slice,
    picture,
    plane_note,
    scan_picture,
)  # fmt: skip
from raygenesis.settings import IntensitySettings
from raygenesis.text.amounts import several
from raygenesis.training.feeding import Samples
from raygenesis.workspace.files import Place, on_disk
from raygenesis.workspace.manifest import AutoencoderManifest, Manifest, PatternsManifest
from raygenesis.workspace.workspace import Workspace

Drawn = TypeVar("Drawn")

MOST_CLASSES = MOST_COLUMNS = 8
MOST_BOXES = 44
NUM_CORRUPTED = 6
PLANES = {0: "axial", CORONAL: "coronal", 2: "sagittal"}
PLANE_PIXELS, PLANE_INCHES = 256, 2.2  # of the reference with all boxes
OVERLAY = np.array([[0.95, 0.45, 0.1], [0.2, 0.65, 1.0], [0.25, 0.8, 0.4], [0.85, 0.4, 0.85], [0.95, 0.85, 0.2]])


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly from the first to the last."""
    return [items[n] for n in np.unique(np.linspace(0, len(items) - 1, most).astype(int))] if items else []


def split_of(workspace: Workspace, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Volume ids of the training and of the held-out subjects of an artifact."""
    chosen = manifest.settings
    shape = chosen["autoencoder"]["input_shape"] if "autoencoder" in chosen else chosen["discovery"]["cube_shape"]
    rows = read_catalogue(workspace.catalog, ndim=len(shape))
    split = split_by_subject(rows, chosen["validation_fraction"], chosen["seed"])
    training, held_out = ([row["volume_id"] for row in part] for part in split)
    return training, held_out


def draw_each(draw: Callable[[CatalogueRow], Drawn], rows: Sequence[CatalogueRow]) -> tuple[list[Drawn], str]:
    """What is drawn of scans by their catalogue rows, and a sentence about those that are damaged, if any are."""
    drawn, faults = [], []
    for row in rows:
        try:
            drawn.append(draw(row))
        except ScanError as error:
            faults.append(str(error))
    more = f" ({several(len(faults), 'scans')} of {len(rows)})" if len(rows) > 1 else ""
    return drawn, f"{faults[0]}{more}; {MEND_A_SCAN}." if faults else ""


def reference_row(workspace: Workspace, manifest: PatternsManifest) -> CatalogueRow:
    """The catalogue row of a store's reference 0. Raises WorkspaceError if the archive no longer has it."""
    name = manifest.references[0].volume_id
    rows = read_catalogue(workspace.catalog, [name])
    if not rows:
        raise WorkspaceError(
            f"{workspace.archive} no longer has the reference {name}: ingest its scan again, or remove "
            f"{workspace.patterns} and run `raygenesis discover`"
        )
    return rows[0]


def contact_sheet(volumes: Place, rows: Sequence[CatalogueRow], intensity: IntensitySettings) -> ScanPictures:
    """The mid-slices of some scans under their volume ids."""

    def draw(row: CatalogueRow) -> Picture:
        spec = SliceSpec(f"Mid-slice of {row['volume_id']}", row["volume_id"])
        return scan_picture(volumes, row, intensity, spec)

    pictures, damage = draw_each(draw, rows)
    note = plane_note(max((len(row["shape"]) for row in rows), default=3))
    return ScanPictures(Gallery("Contact sheet", in_rows(pictures), note=note) if pictures else None, damage)


def in_rows(pictures: Sequence[Drawn]) -> list[Sequence[Drawn]]:
    """The pictures, or what they are drawn from, in rows of MOST_COLUMNS."""
    return [pictures[first : first + MOST_COLUMNS] for first in range(0, len(pictures), MOST_COLUMNS)]


def reconstructions(
    folder: Place, volumes: Place, rows: Sequence[CatalogueRow], manifest: AutoencoderManifest
) -> ScanPictures:
    """Held-out scans as the auto-encoder sees them, and below as it restores them from their embeddings."""
    intensity = IntensitySettings.model_validate(manifest.settings["intensity"])
    model = load_scan_encoder(folder / AUTOENCODER_FILE)

    def draw(row: CatalogueRow) -> list[Picture]:
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

    columns, damage = draw_each(draw, rows)
    if not columns:
        return ScanPictures(None, damage)
    note = f"Held-out scans; {plane_note(len(model.input_shape)).lower()}"
    pictures = list(zip(*columns, strict=True))
    gallery = Gallery("Auto-encoder reconstructions", pictures, names=("input", "restored"), note=note)
    return ScanPictures(gallery, damage)


def coordinate_boxes(workspace: Workspace, manifest: PatternsManifest) -> Gallery:
    """The mid-planes of reference 0 and the boxes of its coordinates projected on them."""
    where = (pc.field("reference") == 0) & (pc.field("rank") == 0) & (pc.field("scale") == 0)
    columns = ("coordinate", "origin_mm", "extent_mm")
    table = read_patterns(workspace.patterns, columns, predicate(TRAINING) & where).sort_by("coordinate")
    boxes = [PatternBox(**row) for row in table.to_pylist()]
    row = reference_row(workspace, manifest)
    intensity = IntensitySettings.model_validate(manifest.settings["intensity"])
    planes = PLANES if len(row["shape"]) == 3 else {CORONAL: "image"}
    pictures = []
    for plane, name in planes.items():
        alt = f"{name} mid-plane of the reference with the boxes of {len(boxes)} coordinates".capitalize()
        spec = SliceSpec(alt, name.capitalize(), plane, boxes=boxes[:MOST_BOXES], pixels=PLANE_PIXELS)
        pictures.append(scan_picture(workspace.volumes, row, intensity, spec))
    note = "Mid-planes of the reference and the boxes of its coordinates, projected on them"
    return Gallery("Where the classes lie", [pictures], note=note, inches=PLANE_INCHES)


def classes(folder: Place, cube_shape: tuple[int, ...]) -> dict[int, list[Picture]]:
    """By class (up to 8): the mid-slices of the reference's cube and of its nearest neighbours'."""
    where = (pc.field("label") < MOST_CLASSES) & (pc.field("scale") == 0)
    columns = ("label", "rank", "extent_mm", "cube")
    table = read_patterns(folder, columns, predicate(TRAINING, MOST_COLUMNS) & where)
    rows: dict[int, list[Picture]] = {}
    for pattern in table.sort_by([("label", "ascending"), ("rank", "ascending")]).to_pylist():
        cube = decode(pattern["cube"], cube_shape)
        whose = f"neighbour {pattern['rank']}" if pattern["rank"] else "the reference"
        extent = (pattern["extent_mm"][0], pattern["extent_mm"][-1])
        note = f"rank {pattern['rank']}" if pattern["rank"] else "reference"
        image = picture(mid_slice(cube), f"Class {pattern['label']}, {whose}", note, extent=extent)
        rows.setdefault(pattern["label"], []).append(image)
    return rows


@dataclass(frozen=True)
class RestoredCube:
    """A held-out cube: original, corrupted, restored; its class and the head's answer, None where nothing is asked."""

    pictures: Sequence[Picture]
    mse: float
    label: int | None = None
    answer: int | None = None


@torch.inference_mode()
def restorations(run: Place, store: Place, task: PretextTask, extent_mm: Sequence[float]) -> list[RestoredCube]:
    """Held-out cubes: original, as the run corrupts them in validation, and as its network restores them.

    run, store: folders. extent_mm: of a cube, z y x (2D: y x).
    """
    where = predicate(VALIDATION, None, task.settings.num_coordinates)
    ids = np.sort(read_patterns(store, ("pattern_id",), where)["pattern_id"].to_numpy())
    chosen = evenly(ids.tolist(), NUM_CORRUPTED)
    table = read_patterns(store, TRAINING_COLUMNS, pc.field("pattern_id").isin(chosen))
    samples = Samples([table], task.sample_key, task.sample_shape)
    if not len(samples):
        return []
    batch = task.make_batch(samples.batch(np.arange(len(samples))), VALIDATION_EPOCH)
    prediction = load_network(run).eval()(batch.shown)
    restored = prediction.restored
    errors = restoration_error(restored, batch.original, batch.masked).tolist()
    if batch.masked is not None:  # what is shown is not restored
        restored = torch.where(batch.masked, restored, batch.original)
    extent = (extent_mm[0], extent_mm[-1])
    out = []
    for number in range(len(samples)):
        label = answer = None
        of = "a random crop"
        if batch.answers is not None and prediction.logits is not None:
            label, answer = int(batch.answers[number]), int(prediction.logits[number].argmax())
            of = f"a pattern of class {label}"
        pictures = [
            picture(mid_slice(cubes[number, 0].numpy()), f"{what}, {of}", extent=extent)
            for what, cubes in (
                ("Original", batch.original), ("Corrupted", batch.shown), ("Restored", restored),
            )
        ]  # fmt: skip
        out.append(RestoredCube(pictures, errors[number], label, answer))
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
            slices = {name: array if array.ndim == 2 else array[len(array) // 2] for name, array in arrays.items()}
    except (zipfile.BadZipFile, ValueError, EOFError):
        raise WorkspaceError(
            f"{path} is damaged: remove it and manifest.json beside it, and run the same command again; trials are kept"
        ) from None
    image = np.clip(slices.pop("image").astype(np.float32), 0, 1)
    extent = [side * step for side, step in zip(image.shape, spacing_mm[-2:], strict=True)]
    pictures = [picture(image[::-1, ::-1], "Test image", "Image", extent=extent, pixels=SCAN_PIXELS)]
    numbers = sorted({int(number) for array in slices.values() for number in np.unique(array)} - {0})
    for name, classes_there in slices.items():
        colours = OVERLAY[(classes_there.astype(int) - 1) % len(OVERLAY)]
        painted = np.where((classes_there > 0)[..., None], 0.45 * image[..., None] + 0.55 * colours, image[..., None])
        name = name.removeprefix("prediction_")
        note = ("Label" if name == "label" else f"Predicted, {name}") + ": nothing" * (not classes_there.any())
        alt = f"{note} over the test image"
        pictures.append(picture(painted[::-1, ::-1], alt, note, extent=extent, pixels=SCAN_PIXELS))
    plane = "An axial slice of a test scan" if len(spacing_mm) == 3 else "A test image"
    learnt = f", predicted by networks that learnt from {labelled} labelled subjects" if labelled else ""
    legend = [
        (names[number - 1] if number <= len(names) else f"class {number}", to_hex(OVERLAY[(number - 1) % len(OVERLAY)]))
        for number in numbers
    ]
    return Gallery(title, in_rows(pictures), note=plane + learnt, legend=legend)
