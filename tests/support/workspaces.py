"""Small workspaces with something of every stage, made up or trained for no time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue, voxel_bytes
from raygenesis.discovery.autoencoder_training import IdentityMapping
from raygenesis.discovery.quality import summary, warning
from raygenesis.networks.weights.loading import export
from raygenesis.networks.weights.scan_encoders import AUTOENCODER_FILE, save_scan_encoder
from raygenesis.patterns.cells import encode
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import write_part
from raygenesis.pretraining.pretrain import pretext_task
from raygenesis.settings import Settings, as_yaml, settings_from
from raygenesis.sweeps.table import rank_points
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import publish, write_json, write_table
from raygenesis.workspace.manifest import manifest_of
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
    counts = {"scans": 6, "volumes": 6, "subjects": 6, "known": 0}
    sizes = {"source_bytes": sum(row["source_bytes"] for row in rows), "voxel_bytes": voxel_bytes(table)}
    Stage(workspace.archive, chosen(settings_of(ndim), "archive"), {}).finish(counts, 1.0, **sizes)


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
    counts = {"epochs": 3, "training": 4, "validation": 2}
    Stage(workspace.autoencoder, chosen(settings, "autoencoder", *keys), {}).finish(counts, 1.0, val_mse=0.1)
    ids = [row["volume_id"] for row in read_catalogue(workspace.catalog)]
    vectors = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    cells = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 4)
    embedded = pa.table({"volume_id": ids, "embedding": cells, "failure": [""] * 6})
    write_table(workspace.embeddings / "part-00000000.parquet", embedded)
    Stage(workspace.embeddings, chosen(settings, "embedding"), {}).finish({"volumes": 6}, 1.0)
    indexed = {**chosen(settings, "index"), "num_neighbours": 3}
    Stage(workspace.index, indexed, {}).finish({"volumes": 6}, 1.0, method="exact", recall=1.0, ef=None)
    shape, facts = settings.discovery.cube_shape, chosen(settings, "discovery", *keys)
    counts = {"patterns": 10, "validation": 4, "parts": 2, "references": 1, "coordinates": 2, "neighbours": 3}
    for part, (split, members) in enumerate(((TRAINING, ids[:3]), (VALIDATION, ids[4:]))):
        rows = [pattern_of(split, rank, c, name, shape) for rank, name in enumerate(members) for c in (0, 1)]
        write_part(workspace.patterns, part, pa.Table.from_pylist(rows, PATTERN))
    visits = [(1, 0.2), (2, 0.1), (-1, 0.15), (-1, 0.3)]
    told = summary([{"reference": 0, "rank": rank, "within": like, "between": 0.0} for rank, like in visits], 3)
    Stage(workspace.patterns, {**facts, "method": "auto"}, {}).finish(
        counts, 1.0, cube_shape=list(shape), raw_bytes=20 * 16 ** len(shape),
        quality={**told, "warning": warning(told)},
        references=[{"volume_id": ids[0], "source": HOSTILE}],
    )  # fmt: skip


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


def begin(made: Stage) -> None:
    """As a job that is cut off at once."""
    with made.claimed():
        pass


def make_run(workspace: Workspace, settings: Settings, name: str, *, finished: bool = True, **facts: Any) -> None:
    folder = workspace.run(name)
    patterns = manifest_of(workspace.patterns, "discover")
    model = pretext_task(settings, patterns).build()
    stage = Stage(folder, chosen(settings, "pretraining", "seed"), {"patterns": patterns["fingerprint"]})
    begin(stage)
    publish(folder / "config.yaml", lambda aside: aside.write_text(as_yaml(settings)))
    row = {key: 0.5 for key in ("val_loss", "val_accuracy", "val_classification", "val_restoration", "val_identity")}
    row |= {"val_effective_rank": 4.0, "train_gradient_norm": 0.1}
    row |= {"train_loss": 0.4, "train_accuracy": 0.5, "train_classification": 0.4, "cubes_per_s": 9.0, "gap": 0.1}
    row["seconds"] = 0.5
    history = [{"epoch": 0, "phase": "classification", **row}, {"epoch": 1, "phase": "joint", **row}]
    write_table(folder / "metrics.parquet", pa.Table.from_pylist(history))
    if finished:
        export(model, folder, {})
        reached = {"epoch": 1, "accuracy": 1.0, "chance": 0.5, "restoration_mse": 0.01, "identity_mse": 0.3}
        reached |= {
            "mean_image_mse": 0.05,
            "retrieval": 0.9,
            "retrieval_untrained": 0.3,
            "effective_rank": 4.0,
            "store": "patterns",
            **facts,
        }
        stage.finish({"epochs": 2, "patterns": 6, "classes": 2}, 2.0, **reached)


def make_sweep(workspace: Workspace, name: str = "default", *, finished: bool = True) -> None:
    folder = workspace.sweep(name)
    axes = {"lambda_cls": [0.01, 0.1], "num_neighbours": [3], "corruption": ["none", None]}
    axes["learning_rate"] = {"low": 1e-4, "high": 1e-2, "log": True, "step": None}
    stage = Stage(
        folder, {**chosen(Settings(), "sweep"), "space": {f"pretraining.{key}": axis for key, axis in axes.items()}}, {}
    )
    begin(stage)
    cost = {"seconds": 30.0, "cpu_seconds": 40.0, "gpu_seconds": 0.0}
    trials = []
    for number in range(12):
        point = {"lambda_cls": (0.01, 0.1)[number % 2], "num_neighbours": 3, "corruption": ("none", None)[number // 6]}
        point["learning_rate"] = 1e-4 * 100 ** (number / 11)
        trial = {"point": point, "seed": 0, "status": "whole", "retrieval": 0.9 - number / 20, "rankme": 3.0, **cost}
        trial |= {"loss": 0.1, "accuracy": 0.5, "chance": 0.5, "restoration": None, "epochs": 2, "patterns": 6}
        trials.append(trial)
    trials[10] |= {"status": "stopped", "reason": "stopped at epoch 1", "epochs": 1}
    trials[11] = {"point": point, "seed": 0, "status": "failed", "reason": f"OSError: {HOSTILE}", "seconds": 10.0}
    for number, trial in enumerate(trials):
        write_json(folder / f"trial-{number}.json", trial)
    if finished:
        table, counts = rank_points(trials, "retrieval"), {"points": 12, "failures": 1, "bytes_cropped": 0}
        stage.finish(counts, 1.0, objective="retrieval", table=table)


def make_transfer(workspace: Workspace, ndim: int) -> None:
    folder = workspace.transfer("heads-tissue")
    begin(Stage(folder, {}, {}))
    starts = ("random", "in-painting", "in-painting+semantics")
    for rank, start in enumerate(starts):
        for number in range(2):
            trial = {"initialisation": start, "labelled": 5, "trial": number, "seconds": 1.0}
            trial["figures"] = {"dice": 0.5 + 0.1 * number + 0.05 * rank}
            write_json(folder / f"trial-{start}-5-{number}.json", trial)
    dice = ("0.550 ± 0.071 *", "0.600 ± 0.071", "**0.650 ± 0.071**")
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
    Stage(folder, {}, {}).finish({"trials": 6}, 1.0, task="segmentation", shown=shown, spacing_mm=[1.0] * ndim)
    compared = Stage(workspace.comparison("heads"), {}, {})
    begin(compared)
    semantics = {"target": "tissue", "labelled": 5, "without": starts[1], "with": starts[2], "metric": "dice"}
    semantics |= {"gain": 0.05, "p trials": 0.04}
    compared.finish({"targets": 1}, 1.0, overview=shown, semantics=[semantics], paper={})
