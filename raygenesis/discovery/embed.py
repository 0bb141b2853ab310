"""Embed: train the auto-encoder when there is none, then embed the whole archive through an actor pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from raygenesis import cluster
from raygenesis.archive.catalogue import FAILURES, read_catalogue, split_by_subject
from raygenesis.archive.cells import decode
from raygenesis.archive.source import coarse_cubes, parts_of
from raygenesis.config import AutoencoderSettings, Settings
from raygenesis.discovery.autoencoder import Autoencoder, IdentityMapping
from raygenesis.errors import WorkspaceError
from raygenesis.progress import mib, progress, say
from raygenesis.training import fit_with_ray
from raygenesis.workspace import Stage, Stopwatch, Workspace, manifest_of, publish, write_table

WEIGHTS = "autoencoder.safetensors"
VOLUMES_PER_BLOCK = 16


def train_autoencoder(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Train the auto-encoder on the training subjects' coarse levels; returns the manifest."""
    archive = manifest_of(workspace.archive, "ingest")
    keys = ("autoencoder", "intensity", "seed", "validation_fraction")
    stage = Stage(workspace.autoencoder, _chosen(settings, keys), {"archive": archive["fingerprint"]})
    if stage.is_finished():
        say("auto-encoder", f"nothing to do: it is in {workspace.autoencoder}")
        return manifest_of(workspace.autoencoder, "embed")
    watch = Stopwatch()
    rows = read_catalogue(workspace.catalog, ndim=settings.ndim)
    training, validation = split_by_subject(rows, settings.validation_fraction, settings.seed)
    if not training or not validation:
        raise WorkspaceError(
            f"{workspace.archive} holds {archive['counts']['subjects']} subject: training and validation need at "
            "least 2; add scans, or check archive.subject_pattern"
        )
    with stage.claimed():
        cluster.connect()
        datasets = {
            "train": _coarse_dataset(workspace, _sample(training, settings), settings),
            "validation": _coarse_dataset(workspace, _sample(validation, settings), settings),
        }
        say("auto-encoder", f"{len(training)} training volumes, {len(validation)} held out")
        experiment = IdentityMapping(settings.autoencoder, settings.seed)
        state, num_epochs = fit_with_ray(experiment, datasets, workspace.autoencoder)
        publish(workspace.autoencoder / WEIGHTS, lambda aside: save_file(state["best"], aside))
        best = min(row["val_mse"] for row in state["history"])
        counts = {"epochs": len(state["history"]), "training": len(training), "validation": len(validation)}
        manifest = stage.finish(counts, watch.seconds, val_mse=best)
        say("auto-encoder", f"{num_epochs} epochs, held-out error {best:.5f}, {watch.seconds:.1f} s → {stage.folder}")
        return manifest


def embed(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Embed every volume of the archive into `embeddings/part-*.parquet`; returns the manifest.

    A part that is there already is not made again.
    """
    autoencoder = train_autoencoder(workspace, settings)
    archive = manifest_of(workspace.archive, "ingest")
    stage = Stage(
        workspace.embeddings,
        _chosen(settings, ("embedding",)),
        {"archive": archive["fingerprint"], "autoencoder": autoencoder["fingerprint"]},
    )
    if stage.is_finished():
        say("embed", f"nothing to do: embeddings are in {workspace.embeddings}")
        return manifest_of(workspace.embeddings, "embed")
    watch = Stopwatch()
    with stage.claimed():
        parts = parts_of(read_catalogue(workspace.catalog, ndim=settings.ndim), settings.embedding.volumes_per_part)
        missing = [part for part in parts if not _part_path(workspace, part[0]).is_file()]
        if missing:
            _embed_parts(workspace, settings, missing)
        tables = [pq.read_table(_part_path(workspace, start), columns=["volume_id", "failure"]) for start, _ in parts]
        table = pa.concat_tables(tables)
        failed = [row for row in table.to_pylist() if row["failure"]]
        _write_failures(workspace, failed)
        counts = {"volumes": table.num_rows - len(failed), "failures": len(failed), "parts": len(parts)}
        manifest = stage.finish(counts, watch.seconds)
        say(
            "embed",
            f"{counts['volumes']} volumes × {settings.autoencoder.latent_size} numbers, {len(failed)} failures, "
            f"{mib(manifest['bytes'])}, {watch.seconds:.1f} s → {stage.folder}",
        )
        return manifest


def read_embeddings(folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Volume ids in order, and their embeddings float32 [n, d]; volumes that failed are left out."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))
    table = table.filter(pa.compute.equal(table["failure"], "")).sort_by("volume_id").combine_chunks()
    size = table.schema.field("embedding").type.list_size
    values = table["embedding"].chunk(0).flatten().to_numpy()
    return table["volume_id"].to_pylist(), values.reshape(-1, size)


def load_autoencoder(folder: Path, settings: AutoencoderSettings) -> Autoencoder:
    """The trained auto-encoder, in evaluation mode."""
    model = Autoencoder(settings.input_shape, settings.base_width, settings.latent_size)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


@dataclass
class Embedder:
    """An actor of the pool: embeds the volumes of a part and writes the part."""

    weights: Path
    settings: AutoencoderSettings
    folder: Path

    def __post_init__(self) -> None:
        self._model = load_autoencoder(self.weights, self.settings)

    @torch.inference_mode()
    def __call__(self, part: pa.Table) -> pa.Table:
        """Arrow rows of a `coarse_cubes` part → one row: how many volumes it holds."""
        empty = np.zeros(self.settings.input_shape, np.float32)
        cubes = [decode(cell, self.settings.input_shape) if cell else empty for cell in part["cube"].to_pylist()]
        latent = self._model.encode(torch.from_numpy(np.stack(cubes)[:, None])).numpy()
        failures = [
            reason or ("" if np.isfinite(vector).all() else "its embedding is not finite")
            for reason, vector in zip(part["failure"].to_pylist(), latent, strict=True)
        ]
        table = pa.table(
            {
                "volume_id": part["volume_id"],
                "embedding": pa.FixedSizeListArray.from_arrays(latent.ravel(), latent.shape[1]),
                "failure": failures,
            }
        )
        start = part["number"][0].as_py()
        write_table(self.folder / f"part-{start:08d}.parquet", table)
        return pa.table({"volumes": [part.num_rows]})


def _embed_parts(workspace: Workspace, settings: Settings, parts: Sequence[tuple[int, Any]]) -> None:
    cluster.connect()
    source = coarse_cubes(workspace.volumes, parts, settings.autoencoder.input_shape, settings.intensity)
    done = ray.data.read_datasource(source, override_num_blocks=len(parts)).map_batches(
        Embedder,
        fn_constructor_args=(workspace.autoencoder, settings.autoencoder, workspace.embeddings),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(settings.embedding.num_actors, len(parts))),
        zero_copy_batch=True,
    )
    with progress("embed", sum(len(rows) for _, rows in parts), "volumes") as ticker:
        for row in done.iter_rows():
            ticker.advance(row["volumes"])


def _coarse_dataset(
    workspace: Workspace, rows: Sequence[Mapping[str, Any]], settings: Settings
) -> ray.data.Dataset:
    """Whole scans at the coarse level, in Ray's object store; damaged volumes are left out."""
    parts = parts_of(rows, VOLUMES_PER_BLOCK)
    source = coarse_cubes(workspace.volumes, parts, settings.autoencoder.input_shape, settings.intensity)
    dataset = ray.data.read_datasource(source, override_num_blocks=len(parts)).map_batches(
        lambda table: table.filter(pa.compute.equal(table["failure"], "")), batch_size=None, batch_format="pyarrow"
    )
    return dataset.materialize()


def _sample(rows: Sequence[Mapping[str, Any]], settings: Settings) -> list[Mapping[str, Any]]:
    """At most `autoencoder.max_volumes` rows, drawn by seed."""
    if len(rows) <= settings.autoencoder.max_volumes:
        return list(rows)
    generator = np.random.default_rng(np.random.SeedSequence([settings.seed, len(rows)]))
    chosen = generator.choice(len(rows), settings.autoencoder.max_volumes, replace=False)
    return [rows[index] for index in sorted(chosen)]


def _write_failures(workspace: Workspace, failed: list[dict[str, Any]]) -> None:
    sources = {row["volume_id"]: row["source"] for row in read_catalogue(workspace.catalog)} if failed else {}
    rows = [{"source": sources[row["volume_id"]], "reason": row["failure"]} for row in failed]
    write_table(workspace.embeddings / "failures.parquet", pa.Table.from_pylist(rows, FAILURES))
    for row in rows[:5]:
        say("embed", f"skipped {row['source']}: {row['reason']}")


def _part_path(workspace: Workspace, start: int) -> Path:
    return workspace.embeddings / f"part-{start:08d}.parquet"


def _chosen(settings: Settings, keys: tuple[str, ...]) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(keys))
