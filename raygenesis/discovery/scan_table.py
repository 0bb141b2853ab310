"""The table of what neighbours say of each scan: whose copy it is, whether it stands alone, its group."""

from __future__ import annotations

import pyarrow as pa

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, read_table

SCANS_FILE = "scans.parquet"

SCANS = pa.schema(
    [
        ("volume_id", pa.string()),
        ("nearest_distance", pa.float32()),  # between embeddings; null of the only scan
        ("duplicate_of", pa.string()),  # the first of the same scan; empty of that itself
        ("likeness", pa.float32()),  # of a copy: the correlation of its details with those of a scan that is the same
        ("sparsity", pa.float32()),  # how much sparser scans lie around it than around its neighbours
        ("is_outlier", pa.bool_()),
        ("group", pa.int32()),  # by size, 0 the largest; -1 of outliers
    ]
)


def read_scans(folder: Place) -> pa.Table:
    """The table of a finished `neighbours/` (schema SCANS). Raises WorkspaceError if it is missing or damaged."""
    path = folder / SCANS_FILE
    try:
        return read_table(path, schema=SCANS)
    except (pa.ArrowInvalid, OSError) as error:
        fault = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise WorkspaceError(
            f"{path} is {fault}: remove manifest.json beside it, then run `raygenesis neighbours`"
        ) from None
