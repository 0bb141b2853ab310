"""Real files as other libraries read them: SimpleITK all of them, nibabel NIfTI too. Disagreements are explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from raygenesis.archive.formats.readers import read_scan, read_scan_geometry
from raygenesis.archive.intake.survey import survey
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from tests.support.data import HEADS, HIPPOCAMPI, RADIOGRAPHS, SHARED

FOLDERS = {
    "odd DICOM": SHARED / "odd-dicom", "chest CT": SHARED / "lidc-ct" / "Lung_Dx-A0002", "heads": HEADS,
    "hippocampi": HIPPOCAMPI, "radiographs": RADIOGRAPHS,
}  # fmt: skip
MOST = 12  # scans of a folder of NIfTI or PNG

# Series that SimpleITK stacks whatever lies where, with what we say of them instead.
EXPLAINED = {
    "failing/gantrytilting/001": "gantry tilt of 14.0° removed",
    "failing/notavolume/001": "4 slices at 1 position are not a volume",
    "failing/sliceincrement/001": "1 slice is missing",
    "failing/sliceincrement/002": "1 slice is missing",
}
UNPLACED = {"heads", "odd DICOM", "radiographs"}


def scans_of(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    scans = survey(folder).scans
    dicom = [scan for scan in scans if scan.series]
    others = [scan for scan in scans if not scan.series]
    for scan in (*dicom, *others[:: -(-len(others) // MOST) or 1]):
        yield str(Path(scan.source).parent), [folder / file.path for file in scan.files]


def simpleitk_reading(paths: list[Path]) -> sitk.Image:
    """The image, its axes turned to rise towards left, posterior and superior as far as they do."""
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(paths[0].parent)) if len(paths) > 1 else [str(paths[0])]
    if len(names) > 1:
        reader.SetFileNames(names)
        image = reader.Execute()
    else:
        image = sitk.ReadImage(names[0])
    return sitk.DICOMOrient(image, "LPS") if image.GetDimension() == 3 else image


def assert_agrees(volume: Volume, image: sitk.Image) -> None:
    theirs = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        theirs = np.moveaxis(theirs, -1, 0)[:3]  # without transparency
    ours = volume.voxels.astype(np.float64) * volume.slope + volume.intercept
    assert np.allclose(ours[..., ::-1, ::-1], theirs.reshape(ours.shape), atol=1e-3)
    if volume.ndim == 3:
        assert volume.spacing_mm == pytest.approx(image.GetSpacing()[::-1], rel=1e-4)
        # SimpleITK's first voxel is our last along x and y.
        x, y = (side - 1 for side in volume.shape[:0:-1])
        first = (volume.affine @ [x, y, 0, 1])[:3] * (-1, -1, 1)
        assert np.allclose(first, image.GetOrigin(), atol=1e-2)
        directions = np.diag([-1, -1, 1]) @ volume.affine[:3, :3] @ np.diag([-1, -1, 1]) / volume.spacing_mm[::-1]
        assert np.allclose(directions, np.reshape(image.GetDirection(), (3, 3)), atol=1e-3)


@pytest.mark.parametrize("name", FOLDERS)
def test_simpleitk_reads_the_same(name: str) -> None:
    folder = FOLDERS[name]
    if not folder.is_dir():
        pytest.skip(f"real scans are not at {folder}")
    explained, checked = set(), 0
    for source, paths in scans_of(folder):
        if source in EXPLAINED and len(paths) > 1:
            try:
                said = " ".join(read_scan(paths)[0].corrections)
            except ScanError as error:
                said = str(error)
            assert EXPLAINED[source] in said
            explained.add(source)
            continue
        (volume,) = read_scan(paths)
        assert read_scan_geometry(paths) == [(volume.shape, pytest.approx(volume.spacing_mm))]
        assert bool(volume.notes) <= (name in UNPLACED)
        assert_agrees(volume, simpleitk_reading(paths))
        checked += 1
    assert checked >= 2 and (name != "odd DICOM" or explained == set(EXPLAINED))


@pytest.mark.parametrize("name", ["odd DICOM", "heads", "hippocampi"])
def test_nibabel_reads_the_same(name: str) -> None:
    folder = FOLDERS[name]
    if not folder.is_dir():
        pytest.skip(f"real scans are not at {folder}")
    found = [path for path in sorted(folder.rglob("*.nii.gz")) if "rgb" not in path.parts]  # those are records to it
    for path in found[:: -(-len(found) // MOST)]:
        (volume,) = read_scan([path])
        theirs = nibabel.as_closest_canonical(nibabel.load(path))
        real = volume.voxels.T.astype(np.float64) * volume.slope + volume.intercept
        assert np.allclose(real, theirs.get_fdata(), atol=1e-3) and np.allclose(volume.affine, theirs.affine, atol=1e-4)
