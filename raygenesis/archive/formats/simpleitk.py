"""What formats that SimpleITK decodes have in common."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import SimpleITK as sitk

from raygenesis.archive.formats.scan_format import FourthAxis, ScanFormat
from raygenesis.archive.formats.text_header import VOXELS, CheckedHeader
from raygenesis.archive.grid import LPS_TO_RAS, Geometry, Grid, grid_of_steps
from raygenesis.archive.volume import Volume, check_claim
from raygenesis.errors import ScanError

sitk.ProcessObject.SetGlobalWarningDisplay(False)

NO_ORIENTATION = "no orientation is stored: axes taken as right to left, anterior to posterior, inferior to superior"


class Stated(NamedTuple):
    """What a header says, where SimpleITK takes something for granted and does not tell.

    mm_per_unit: of its unit of length. has_size: whether there is a voxel size, along each of its spatial axes.
    has_orientation: whether it says where its axes lead in the patient.
    """

    mm_per_unit: float
    has_size: Sequence[bool]
    has_orientation: bool


class SimpleITKFormat(ScanFormat):
    """A format that SimpleITK decodes, by a header that we have read, checked and written anew.

    image_io: the name of its reader there.
    """

    image_io: ClassVar[str]

    def checked_header(self, path: Path) -> CheckedHeader:
        """The header of the file that a scan is named by. Raises ScanError for what the format does not have."""
        raise NotImplementedError

    def stated(self, path: Path, num_axes: int) -> Stated:
        """What the header says of its grid of so many spatial axes. Raises ScanError for a unit that is not known."""
        raise NotImplementedError

    def companions(self, path: Path) -> Sequence[Path]:
        voxels = self.checked_header(path).voxels
        return () if voxels == path else (voxels,)

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        header = self.checked_header(paths[0])
        with _opened(header, self.image_io) as reader:
            size, grid = self._placed(paths[0], reader)
            if len(size) == 4 and fourth_axis == "refuse":
                raise ScanError(
                    f"shape {size} has a fourth axis: choose archive.fourth_axis=split (time points) or channels"
                )
            bits = re.search(r"8|16|32|64", sitk.GetPixelIDValueAsString(reader.GetPixelID()))
            itemsize = int(bits[0]) // 8 if bits else 1
            count = int(np.prod(size, dtype=object)) * reader.GetNumberOfComponents()
            check_claim(count * itemsize, header.voxels, max_bytes, header.is_packed)
            try:
                image = reader.Execute()
            except RuntimeError:
                raise ScanError("the file is cut short or damaged (SimpleITK cannot decode it)") from None
        voxels = sitk.GetArrayFromImage(image)  # [(t,) z, y, x(, c)]
        num_channels = image.GetNumberOfComponentsPerPixel()
        if num_channels > 1 and len(size) == 4:
            raise ScanError(f"shape {size} with {num_channels} channels: split it into 3D files")
        if num_channels > 1:
            voxels = np.moveaxis(voxels, -1, 0)
        volumes = []
        for part in voxels if len(size) == 4 and fourth_axis == "split" else [voxels]:
            num_channel_axes = part.ndim - min(image.GetDimension(), 3)
            stored = part.reshape(*part.shape[:num_channel_axes], *size[:3][::-1])
            volumes.append(Volume(*grid.turned(stored.T), ndim=grid.ndim, notes=grid.notes))
        return volumes

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        with _opened(self.checked_header(paths[0]), self.image_io) as reader:
            size, grid = self._placed(paths[0], reader)
        return [grid.geometry] * (size[3] if len(size) == 4 and fourth_axis == "split" else 1)

    def _placed(self, path: Path, reader: sitk.ImageFileReader) -> tuple[tuple[int, ...], Grid]:
        """Size x y z (and t), and the grid of the spatial axes."""
        size, num = reader.GetSize(), reader.GetDimension()
        if num not in (2, 3, 4):
            raise ScanError(f"an image of {num} dimensions: expected 2, 3 or 4")
        if 0 in size:
            raise ScanError(f"shape {size} holds no voxels")
        if 0 in reader.GetSpacing():  # SimpleITK does not read the voxels of such a file
            raise ScanError("a voxel size of 0: give its header the true one, or none, which is taken as 1 mm")
        directions, spatial = np.eye(3), min(num, 3)
        directions[:spatial, :spatial] = np.reshape(reader.GetDirection(), (num, num))[:spatial, :spatial]
        steps, origin = np.ones(3), np.zeros(3)
        steps[:spatial], origin[:spatial] = reader.GetSpacing()[:spatial], reader.GetOrigin()[:spatial]
        stated = self.stated(path, spatial)
        steps[:spatial][~np.array(stated.has_size)] = np.nan
        if num == 2:
            size = (*size, 1)
        ndim = 2 if size[2] == 1 else 3
        turned = LPS_TO_RAS @ directions, steps.tolist(), LPS_TO_RAS @ origin
        grid = grid_of_steps(size[:3], *turned, ndim, stated.mm_per_unit)
        if not stated.has_orientation:
            grid = replace(grid, notes=(*grid.notes, NO_ORIENTATION))
        return size, grid


@contextmanager
def _opened(header: CheckedHeader, image_io: str) -> Iterator[sitk.ImageFileReader]:
    """SimpleITK's reader of a checked header, in a folder of its own that names the file of voxels and no other."""
    with tempfile.TemporaryDirectory(prefix="raygenesis-header-") as folder:
        path = Path(folder, "header")
        path.write_text(header.text, "ascii")
        path.with_name(VOXELS).symlink_to(header.voxels.absolute())
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO(image_io)
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            raise ScanError("not readable as the format that its name ends in (SimpleITK finds no header)") from None
        yield reader
