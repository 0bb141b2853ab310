"""Small workspaces with something of every stage, made up or trained for no time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue, voxel_bytes
from raygenesis.discovery.autoencoder_training import IdentityMapping
from raygenesis.discovery.quality import MeasuredVisit, quality_of
from raygenesis.discovery.scan_table import SCANS, SCANS_FILE
from raygenesis.networks.weights.native import save_network
from raygenesis.networks.weights.scan_encoders import AUTOENCODER_FILE, save_scan_encoder
from raygenesis.patterns.cells import encode
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import write_part
from raygenesis.pretraining.stores import pretext_task
from raygenesis.settings import Settings, as_yaml, settings_from
from raygenesis.sweeps.records import TrialRecord, write_trial
from raygenesis.sweeps.table import costs, rank_points, seeds_note
from raygenesis.workspace.artifacts import (
    ARCHIVE,
    AUTOENCODER,
    COMPARISONS,
    EMBEDDINGS,
    INDEX,
    NEIGHBOURS,
    PATTERNS,
    RUNS,
    SWEEPS,
    TRANSFER,
)
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import publish, write_json, write_table
from raygenesis.workspace.manifest import (
    ArchiveCounts,
    ArchiveManifest,
    AutoencoderCounts,
    AutoencoderManifest,
    ComparisonCounts,
    ComparisonManifest,
    EmbeddingsCounts,
    EmbeddingsManifest,
    Extent,
    IndexCounts,
    IndexManifest,
    NeighboursCounts,
    NeighboursManifest,
    PatternsManifest,
    ReferenceRecord,
    RunCounts,
    RunManifest,
    StoreCounts,
    SweepCounts,
    SweepManifest,
    TransferCounts,
    TransferManifest,
)
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace
from tests.support.synthetic import archived

HOSTILE = "<script>alert(1)</script>.nii.gz"


def settings_of(ndim: int, **sections: Any) -> Settings:
    tree = {
        "autoencoder": {"input_shape": [16] * ndim, "base_width": 2, "latent_size": 4},
        "discovery": {
            "num_coordinates": 2, "num_neighbours": 3, "num_validation_neighbours": 2, "cube_shape": [16] * ndim,
            "scales": [{"extent_mm": [16] * ndim}],
        },
        "pretraining": {"base_width": 2, "num_classification_epochs": 1, "num_joint_epochs": 1},
    }  # fmt: skip
    return settings_from({**tree, **sections})


def chosen(settings: Settings, *keys: str) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(keys))


def make_archive(workspace: Workspace, ndim: int = 3, failures: Sequence[dict[str, str]] = ()) -> None:
    workspace.volumes.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = [
        archived(
            workspace.volumes, f"{n:016x}", generator.random((24, 20, 28)[:ndim], np.float32), (2.0, 2, 1)[:ndim],
            modality="CT" if n < 4 else "",
        )
        for n in range(6)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, CATALOGUE)
    write_table(workspace.catalog, table)
    write_table(workspace.archive / "failures.parquet", pa.Table.from_pylist(list(failures), FAILURES))
    manifest = ArchiveManifest(
        counts=ArchiveCounts(scans=6, volumes=6, subjects=6, failures=0), seconds=1.0,
        source_bytes=sum(row["source_bytes"] for row in rows), voxel_bytes=voxel_bytes(table),
    )  # fmt: skip
    Stage(ARCHIVE, workspace.archive, chosen(settings_of(ndim), "archive"), {}).finish(manifest)


def make_discovery(workspace: Workspace, settings: Settings) -> None:
    """Auto-encoder, embeddings, index, and a pattern store of one reference, two neighbours, two held-out scans."""
    keys = ("seed", "validation_fraction", "intensity")
    for folder in (workspace.autoencoder, workspace.embeddings, workspace.index, workspace.patterns):
        folder.mkdir()
    model = IdentityMapping(settings.autoencoder, 0).build()
    architecture = settings.autoencoder.model_dump(mode="json", include={"input_shape", "base_width", "latent_size"})
    save_scan_encoder(workspace.autoencoder / AUTOENCODER_FILE, "autoencoder", model.state_dict(), architecture)
    history = [{"epoch": n, "train_loss": 0.2 / (n + 1), "val_mse": 0.3 / (n + 1)} for n in range(3)]
    write_table(workspace.autoencoder / "metrics.parquet", pa.Table.from_pylist(history))
    trained = AutoencoderManifest(
        counts=AutoencoderCounts(epochs=3, training=4, validation=2), seconds=1.0, val_mse=0.1
    )
    Stage(AUTOENCODER, workspace.autoencoder, chosen(settings, "autoencoder", *keys), {}).finish(trained)
    ids = [row["volume_id"] for row in read_catalogue(workspace.catalog)]
    vectors = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    cells = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 4)
    embedded = pa.table({"volume_id": ids, "embedding": cells, "failure": [""] * 6})
    write_table(workspace.embeddings / "part-00000000.parquet", embedded)
    there = EmbeddingsManifest(counts=EmbeddingsCounts(volumes=6), seconds=1.0)
    Stage(EMBEDDINGS, workspace.embeddings, chosen(settings, "embedding"), {}).finish(there)
    indexed = IndexManifest(counts=IndexCounts(volumes=6), seconds=1.0, method="exact", recall=1.0, ef=None)
    Stage(INDEX, workspace.index, {**chosen(settings, "index"), "num_neighbours": 3}, {}).finish(indexed)
    make_neighbours(workspace, settings, ids)
    shape, facts = settings.discovery.cube_shape, chosen(settings, "discovery", *keys)
    counts = StoreCounts(
        patterns=10, validation=4, volumes=5, parts=2, failures=0, references=1, coordinates=2, neighbours=3
    )
    for part, (split, members) in enumerate(((TRAINING, ids[:3]), (VALIDATION, ids[4:]))):
        rows = [pattern_of(split, rank, c, name, shape) for rank, name in enumerate(members) for c in (0, 1)]
        write_part(workspace.patterns, part, pa.Table.from_pylist(rows, PATTERN))
    visits = [(1, 0.2), (2, 0.1), (-1, 0.15), (-1, 0.3)]
    quality = quality_of([MeasuredVisit(0, rank, within, 0.0) for rank, within in visits], 3)
    manifest = PatternsManifest(
        counts=counts, seconds=1.0, cube_shape=shape, raw_bytes=20 * 16 ** len(shape), quality=quality,
        references=(ReferenceRecord(volume_id=ids[0], source=HOSTILE, centres_mm=()),),
    )  # fmt: skip
    Stage(PATTERNS, workspace.patterns, {**facts, "method": "auto"}, {}).finish(manifest)


def make_neighbours(workspace: Workspace, settings: Settings, ids: Sequence[str]) -> None:
    """Neighbours of six scans: a group of four, one of them a copy of another, one of a single scan, an outlier."""
    workspace.neighbours.mkdir()
    groups = [0, 0, 0, 0, 1, -1]
    facts = pa.table(
        {
            "volume_id": ids, "nearest_distance": [0.5] * 6, "duplicate_of": ["", ids[0], "", "", "", ""],
            "likeness": pa.array([None, 0.99, None, None, None, None], pa.float32()),
            "sparsity": [1.0] * 5 + [3.0], "is_outlier": [group < 0 for group in groups], "group": groups,
        }
    ).cast(SCANS)  # fmt: skip
    write_table(workspace.neighbours / SCANS_FILE, facts)
    counts = NeighboursCounts(volumes=6, added=6, neighbours=30, duplicates=1, outliers=1, groups=2)
    manifest = NeighboursManifest(counts=counts, seconds=1.0, method="exact", recall=1.0, groups=(4, 1))
    Stage(NEIGHBOURS, workspace.neighbours, chosen(settings, "index"), {}).finish(manifest)


def pattern_of(split: str, rank: int, coordinate: int, volume_id: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Cubes of coordinate 0 rise along the last axis, those of coordinate 1 along the first; all with some noise."""
    axis = 0 if coordinate else len(shape) - 1
    noise = np.random.default_rng([rank, coordinate]).random(shape) * 0.4
    cube = (0.6 * np.indices(shape)[axis] / shape[axis] + noise).astype(np.float32)
    place = {key: [4.0 + 5 * coordinate] * len(shape) for key in ("origin_mm", "origin_voxels")}
    place |= {key: [16.0] * len(shape) for key in ("extent_mm", "extent_voxels")}
    return {
        "pattern_id": (split == VALIDATION) * 100 + rank * 2 + coordinate, "label": coordinate, "reference": 0,
        "coordinate": coordinate, "rank": rank + (split == VALIDATION), "scale": 0, "split": split,
        "volume_id": volume_id, "cube": encode(cube), **place,
    }  # fmt: skip


def begin(stage: Stage[Any]) -> None:
    """As a job that is cut off at once."""
    with stage.claimed():
        pass


def make_run(workspace: Workspace, settings: Settings, name: str, *, finished: bool = True, **reached: Any) -> None:
    """A run that is whole, or cut off before its end. reached: fields of its manifest, in place of those made up."""
    folder = workspace.run(name)
    patterns = PATTERNS.require(workspace.patterns)
    task = pretext_task(settings.pretraining, settings.seed, patterns)
    inputs = {PATTERNS.name: patterns.fingerprint}
    stage = Stage(RUNS, folder, chosen(settings, "pretraining", "seed"), inputs)
    begin(stage)
    publish(folder / "config.yaml", lambda aside: aside.write_text(as_yaml(settings)))
    row = {key: 0.5 for key in ("val_loss", "val_accuracy", "val_classification", "val_restoration", "val_identity")}
    row |= {"val_effective_rank": 4.0, "train_gradient_norm": 0.1}
    row |= {"train_loss": 0.4, "train_accuracy": 0.5, "train_classification": 0.4, "cubes_per_s": 9.0, "gap": 0.1}
    row["seconds"] = 0.5
    history = [{"epoch": 0, "phase": "classification", **row}, {"epoch": 1, "phase": "joint", **row}]
    write_table(folder / "metrics.parquet", pa.Table.from_pylist(history))
    if finished:
        save_network(task.build(), folder, {})
        manifest = RunManifest(
            counts=RunCounts(epochs=2, patterns=6, classes=2), seconds=2.0, architecture=asdict(task.architecture),
            store=PATTERNS.name, epoch=1, accuracy=1.0, chance=0.5, restoration_mse=0.01, identity_mse=0.3,
            mean_image_mse=0.05, embedding_variance=1.0, effective_rank=4.0, retrieval=0.9, retrieval_untrained=0.3,
        )  # fmt: skip
        stage.finish(replace(manifest, **reached))


def make_sweep(workspace: Workspace, name: str = "default", *, finished: bool = True) -> None:
    folder = workspace.sweep(name)
    axes = {"lambda_cls": [0.01, 0.1], "num_neighbours": [3], "corruption": ["none", None]}
    axes["learning_rate"] = {"low": 1e-4, "high": 1e-2, "log": True, "step": None}
    space = {f"pretraining.{key}": axis for key, axis in axes.items()}
    stage = Stage(SWEEPS, folder, {**chosen(Settings(), "sweep"), "space": space}, {})
    begin(stage)
    cost = {"seconds": 30.0, "cpu_seconds": 40.0, "gpu_seconds": 0.0}
    trials = []
    for number in range(12):
        point = {"lambda_cls": (0.01, 0.1)[number % 2], "num_neighbours": 3, "corruption": ("none", None)[number // 6]}
        point["learning_rate"] = 1e-4 * 100 ** (number / 11)
        trial = TrialRecord(
            point=point, seed=0, status="whole", retrieval=0.9 - number / 20, rankme=3.0, loss=0.1, accuracy=0.5,
            chance=0.5, epochs=2, patterns=6, **cost,
        )  # fmt: skip
        trials.append(trial)
    trials[10] = replace(trials[10], status="stopped", reason="stopped at epoch 1", epochs=1)
    trials[11] = TrialRecord(point=point, seed=0, status="failed", reason=f"OSError: {HOSTILE}", seconds=10.0)
    for trial in trials:
        write_trial(folder, trial)
    if finished:
        ranked, counts = rank_points(trials, "retrieval"), SweepCounts(points=12, trials=12, failures=1, stopped=1)
        manifest = SweepManifest(
            counts=counts, seconds=1.0, objective="retrieval", mode="max", varied=tuple(axes),
            table=tuple(point.flat() for point in ranked), cost=costs(trials),
            seeds_note=seeds_note([point.spread for point in ranked], 1),
        )  # fmt: skip
        stage.finish(manifest)


def make_transfer(workspace: Workspace, ndim: int) -> None:
    folder = workspace.transfer("heads-tissue")
    stage = Stage(TRANSFER, folder, {}, {})
    begin(stage)
    starts = ("random", "in-painting", "in-painting+semantics")
    for rank, start in enumerate(starts):
        for number in range(2):
            trial = {"initialisation": start, "labelled": 5, "trial": number, "seconds": 1.0}
            trial["figures"] = {"dice": 0.5 + 0.1 * number + 0.05 * rank}
            write_json(folder / f"trial-{start}-5-{number}.json", trial)
    dice = ("0.550 ± 0.071 n.s.", "0.600 ± 0.071", "**0.650 ± 0.071**")
    against = {"to random": "+0.050", "g": "+0.7", "p trials": "–", "p subjects": "0.012", "to best": "-0.050"}
    against |= {"p best": "0.310", "epochs to converge": "120", "s/trial": "31.1"}
    shown = [
        {
            "initialisation": start, "labelled": "5", "trials": "2", "dice": told, "95 % interval": "0.480 to 0.620",
            **against,
        }
        for start, told in zip(starts, dice, strict=True)
    ]  # fmt: skip
    label = np.eye(8, dtype=np.uint8)
    with (folder / "example.npz").open("wb") as file:
        np.savez(file, image=np.ones((8, 8), np.float32), label=label, **dict.fromkeys(starts, label))
    stage.finish(target_of({start: "" for start in starts}, shown=tuple(shown), spacing_mm=(1.0,) * ndim))
    semantics = {"target": "tissue", "labelled": 5, "without": starts[1], "with": starts[2], "metric": "dice"}
    semantics |= {"gain": 0.05, "p trials": 0.04}
    make_comparison(workspace, {}, overview=tuple(shown), semantics=(semantics,))


def target_of(initialisations: Mapping[str, str], **facts: Any) -> TransferManifest:
    """The manifest of a target with two trials of each of these, on five labelled subjects."""
    num_trials = 2 * len(initialisations)
    manifest = TransferManifest(
        counts=TransferCounts(
            examples=8, left_out=0, test_examples=3, validation_examples=0, pool_subjects=5, seen_subjects=0,
            initialisations=len(initialisations), trials=num_trials,
        ),
        seconds=1.0, task="segmentation", table=(), shown=(), is_like_best=(),
        extent=Extent(initialisations=initialisations, num_trials=2, num_labelled=(5,)),
    )  # fmt: skip
    return replace(manifest, **facts)


def make_comparison(
    workspace: Workspace, inputs: Mapping[str, str], command: tuple[str, ...] = (), **facts: Any
) -> None:
    """The comparison `heads` of one target."""
    stage = Stage(COMPARISONS, workspace.comparison("heads"), {}, inputs, command=command)
    begin(stage)
    counts = ComparisonCounts(initialisations=3, targets=1, rows=3)
    stage.finish(replace(ComparisonManifest(counts=counts, seconds=1.0, overview=(), semantics=()), **facts))
