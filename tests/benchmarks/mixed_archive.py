"""Neighbours on one archive of everything: heads, hippocampi, chest CT, planted re-exports of them, and wrong files.

    python -m tests.benchmarks.mixed_archive [FOLDER] [--tune]

Prints how well groups agree with the folders that scans came from, which planted copies and wrong files were found, and
how many references each group got. `--tune` takes other heads and hippocampi, and plants others.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import adjusted_rand_score

from raygenesis.archive.catalogue import read_columns
from raygenesis.archive.ingest import ingest
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.discovery.find_neighbours import find_neighbours
from raygenesis.discovery.scan_table import read_scans
from raygenesis.settings import load_settings
from raygenesis.workspace.workspace import Workspace
from tests.support.data import HEADS, HIPPOCAMPI, SHARED

NUM_HEADS, NUM_HIPPOCAMPI, NUM_COPIES, NUM_REVISITS = 40, 60, 40, 8
ENDINGS = (".nii.gz", ".nrrd", ".mha")
SETTINGS = [
    "archive.keep_ids=true", "discovery.num_references=6", "discovery.num_neighbours=12",
    "discovery.num_validation_neighbours=3", "discovery.num_coordinates=4",
    "discovery.scales=[{extent_mm: [20, 24, 20]}]", "discovery.min_distance_mm=4",
]  # fmt: skip
Voxels = NDArray[np.float32]


@dataclass(frozen=True)
class Planted:
    """What was planted: by file name, the file that a copy is of; and names of wrong files, and of second visits."""

    copies: dict[str, str]
    wrong: list[str]
    revisits: list[str]


def build_folder(target: Path, *, tune: bool = False) -> Planted:
    """Write everything below `target`, a folder a kind; second visits are of other people than the copies."""
    generator = np.random.default_rng(int(tune))
    heads, hippocampi = sorted(HEADS.glob("*.nii*")), sorted((HIPPOCAMPI / "images").glob("*.nii*"))
    heads = heads[NUM_HEADS : 2 * NUM_HEADS] if tune else heads[:NUM_HEADS]
    hippocampi = hippocampi[NUM_HIPPOCAMPI : 2 * NUM_HIPPOCAMPI] if tune else hippocampi[:NUM_HIPPOCAMPI]
    for kind, files in (("heads", heads), ("hippocampi", hippocampi)):
        (target / kind).mkdir(parents=True)
        for path in files:
            shutil.copyfile(path, target / kind / path.name)
    shutil.copytree(SHARED / "lidc-ct", target / "chests")
    order = generator.permutation(len(heads))
    originals = [("heads", heads[number]) for number in order[: NUM_COPIES // 2]]
    originals += [("hippocampi", hippocampi[n]) for n in generator.permutation(len(hippocampi))[: NUM_COPIES // 2]]
    copies = {}
    for number, (kind, path) in enumerate(originals):
        name = f"export{number:03d}{ENDINGS[number % len(ENDINGS)]}"
        image = COPIES[number // 2 % len(COPIES)](sitk.ReadImage(str(path)), generator)
        sitk.WriteImage(image, str(target / kind / name))
        copies[name] = path.name
    revisits = []
    for number in order[NUM_COPIES // 2 :][:NUM_REVISITS]:
        revisits.append(f"visit{len(revisits):03d}.nii.gz")
        sitk.WriteImage(
            visited_again(sitk.ReadImage(str(heads[number])), generator), str(target / "heads" / revisits[-1])
        )
    (target / "wrong").mkdir()
    wrong = []
    head = sitk.GetArrayFromImage(sitk.ReadImage(str(heads[order[-1]]))).astype(np.float32)
    for name, voxels in wrong_files(head, generator).items():
        image = sitk.GetImageFromArray(np.float32(voxels))
        image.SetSpacing((2.0, 2.0, 2.0))
        sitk.WriteImage(image, str(target / "wrong" / f"{name}.nii.gz"))
        wrong.append(f"{name}.nii.gz")
    return Planted(copies, wrong, revisits)


def _with(image: sitk.Image, voxels: Voxels) -> sitk.Image:
    out = sitk.GetImageFromArray(voxels)
    out.CopyInformation(image)
    return out


def _noisy(image: sitk.Image, generator: np.random.Generator) -> sitk.Image:
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    noise = generator.standard_normal(voxels.shape) * 0.03 * np.percentile(voxels, 99)
    return _with(image, np.float32(voxels + noise))


def _resampled(image: sitk.Image, generator: np.random.Generator) -> sitk.Image:
    factors = generator.uniform(1.15, 1.5, 3)
    spacing = [step * factor for step, factor in zip(image.GetSpacing(), factors, strict=True)]
    size = [max(4, round(n / factor)) for n, factor in zip(image.GetSize(), factors, strict=True)]
    still = sitk.Transform()
    return sitk.Resample(
        image, size, still, sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection(), 0.0, sitk.sitkFloat32
    )


def _rescaled(image: sitk.Image, generator: np.random.Generator) -> sitk.Image:
    """Other units and another type."""
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    return _with(image, np.rint(voxels * (1000 / voxels.max()) + 37).astype(np.int16))


def _cropped(image: sitk.Image, generator: np.random.Generator) -> sitk.Image:
    """Up to 6 % of each side cut off at both ends."""
    size = np.array(image.GetSize())
    first, last = (np.rint(generator.uniform(0, 0.06, 3) * size).astype(int) for _ in range(2))
    return sitk.RegionOfInterest(image, (size - first - last).tolist(), first.tolist())


COPIES: tuple[Callable[[sitk.Image, np.random.Generator], sitk.Image], ...] = (
    _noisy, _resampled, _rescaled, _cropped, lambda image, generator: _noisy(_resampled(image, generator), generator),
)  # fmt: skip


def visited_again(image: sitk.Image, generator: np.random.Generator) -> sitk.Image:
    """As another visit of the person would show it: moved, slightly deformed, unevenly lit, and with other noise."""
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    angles = generator.uniform(3, 7, 3) * generator.choice([-1, 1], 3)
    for axes, angle in zip(((0, 1), (0, 2), (1, 2)), angles, strict=True):
        voxels = ndimage.rotate(voxels, angle, axes, reshape=False, order=1)
    fields = [ndimage.gaussian_filter(generator.standard_normal(voxels.shape), 6) for _ in range(4)]
    places = np.indices(voxels.shape) + np.array([0.8 * field / field.std() for field in fields[:3]])
    shift = generator.uniform(-4, 4, 3)[:, None, None, None]
    voxels = ndimage.map_coordinates(voxels, places + shift, order=1)
    voxels *= 1 + 0.15 * fields[3] / np.abs(fields[3]).max()
    return _with(image, np.float32(voxels + generator.standard_normal(voxels.shape) * 0.02 * voxels.max()))


def wrong_files(head: Voxels, generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Ten volumes that are no scans. head: float32 [z, y, x], what some of them are cut from."""
    z, y, x = np.indices((60, 70, 60)) / 60
    screen = np.full((60, 70, 60), 0.9)
    screen[:, 5:12] = screen[10:50, 20:60, :25] = 0.2
    screen[:, 20:64:4, 30:55] = 0.1
    block = head[30:44, 40:52, 50:62]
    return {
        "ramp": x, "slope": z + y, "static": generator.standard_normal(z.shape), "dust": generator.random(z.shape) ** 8,
        "screenshot": screen, "block": block, "checks": ((z * 12).astype(int) + (y * 12).astype(int)) % 2,
        "shuffled": head[generator.permutation(len(head))], "stripes": np.sin(40 * (x + 0.3 * z)),
        "corner": np.pad(ndimage.zoom(head, 0.25, order=1), ((0, 90), (90, 0), (0, 70))),
    }  # fmt: skip


def main(folder: Path, tune: bool) -> None:
    planted = build_folder(folder / "scans", tune=tune)
    settings, workspace = load_settings("cpu-small", SETTINGS), Workspace.open(folder / "workspace")
    ingest(folder / "scans", workspace, settings)
    embed(workspace, settings)
    find_neighbours(workspace, settings)
    measure(workspace, planted)
    discover(workspace, settings)


def measure(workspace: Workspace, planted: Planted) -> None:
    """Print how groups, duplicates and outliers agree with what was planted."""
    scans = read_scans(workspace.neighbours).to_pylist()
    catalogue = read_columns(workspace.catalog, ["volume_id", "source"])
    source_of = {row["volume_id"]: Path(row["source"]) for row in catalogue.to_pylist()}
    rows = [(source_of[row["volume_id"]], row) for row in scans]
    kinds = [(path.parts[0], row["group"]) for path, row in rows if path.parts[0] != "wrong"]
    print(f"{len(rows)} scans; groups by folder: {dict(sorted(Counter(kinds).items()))}")
    print(f"adjusted Rand index of groups against folders: {adjusted_rand_score(*zip(*kinds, strict=True)):.3f}")
    found = {(path.name, source_of[row["duplicate_of"]].name) for path, row in rows if row["duplicate_of"]}
    true = {frozenset(pair) for pair in planted.copies.items()}
    hits = [pair for pair in found if frozenset(pair) in true]
    print(f"duplicates: {len(hits)} of {len(true)} planted ones found, {len(found) - len(hits)} others: "
          f"{sorted(found - set(hits))}; missed: {_missed(true, found)}")  # fmt: skip
    print(f"second visits called duplicates: {sum(bool(set(pair) & set(planted.revisits)) for pair in found)} "
          f"of {len(planted.revisits)}")  # fmt: skip
    outliers = {path.name for path, row in rows if row["is_outlier"]}
    print(f"outliers: {len(outliers & set(planted.wrong))} of {len(planted.wrong)} wrong files "
          f"(not: {sorted(set(planted.wrong) - outliers)}), and {sorted(outliers - set(planted.wrong))}")  # fmt: skip


def _missed(true: set[frozenset[str]], found: set[tuple[str, str]]) -> list[Sequence[str]]:
    return sorted(sorted(pair) for pair in true - {frozenset(pair) for pair in found})


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--tune"]
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(arguments[0]) if arguments else Path(scratch), "--tune" in sys.argv)
