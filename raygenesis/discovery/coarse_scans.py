"""Whole scans at the coarse level as a Ray Data source of encoded cubes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raygenesis.archive.catalogue import CatalogueRow
from raygenesis.archive.coarse import read_coarse_scans
from raygenesis.archive.source import Part, catalogue_source
from raygenesis.cluster.streams import PartSource
from raygenesis.errors import ScanError
from raygenesis.patterns.cells import DTYPE, encode
from raygenesis.settings import IntensitySettings
from raygenesis.workspace.files import Place

COARSE_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("volume_id", pa.string()),
        ("fingerprint", pa.string()),  # of the volume (`archive/volume_identity.py`)
        ("cube", pa.binary()),
        ("failure", pa.string()),
    ]
)


def coarse_cubes(
    volumes: Place, parts: Sequence[Part], shape: Sequence[int], intensity: IntensitySettings
) -> PartSource:
    """A row (schema COARSE_SCHEMA) a scan: its cube is a cell of `shape` of the whole scan, null where it is damaged.

    volumes: the folder of the archive's volumes; parts: the scans of each block.
    """

    def read(rows: Sequence[CatalogueRow]) -> Iterator[dict[str, Any] | ScanError]:
        for cube in read_coarse_scans(volumes, rows, shape, intensity):
            yield cube if isinstance(cube, ScanError) else {"cube": encode(cube)}

    num_bytes = int(np.prod(shape)) * DTYPE.itemsize
    return catalogue_source(parts, [num_bytes * len(rows) for _, rows in parts], COARSE_SCHEMA, read)
