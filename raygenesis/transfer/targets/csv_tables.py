"""Tables of labels in CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from raygenesis.errors import ScanError
from raygenesis.workspace.faults import raise_passing

# Run lengths make fields longer than the 128 KiB that csv takes by itself.
LARGEST_FIELD = 2**24


def rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each row's place ("table.csv:7") and its values in those columns, "" where the row is too short.

    Blanks round names and values are removed. Raises ScanError if the table or a column is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(LARGEST_FIELD)
            table = csv.reader(file, skipinitialspace=True)
            header = [name.strip() for name in next(table, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise ScanError(f"{path} has no column {missing[0]!r}: it has {', '.join(header) or 'none'}")
            places = [header.index(name) for name in columns]
            for row in table:
                if row:
                    values = [row[place].strip() if place < len(row) else "" for place in places]
                    yield f"{path.name}:{table.line_num}", values
    except FileNotFoundError:
        raise ScanError(f"{path} does not exist: put the table there") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise_passing(error, path)
        raise ScanError(f"{path} cannot be read as a table ({error}): give a CSV file") from None


def named_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows' values in those columns, by the columns' names. Raises ScanError as `rows` does."""
    return [dict(zip(columns, values, strict=True)) for _, values in rows(path, columns)]
