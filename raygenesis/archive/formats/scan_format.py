"""What a scan format has to provide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from raygenesis.archive.grid import Geometry
from raygenesis.archive.volume import Volume

# What becomes of a fourth axis (`archive.fourth_axis`): a ScanError, a volume for each index, or channels of one.
FourthAxis = Literal["refuse", "split", "channels"]


class ScanFormat(Protocol):
    """How scans of one format are recognised and read.

    suffixes: ends of names, in lower case; such a file is of this format whatever it holds. A format whose names say
    nothing has none, and recognises its files by their first bytes.

    The `paths` of a scan are its files as the survey has them: the one that was recognised comes first, its companions
    follow. A format reads from the first alone, but for DICOM, whose scans are all files of a series.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    def recognises(self, head: bytes) -> bool:
        """Whether a file is of this format, by its first HEAD_BYTES; asked where no format claims its name."""
        return False

    def companions(self, path: Path) -> Sequence[Path]:
        """Files that belong to the scan in a file, whether they are there or not.

        A change in one of them is a change of the scan. Raises ScanError if the file names none that can be its own.
        """
        return ()

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        """Decode a scan: one volume, or several where `fourth_axis` splits them.

        Axes that are not perpendicular, and three channels that are equal, are left to `read_scan`.
        Raises ScanError saying what is wrong with the file, or that it claims more than `max_bytes` of voxels.
        """
        ...

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        """The geometry of each volume that `read_scan` gives (`Grid.geometry`), without reading voxels.

        Raises ScanError.
        """
        ...


# Bytes at the beginning of a file that formats see.
HEAD_BYTES = 256
