"""A simulated population of brain scans, made from installed files without a download.

The nilearn package contains the MNI152 template (1 mm, skull-stripped T1 with grey- and white-matter maps). Each
subject is that template under a known, seeded deformation of its own, scanned with an acquisition of its own, so that
the true place of every voxel in a common space is known exactly.
"""

import argparse
import functools
import gzip
import importlib.util
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from raygenesis.errors import RaygenesisError
from raygenesis.settings.streams import POPULATION_MODES, POPULATION_SUBJECTS
from raygenesis.workspace.files import publish

VERSION = 2
CENTRE_MM = np.array([0.0, -17.0, 6.0])  # middle of the template's brain, MNI world

MODES = 4
SHARED_VARIANCE = 0.75  # share of the variance that the modes explain; the rest is individual
SCALE_SD, SCALE_LIMIT = 0.04, 0.08  # of the logarithm of each axis' scale
ROTATION_SD_DEGREES = 4.0
SHIFT_SD_MM = 6.0

# Displacement: a cubic B-spline over 8 x 8 x 8 control vectors around the centre. The field lies in
# the convex hull of its vectors, so it never exceeds their limit; and a limit under 0.40 of the
# spacing makes a 3D cubic B-spline one-to-one (Choi and Lee 2000), so that nothing ever folds.
LATTICE, SPACING_MM = 8, 40.0
BEND_SD_MM, BEND_LIMIT_MM = 6.0, 12.0

ANATOMY, ACQUISITION = 0, 1  # purposes of the random numbers of a subject

ORIENTATIONS = ("RAS", "RAS", "LAS", "RAS", "RAS", "PSR")  # by subject: every third is unusual
BOX_MM = np.array([184.0, 220.0, 190.0])  # field of view, right x anterior x superior


class PopulationError(RaygenesisError):
    """A population cannot be made with these arguments, or in this directory."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The smooth one-to-one map from a subject's world (RAS+ mm) to the template's (MNI mm).

    template = CENTRE_MM + matrix @ (point + displacement(point) + shift_mm - CENTRE_MM)
    """

    matrix: np.ndarray  # float64[3, 3], rotation times scales
    shift_mm: np.ndarray  # float64[3], where the head lies in the scanner
    bends_mm: np.ndarray  # float64[LATTICE, LATTICE, LATTICE, 3], B-spline control vectors

    def displacement(self, points_mm: np.ndarray) -> np.ndarray:
        """The non-linear part of the map.

        points_mm: float64[n, 3], in the subject's world. Returns float64[n, 3] in mm. Beyond the lattice, 140 mm from
        the centre, the displacement continues as at its border.
        """
        lattice = ((points_mm - CENTRE_MM) / SPACING_MM + (LATTICE - 1) / 2).T
        components = [
            ndimage.map_coordinates(bend, lattice, order=3, mode="nearest", prefilter=False)
            for bend in np.moveaxis(self.bends_mm, -1, 0)
        ]
        return np.stack(components, axis=-1)

    def to_template(self, points_mm: np.ndarray) -> np.ndarray:
        """Map points of the subject's world to the template's, both float64[n, 3] in mm."""
        moved = points_mm + self.displacement(points_mm) + self.shift_mm
        return CENTRE_MM + (moved - CENTRE_MM) @ self.matrix.T


@dataclass(frozen=True, eq=False)
class SimulatedScan:
    """One simulated T1 scan, in the voxel order in which it is written."""

    voxels: np.ndarray  # int16[i, j, k], arbitrary units
    # uint8[i, j, k]: a quarter of the brain, 1 left front, 2 right front, 3 left back, 4 right back; 0 else.
    # They look alike inside: only where it lies tells a voxel's quarter.
    labels: np.ndarray
    affine: np.ndarray  # float64[4, 4], voxel indices to world RAS+ mm


@dataclass(frozen=True, eq=False)
class Template:
    """The MNI152 maps (T1, grey matter, white matter), each uint8[197, 233, 189] at 1 mm."""

    maps: tuple[np.ndarray, ...]
    affine: np.ndarray  # float64[4, 4], voxel indices to MNI world mm


@functools.cache
def load_template() -> Template:
    """Read the template from the installed nilearn package, without importing it.

    Raises PopulationError if nilearn is not installed, or has no such maps.
    """
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        raise PopulationError("The demonstration needs nilearn's MNI152 template: pip install raygenesis[demo].")
    folder = Path(package.origin).parent / "datasets" / "data"
    paths = [folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz" for name in ("t1", "gm", "wm")]
    if not all(path.exists() for path in paths):
        raise PopulationError(f"The installed nilearn has no MNI152 maps in {folder}: pip install raygenesis[demo].")
    images: list[Any] = [nibabel.load(path) for path in paths]
    return Template(tuple(np.asarray(image.dataobj) for image in images), images[0].affine)


@functools.cache
def _modes(seed: int) -> np.ndarray:
    """The modes of the population's shared variation, float64[MODES, number of parameters]."""
    modes = POPULATION_MODES.generator(seed).standard_normal((MODES, 9 + LATTICE**3 * 3))
    # Unit length for each parameter, so that it varies equally in every population, whatever the seed.
    return modes / np.linalg.norm(modes, axis=0)


def anatomy(seed: int, subject: int) -> Anatomy:
    """The deformation of one subject of a population.

    seed: of the population, at least 0. subject: its number, from 0.
    """
    rng = POPULATION_SUBJECTS.generator(seed, subject, ANATOMY)
    modes = _modes(seed)
    common = rng.standard_normal(MODES) @ modes
    individual = rng.standard_normal(modes.shape[1])
    unit = np.sqrt(SHARED_VARIANCE) * common + np.sqrt(1 - SHARED_VARIANCE) * individual

    scales = np.exp(np.clip(SCALE_SD * unit[0:3], -SCALE_LIMIT, SCALE_LIMIT))
    rotation = Rotation.from_euler("xyz", ROTATION_SD_DEGREES * unit[3:6], degrees=True)
    bends = BEND_SD_MM * unit[9:].reshape(LATTICE, LATTICE, LATTICE, 3)
    length = np.linalg.norm(bends, axis=-1, keepdims=True)
    return Anatomy(
        matrix=rotation.as_matrix() * scales,
        shift_mm=SHIFT_SD_MM * unit[6:9],
        bends_mm=bends * np.minimum(1, BEND_LIMIT_MM / length),
    )


def _field_of_view(subject: int, rng: np.random.Generator) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape [i, j, k] and affine float64[4, 4] of a subject's scan, with a field of view and voxel size of its own."""
    world_axis, sign = axcodes2ornt(ORIENTATIONS[subject % len(ORIENTATIONS)]).T
    world_axis = world_axis.astype(int)
    in_plane, between_slices = rng.uniform(1.8, 2.4), rng.uniform(1.8, 2.8)
    spacing = np.array([in_plane, in_plane, between_slices])  # the slice axis is written last
    box = (BOX_MM * rng.uniform(0.9, 1.1, 3))[world_axis]
    shape = np.rint(box / spacing).astype(int)

    affine = np.eye(4)
    affine[:3, :3] = 0
    affine[world_axis, range(3)] = sign * spacing
    middle = CENTRE_MM + rng.normal(0, 3, 3)
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return tuple(shape.tolist()), affine


def _acquire(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate the scanner: contrast, coil sensitivity, Rician noise and scale.

    signal: the ideal T1, float32[i, j, k] in [0, 1]. Returns int16 of the same shape.
    """
    signal = signal ** rng.uniform(0.8, 1.25)
    for axis in range(3):  # the coil's sensitivity: a slope and a bend along each axis
        place = np.linspace(-1, 1, signal.shape[axis], dtype=np.float32)
        slope, bend = rng.normal(0, 0.06, 2)
        signal *= np.exp(slope * place + bend * place**2).reshape(np.roll([-1, 1, 1], axis))
    noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * rng.uniform(0.01, 0.04)
    rician = np.hypot(signal + noise[0], noise[1])
    return np.rint(np.exp(rng.uniform(np.log(400), np.log(1600))) * rician).astype(np.int16)


def simulate(seed: int, subject: int) -> SimulatedScan:
    """The scan of one subject of a population; arguments as for `anatomy`.

    Raises PopulationError if the template is not installed.
    """
    template = load_template()
    rng = POPULATION_SUBJECTS.generator(seed, subject, ACQUISITION)
    shape, affine = _field_of_view(subject, rng)
    voxels = np.indices(shape).reshape(3, -1).T
    points = anatomy(seed, subject).to_template(voxels @ affine[:3, :3].T + affine[:3, 3])
    source = np.linalg.inv(template.affine)
    places = (points @ source[:3, :3].T + source[:3, 3]).T

    t1, grey, white = (
        ndimage.map_coordinates(image, places, order=1, output=np.float32).reshape(shape) / 255
        for image in template.maps
    )
    right, front = ((points[:, axis] > CENTRE_MM[axis]).reshape(shape) for axis in (0, 1))
    labels = np.where(grey + white > 0.5, 1 + right + 2 * ~front, 0).astype(np.uint8)
    return SimulatedScan(_acquire(t1, rng), labels, affine)


def _nifti(data: np.ndarray, affine: np.ndarray, description: str) -> bytes:
    image = nibabel.Nifti1Image(data, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)  # without a time, so that bytes are reproducible


def _file_name(subject: int) -> str:
    return f"sub-{subject:03d}_T1w.nii.gz"


def _write_subject(directory: Path, seed: int, subject: int) -> None:
    scan = simulate(seed, subject)
    name = _file_name(subject)
    description = f"simulated from MNI152, seed {seed} subject {subject}"
    for folder, data in (("labels", scan.labels), ("scans", scan.voxels)):
        content = _nifti(data, scan.affine, description)
        publish(directory / folder / name, functools.partial(Path.write_bytes, data=content))


def _refuse_foreign_files(directory: Path, num_subjects: int) -> None:
    """Raise PopulationError if the directory holds scans of another population; they would join this one.

    Temporary files of a killed run are removed.
    """
    own = {_file_name(subject) for subject in range(num_subjects)}
    for folder in ("scans", "labels"):
        for path in sorted((directory / folder).glob("*")):
            if path.name.startswith(".sub-"):
                path.unlink()
            elif path.name not in own:
                raise PopulationError(f"{path} is no part of this population; give an empty directory.")


def write_population(directory: Path, num_subjects: int = 48, seed: int = 0) -> None:
    """Write `scans/` and `labels/` with `sub-000_T1w.nii.gz` and so on, then `population.json`.

    num_subjects: at least 1. seed: at least 0. The same arguments give the same bytes. A directory that already holds
    this population is left as it is; one whose writing was interrupted is written again. Raises PopulationError if the
    directory holds anything else, an argument is out of range, or the template is not installed.
    """
    if num_subjects < 1 or seed < 0:
        raise PopulationError(
            f"A population needs at least 1 subject and a seed of at least 0, not {num_subjects} and {seed}."
        )
    directory = Path(directory)
    wanted = json.dumps({"version": VERSION, "seed": seed, "num_subjects": num_subjects})
    manifest = directory / "population.json"
    if manifest.exists():
        found = manifest.read_text()
        if found != wanted:
            raise PopulationError(f"{directory} holds the population {found}, not {wanted}.")
        return
    _refuse_foreign_files(directory, num_subjects)
    load_template()
    for folder in ("scans", "labels"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    # Threads suffice, since interpolation, noise and compression release the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        write = functools.partial(_write_subject, directory, seed)
        list(pool.map(write, range(num_subjects)))
    publish(manifest, functools.partial(Path.write_text, data=wanted))


def main() -> None:
    """`python -m raygenesis.demo.population DIRECTORY [--subjects N] [--seed S]`."""
    parser = argparse.ArgumentParser(description="Write a simulated population of brain scans.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--subjects", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    try:
        write_population(options.directory, options.subjects, options.seed)
    except RaygenesisError as error:
        parser.error(str(error))
    seconds = time.perf_counter() - start
    sizes = [path.stat().st_size for path in options.directory.glob("*/sub-*.nii.gz")]
    print(f"{options.subjects} subjects, {len(sizes)} files, {sum(sizes)} bytes, {seconds:.1f} s")


if __name__ == "__main__":
    main()
