"""What ingesting has to do."""

from __future__ import annotations

from raygenesis.cluster.work import WORKER_GIB, ArchiveSize, Work
from raygenesis.text.amounts import MIB
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.workspace import Workspace

S_PER_SCAN, S_PER_MIB = 0.017, 0.0078  # of one core; MiB of voxels
STORED_OF_VOXELS = 0.75  # the archive, pyramids and all, of its voxels
START_S = 6.0
COMPRESSED = 0.6  # a scan's files, of its voxels


def archive_size(workspace: Workspace) -> ArchiveSize | None:
    """The number of the archive's scans and their mean size; None without an archive."""
    manifest = ARCHIVE.read(workspace.archive)
    if manifest is None:
        return None
    number, files = manifest.counts.volumes, manifest.source_bytes
    voxels = files if manifest.voxel_bytes is None else manifest.voxel_bytes  # None in what an earlier version wrote
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
