"""What became of scans, in parts that the tasks of an ingest publish, and that outlive one which is interrupted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_type_hints

import pyarrow as pa

from raygenesis.archive.catalogue import CATALOGUE, VolumeRecord
from raygenesis.archive.intake.known_files import stamp_of
from raygenesis.archive.intake.survey import Scan
from raygenesis.archive.store import volume_folder
from raygenesis.text.names import reason_text
from raygenesis.workspace.files import Place, read_table, write_table
from raygenesis.workspace.fingerprint import digest

RECORD = pa.struct([CATALOGUE.field(name) for name in CATALOGUE.names if name in get_type_hints(VolumeRecord)])
OUTCOMES = pa.schema(
    [
        ("stamp", pa.string()),  # of the scan's files, as they were read
        ("records", pa.list_(RECORD)),  # of the volumes that the scan became
        ("reason", pa.string()),  # why it became none; empty where it did
        ("is_lasting", pa.bool_()),  # whether reading it again would end the same
        ("claimed_bytes", pa.int64()),  # of voxels, of a scan that is put off; 0 of others, null in older parts
    ]
)


@dataclass(frozen=True)
class IntakeOutcome:
    """What became of a scan: the records of its volumes, or the reason why there are none.

    is_lasting: whether reading it again would end the same. claimed_bytes: of voxels, by the header of a scan that was
    put off, as the task may decode fewer; else 0.
    """

    records: tuple[VolumeRecord, ...] = ()
    reason: str = ""
    is_lasting: bool = True
    claimed_bytes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", reason_text(self.reason))


def outcome_table(stamps: Sequence[str], outcomes: Sequence[IntakeOutcome]) -> pa.Table:
    """Outcomes of scans with these stamps as rows (schema OUTCOMES)."""
    return pa.table(
        {
            "stamp": stamps, "records": [outcome.records for outcome in outcomes],
            "reason": [outcome.reason for outcome in outcomes],
            "is_lasting": [outcome.is_lasting for outcome in outcomes],
            "claimed_bytes": [outcome.claimed_bytes for outcome in outcomes],
        },
        OUTCOMES,
    )  # fmt: skip


def publish_outcomes(part: pa.Table, folder: Place) -> pa.Table:
    """Write a part of outcomes (schema OUTCOMES) under a name that its scans decide; returns it as it is."""
    write_table(folder / f"part-{digest(part['stamp'].to_pylist())}.parquet", part)
    return part


def read_parts_of_outcomes(folder: Place) -> Iterator[pa.Table]:
    """The parts that an ingest which was interrupted has left; damaged ones are passed by."""
    for path in folder.glob("part-*.parquet"):
        try:
            yield read_table(path, schema=OUTCOMES)
        except (OSError, pa.ArrowException):
            continue  # it only spares work


def outcomes_in(parts: Iterable[pa.Table], scans: Sequence[Scan]) -> dict[str, IntakeOutcome]:
    """Outcomes, by source, of those scans, as their files are now, that parts (schema OUTCOMES) tell of."""
    source_of = {stamp_of(scan): scan.source for scan in scans}
    return {
        source_of[row["stamp"]]: IntakeOutcome(
            tuple(row["records"]), row["reason"], row["is_lasting"], row["claimed_bytes"] or 0
        )
        for part in parts
        for row in part.to_pylist()
        if row["stamp"] in source_of
    }


def settled(outcomes: Mapping[str, IntakeOutcome], volumes: Place) -> dict[str, IntakeOutcome]:
    """Those whose volumes are all there, or whose failure will not pass by itself."""
    stored = {path.name for path in volumes.glob("*.ome.zarr")}
    return {
        source: outcome
        for source, outcome in outcomes.items()
        if (outcome.is_lasting if outcome.reason else stored.issuperset(_folders(outcome, volumes)))
    }


def _folders(outcome: IntakeOutcome, volumes: Place) -> list[str]:
    return [volume_folder(volumes, record["volume_id"]).name for record in outcome.records]
