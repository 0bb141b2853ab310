"""One scan into the archive: decoded, prepared, stored, with its catalogue row."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash

from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.intake.outcomes import IntakeOutcome
from raygenesis.archive.intake.preparation import prepare
from raygenesis.archive.intensity import percentiles
from raygenesis.archive.store import StoredRecord, level_factors, read_whole_record, volume_folder, write_volume
from raygenesis.archive.volume import LargeScanError, Volume, valid_voxels
from raygenesis.errors import PassingError, ScanError, WorkspaceError
from raygenesis.settings import ArchiveSettings
from raygenesis.workspace.control_groups import memory_kills
from raygenesis.workspace.faults import lasting_reason, patiently
from raygenesis.workspace.files import Place, blake2b_of, xxh3_of

# A decoder that crashes takes its worker along; Ray starts another. After so many the scan is a failure.
MAX_CRASHES = 2
# Bytes: a scan that claims so many is decoded with nothing beside it. So is one at which a worker ended: it may have
# been killed for the memory that others took.
ALONE = 2**60
SCAN = "the files of a scan"  # whose paths may name patients: others may read the logs of a cluster


def take_in(
    paths: Sequence[Path],
    volumes: Place,
    settings: ArchiveSettings,
    node: str = "here",
    is_lost: Callable[[str], bool] = lambda node: False,
    room: int | None = None,
) -> IntakeOutcome:
    """Store a scan's volumes, unless they are there already. Whatever a scan may do becomes an outcome.

    Args:
        paths: the scan's files.
        volumes: the archive's folder of volumes.
        node: the name of this node.
        is_lost: whether a node is gone; an attempt that ended with its node is not held against the scan.
        room: how many bytes of voxels may be decoded here; a scan that claims more is put off before anything is
            decoded (`claimed_bytes` of its outcome), unless the settings forbid it. None for as many as they allow.

    Raises WorkspaceError if no scan can be stored there, PassingError where the files cannot be reached for long.
    """
    try:
        scan_id = patiently(lambda: scan_fingerprint(paths), SCAN)
        attempt = attempt_note(volumes, paths)
        stored, earlier = _left_before(volumes, scan_id, attempt)
        if stored:
            return IntakeOutcome(stored)
        ended = [line.split() for line in earlier.splitlines() if not is_lost(line.split()[-1])]
        if len(ended) >= MAX_CRASHES:
            return IntakeOutcome(reason=_why_it_ended(ended, node), is_lasting=False)
        if ended and room is not None and room < ALONE:
            return IntakeOutcome(reason="put off", is_lasting=False, claimed_bytes=ALONE)
        _write_note(attempt, f"{earlier}{os.getpid()} {memory_kills()} {node}\n")
        try:
            return IntakeOutcome(patiently(lambda: _store(paths, volumes, scan_id, settings, room), SCAN))
        finally:
            with suppress(OSError):
                attempt.unlink(missing_ok=True)
    except LargeScanError as error:
        if error.claimed > max_bytes(settings):
            return IntakeOutcome(reason=str(error))
        return IntakeOutcome(reason="put off", is_lasting=False, claimed_bytes=error.claimed)
    except ScanError as error:
        return IntakeOutcome(reason=str(error))
    except PassingError as error:
        return IntakeOutcome(reason=lasting_reason(error, SCAN), is_lasting=False)
    except WorkspaceError:
        raise
    except MemoryError:
        return IntakeOutcome(reason="its voxels do not fit in memory", is_lasting=False)
    except OSError as error:
        return IntakeOutcome(reason=lasting_reason(error), is_lasting=False)
    except Exception as error:  # a decoder's own bug must not end the ingest of ten thousand other scans
        return IntakeOutcome(reason=f"cannot be decoded (unexpected {type(error).__name__})")


def _why_it_ended(attempts: Sequence[Sequence[str]], node: str) -> str:
    """Why workers ended at a scan. attempts: of each its process, the kills for memory before it, and its node."""
    if any(where == node and memory_kills() > int(kills) for _, kills, where in attempts):
        return f"memory ran out {len(attempts)} times while it was decoded, the last time with nothing beside it"
    return f"decoding it crashed, or was ended, {len(attempts)} times, the last time with nothing beside it"


def attempt_note(volumes: Place, paths: Sequence[Path]) -> Place:
    """The file that counts the attempts at a scan: of these very paths, as a copy may be decoded at the same time."""
    return volumes.parent / "attempts" / xxhash.xxh3_64_hexdigest("\n".join(map(str, paths)).encode())


def _left_before(volumes: Place, scan_id: str, attempt: Place) -> tuple[tuple[StoredRecord, ...], str]:
    """The records of a scan that is stored, and the note of attempts at it.

    Raises WorkspaceError: a workspace that cannot be read is not the scan's fault.
    """
    try:
        return _stored_records(volumes, scan_id), attempt.read_text() if attempt.exists() else ""
    except OSError as error:
        raise WorkspaceError(f"{volumes.parent} cannot be read: {error.strerror or error}") from None


def _write_note(attempt: Place, processes: str) -> None:
    """Leave a note of attempts (as `_why_it_ended` has them) that outlives a crash.

    Raises WorkspaceError: a full disk is not the scan's fault.
    """
    try:
        attempt.parent.mkdir(parents=True, exist_ok=True)
        attempt.write_text(processes)
    except OSError as error:
        raise WorkspaceError(f"{attempt} cannot be written: {error.strerror or error}") from None


def scan_fingerprint(paths: Sequence[Path]) -> str:
    """Identity of a scan: of its files' bytes, whatever their names and order, 32 hex digits."""
    hashes = sorted(map(blake2b_of, paths))
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.blake2b("".join(hashes).encode(), digest_size=16).hexdigest()


def earlier_fingerprint(paths: Sequence[Path]) -> str:
    """What format 1 of the archive called a scan, 16 hex digits: weights may have learnt from such an archive."""
    hashes = sorted(map(xxh3_of, paths))
    return hashes[0] if len(hashes) == 1 else xxhash.xxh3_64_hexdigest("".join(hashes).encode())


def _stored_records(volumes: Place, scan_id: str) -> tuple[StoredRecord, ...]:
    """Records of a scan whose volumes are all stored; one of which a file is cut short is not, and is made again."""
    first = read_whole_record(volume_folder(volumes, scan_id)) or read_whole_record(
        volume_folder(volumes, f"{scan_id}-0000")
    )
    if first is None:
        return ()
    records = [first]
    for number in range(1, first["num_siblings"]):
        record = read_whole_record(volume_folder(volumes, f"{scan_id}-{number:04d}"))
        if record is None:
            return ()
        records.append(record)
    return tuple(records)


def max_bytes(settings: ArchiveSettings) -> int:
    """The most bytes of voxels that a scan may have."""
    return int(settings.max_scan_gib * 2**30)


def _store(
    paths: Sequence[Path], volumes: Place, scan_id: str, settings: ArchiveSettings, room: int | None
) -> tuple[StoredRecord, ...]:
    most = max_bytes(settings) if room is None else min(room, max_bytes(settings))
    decoded = read_scan(paths, settings.fourth_axis, most, settings.fill_nan, settings.uneven)
    records: list[StoredRecord] = []
    for number, volume in enumerate(decoded):
        volume_id = scan_id if len(decoded) == 1 else f"{scan_id}-{number:04d}"
        prepared = prepare(volume, settings)
        record = describe(prepared, volume_id, len(decoded), settings.coarse_size)
        if record["low"] == record["high"]:
            when = "" if prepared is volume else ", once it is cropped or resampled as the settings say"
            raise ScanError(f"every channel is of a single value{when}: there is no image")
        stored = write_volume(volume_folder(volumes, volume_id), prepared, record, settings)
        records.append({**record, "stored_bytes": stored})
    return tuple(records)


def describe(volume: Volume, volume_id: str, num_siblings: int, coarse_size: int) -> StoredRecord:
    """The record of a volume that is to be stored; its `stored_bytes` are not known yet and 0.

    num_siblings: how many volumes its scan has. coarse_size: the longest side of the coarsest pyramid level, in voxels.
    """
    voxels = volume.voxels
    limits = [percentiles(valid_voxels(volume, channel)) for channel in voxels.reshape(-1, *volume.shape)]
    return {
        "modality": volume.modality,
        "shape": list(volume.shape),
        "num_channels": volume.num_channels,
        "spacing_mm": list(volume.spacing_mm),
        "affine": volume.affine.ravel().tolist(),
        "dtype": voxels.dtype.name,
        "slope": volume.slope,
        "intercept": volume.intercept,
        "low": [low for low, _ in limits],
        "high": [high for _, high in limits],
        "levels": [list(factor) for factor in level_factors(volume.shape, coarse_size)],
        "tags": json.dumps(dict(volume.tags), sort_keys=True),
        "corrections": list(volume.corrections),
        "notes": list(volume.notes),
        "voxel_fingerprint": voxel_fingerprint(voxels),
        "volume_id": volume_id,
        "num_siblings": num_siblings,
        "stored_bytes": 0,
    }


def voxel_fingerprint(voxels: np.ndarray) -> str:
    """Hash of type, shape and voxels (C order)."""
    fingerprint = xxhash.xxh3_128(f"{voxels.dtype.str}{voxels.shape}".encode())
    fingerprint.update(np.ascontiguousarray(voxels).data.cast("B"))
    return fingerprint.hexdigest()
