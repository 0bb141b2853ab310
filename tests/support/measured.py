"""A workspace of whose stages there are manifests alone: they took twice as long as the shipped rates say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raygenesis.archive.work import ingest_work
from raygenesis.cluster.work import ArchiveSize, Work
from raygenesis.discovery.work import autoencoder_work, discover_work
from raygenesis.planning.estimate import estimate
from raygenesis.pretraining.work import pretrain_work, store_size
from raygenesis.settings import PriceSettings, load_settings
from raygenesis.text.amounts import MIB
from raygenesis.workspace.files import Place
from raygenesis.workspace.hardware import Hardware
from raygenesis.workspace.manifest import (
    ArchiveCounts,
    ArchiveManifest,
    AutoencoderCounts,
    AutoencoderManifest,
    Manifest,
    PatternsManifest,
    RunCounts,
    RunManifest,
    StoreCounts,
)
from raygenesis.workspace.manifest_files import write_manifest
from raygenesis.workspace.workspace import Workspace

SMALL = load_settings("cpu-small")
HARDWARE = Hardware(2)
MADE_ON = Hardware(2, processor="one")


def put_manifest(folder: Place, manifest: Manifest) -> None:
    """Write a manifest of an artifact of 10 MiB that was made on two cores."""
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(
        folder, replace(manifest, bytes=10 * MIB, fingerprint="f", finished="2026-01-01", hardware=MADE_ON)
    )  # fmt: skip


def twice(work: Work) -> float:
    one = estimate(work, HARDWARE, PriceSettings(), {}, 1e12).seconds
    return work.start_s + 2 * (one - work.start_s)


def measured_workspace(root: Path) -> Workspace:
    """1,000 scans of 2 MiB of voxels in files of 1 MiB, an auto-encoder, 50,000 patterns and a run."""
    workspace = Workspace.open(root)
    scans, tree = ArchiveSize(1000, 2.0, 1.0), SMALL.model_dump(mode="json")
    put_manifest(
        workspace.archive,
        ArchiveManifest(
            counts=ArchiveCounts(scans=1000, volumes=1000, subjects=1000, failures=0),
            seconds=twice(ingest_work(scans)), voxel_bytes=2000 * MIB, source_bytes=1000 * MIB,
        ),
    )  # fmt: skip
    put_manifest(
        workspace.autoencoder,
        AutoencoderManifest(
            counts=AutoencoderCounts(training=800, validation=200, epochs=10), val_mse=0.1,
            seconds=twice(autoencoder_work(scans, SMALL.autoencoder, SMALL.validation_fraction, 10)),
            settings={"autoencoder": tree["autoencoder"]},
        ),
    )  # fmt: skip
    chosen = SMALL.discovery
    store = StoreCounts(
        patterns=50_000, validation=10_000, volumes=990, parts=49, failures=0, references=chosen.num_references,
        coordinates=chosen.num_coordinates, neighbours=chosen.num_neighbours,
    )  # fmt: skip
    put_manifest(
        workspace.patterns,
        PatternsManifest(
            counts=store, seconds=twice(discover_work(chosen, 50_000)), settings={"discovery": tree["discovery"]},
            cube_shape=chosen.cube_shape, raw_bytes=0,
        ),
    )  # fmt: skip
    put_manifest(
        workspace.run("default"),
        RunManifest(
            counts=RunCounts(patterns=40_000, epochs=5, classes=0),
            seconds=twice(pretrain_work(SMALL.pretraining, chosen, store_size(store), 5)),
            settings={"pretraining": tree["pretraining"]},
            architecture={}, store="patterns", epoch=4, accuracy=None, chance=None, restoration_mse=None,
            identity_mse=None, mean_image_mse=None, embedding_variance=1.0, effective_rank=4.0, retrieval=None,
            retrieval_untrained=None,
        ),
    )  # fmt: skip
    return workspace
