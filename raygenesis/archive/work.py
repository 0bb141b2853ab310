"""What ingesting has to do."""

from __future__ import annotations

from dataclasses import replace

from raygenesis.cluster.work import WORKER_GIB, ArchiveSize, Work
from raygenesis.text.amounts import MIB
from raygenesis.workspace.manifest import ArchiveManifest

S_PER_SCAN, S_PER_MIB = 0.017, 0.0078  # of one core; MiB of voxels
STORED_OF_VOXELS = 0.75  # the archive, pyramids and all, of its voxels
START_S = 6.0
COMPRESSED = 0.6  # a scan's files, of its voxels


def archive_size(archive: ArchiveManifest) -> ArchiveSize:
    """The number of the archive's scans and their mean size."""
    number, files = archive.counts.volumes, archive.source_bytes
    voxels = files if archive.voxel_bytes is None else archive.voxel_bytes  # None in what an earlier version wrote
    return ArchiveSize(number, voxels / number / MIB, files / number / MIB)


def ingest_work(scans: ArchiveSize) -> Work:
    """Decode, hash, store: each scan alone."""
    voxels = scans.num_scans * scans.voxel_mib
    return Work(
        "ingest", f"{scans.num_scans:,} scans", start_s=START_S,
        core_s=scans.num_scans * S_PER_SCAN + voxels * S_PER_MIB,
        read_mib=scans.num_scans * scans.source_mib, stored_mib=voxels * STORED_OF_VOXELS,
        memory_gib_per_core=WORKER_GIB + 4 * scans.voxel_mib / 1024,
    )  # fmt: skip


def ingest_work_done(archive: ArchiveManifest) -> Work:
    """The work of the call that finished an archive: what was known before was not read again, but is stored."""
    size, counts = archive_size(archive), archive.counts
    taken_in = round(counts.volumes * (1 - counts.known / max(counts.scans, 1)))
    return replace(ingest_work(replace(size, num_scans=taken_in)), stored_mib=ingest_work(size).stored_mib)
