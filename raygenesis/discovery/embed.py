"""Embed: train what describes a scan when it is not there, then embed the whole archive through an actor pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import ray
import ray.data
import torch
import xxhash
from numpy.typing import NDArray

from raygenesis import cluster
from raygenesis.archive.catalogue import FAILURES, first_volumes, read_catalogue, split_by_subject
from raygenesis.archive.cells import decode
from raygenesis.archive.source import coarse_cubes, parts_of
from raygenesis.config import Settings
from raygenesis.discovery.autoencoder import IdentityMapping
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.encoders import MAX_FITTED, EncoderError, fit_components, load_scan_encoder, save_encoder
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.progress import mib, progress, say
from raygenesis.training.fit import fit_with_ray, samples_from
from raygenesis.workspace import Stage, Stopwatch, Workspace, digest, manifest_of, write_table

WEIGHTS = "autoencoder.safetensors"
PCA_WEIGHTS = "pca.safetensors"
VOLUMES_PER_BLOCK = 16
VOLUMES_PER_BATCH = 16


def train_autoencoder(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Train the auto-encoder on the training subjects' coarse levels; returns the manifest.

    One that is there stays as the archive grows.
    """
    archive = manifest_of(workspace.archive, "ingest")
    keys = ("autoencoder", "intensity", "seed", "validation_fraction")
    stage = Stage(workspace.autoencoder, _chosen(settings, keys), {})
    if stage.is_finished():
        manifest = manifest_of(workspace.autoencoder, "embed")
        _say_kept("auto-encoder", manifest, archive, workspace.autoencoder)
        return manifest
    watch = Stopwatch()
    training, validation = _split(workspace, settings)
    with stage.claimed():
        cluster.connect()
        datasets = {
            "train": _coarse_dataset(workspace, _sample(training, settings), settings),
            "validation": _coarse_dataset(workspace, _sample(validation, settings), settings),
        }
        say("auto-encoder", f"{len(training)} training volumes, {len(validation)} held out")
        experiment = IdentityMapping(settings.autoencoder, settings.seed)
        state, num_epochs = fit_with_ray(experiment, datasets, workspace.autoencoder)
        chosen = settings.autoencoder.model_dump(mode="json", include={"input_shape", "base_width", "latent_size"})
        save_encoder(workspace.autoencoder / WEIGHTS, "autoencoder", state["best"], chosen)
        best = min(row["val_mse"] for row in state["history"])
        counts = {"epochs": len(state["history"]), "training": len(training), "validation": len(validation)}
        manifest = stage.finish(
            counts, watch.seconds, content=archive["fingerprint"], archive=archive["fingerprint"], val_mse=best
        )
    say("auto-encoder", f"{num_epochs} epochs, held-out error {best:.5f}, {watch.seconds:.1f} s → {stage.folder}")
    return manifest


def fit_pca(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Principal components of the training subjects' coarse levels, the linear baseline; returns the manifest."""
    archive = manifest_of(workspace.archive, "ingest")
    chosen = _chosen(settings, ("intensity", "seed", "validation_fraction"))
    chosen["autoencoder"] = settings.autoencoder.model_dump(mode="json", include={"input_shape", "latent_size"})
    stage = Stage(workspace.pca, chosen, {})
    if stage.is_finished():
        manifest = manifest_of(workspace.pca, "embed")
        _say_kept("pca", manifest, archive, workspace.pca)
        return manifest
    watch = Stopwatch()
    training, validation = _split(workspace, settings)
    with stage.claimed():
        cluster.connect()
        experiment = IdentityMapping(settings.autoencoder, settings.seed)
        fitted = _sample(training, settings)[:MAX_FITTED]
        judged = _sample(validation, settings)[:MAX_FITTED]
        samples = [samples_from(_coarse_dataset(workspace, rows, settings), experiment) for rows in (fitted, judged)]
        model = fit_components(samples[0], settings.autoencoder.latent_size, settings.seed)
        architecture = {"input_shape": list(model.input_shape), "latent_size": model.latent_size}
        save_encoder(workspace.pca / PCA_WEIGHTS, "pca", model.state_dict(), architecture)
        held_out = samples[1].batch(np.arange(len(samples[1]))).cubes
        error = float((model(held_out) - held_out).square().mean())
        counts = {"components": model.latent_size, "training": len(samples[0]), "validation": len(held_out)}
        manifest = stage.finish(
            counts, watch.seconds, content=archive["fingerprint"], archive=archive["fingerprint"], val_mse=error
        )
    say("pca", f"{model.latent_size} components, held-out error {error:.5f}, {watch.seconds:.1f} s → {stage.folder}")
    return manifest


def embed(workspace: Workspace, settings: Settings, output: Path | None = None) -> dict[str, Any]:
    """Embed every volume of the archive into `embeddings/part-*.parquet`, or `output`; returns the manifest.

    A part that is there is not made again, and volumes that came after it get parts of their own.
    """
    weights, identity = _encoder(workspace, settings)
    archive = manifest_of(workspace.archive, "ingest")
    folder = output or workspace.embeddings
    chosen = _chosen(settings, ("intensity",))
    chosen["autoencoder"] = {"input_shape": list(settings.autoencoder.input_shape)}
    chosen["embedding"] = {"volumes_per_part": settings.embedding.volumes_per_part}
    stage = Stage(folder, chosen, {"encoder": identity})
    if stage.is_finished():
        manifest = manifest_of(folder, "embed")
        if manifest["archive"] == archive["fingerprint"]:
            say("embed", f"nothing to do: embeddings are in {folder}")
            return manifest
    watch = Stopwatch()
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, ndim=settings.ndim)}
    with stage.claimed():
        listing = _listed(folder, list(rows), settings.embedding.volumes_per_part)
        parts = [
            (start, [rows[volume_id] for volume_id in ids if volume_id in rows])
            for start, ids in listing.items()
            if not _part_path(folder, start).is_file()
        ]
        parts = [part for part in parts if part[1]]
        num_new = sum(len(there) for _, there in parts)
        if parts:
            _embed_parts(workspace, settings, weights, folder, parts)
        failed = _failures(folder, rows)
        num_parts = sum(_part_path(folder, start).is_file() for start in listing)
        counts = {"volumes": len(rows) - len(failed), "new": num_new, "failures": len(failed), "parts": num_parts}
        size = Embeddings(folder).size
        manifest = stage.finish(
            counts, watch.seconds, content=[archive["fingerprint"], digest(listing)], archive=archive["fingerprint"],
            size=size,
        )  # fmt: skip
    rate = num_new / max(watch.seconds, 1e-9)
    say(
        "embed",
        f"{counts['volumes']} volumes × {size} numbers ({num_new} new, {rate:.1f} volumes/s), {len(failed)} failures, "
        f"{mib(manifest['bytes'])}, {watch.seconds:.1f} s → {folder}",
    )
    return manifest


def _encoder(workspace: Workspace, settings: Settings) -> tuple[Path, str]:
    """The weights that embed, trained when they are to be and are not there, and what identifies them."""
    chosen = settings.embedding.encoder
    if chosen == "autoencoder":
        return workspace.autoencoder / WEIGHTS, train_autoencoder(workspace, settings)["fingerprint"]
    if chosen == "pca":
        return workspace.pca / PCA_WEIGHTS, fit_pca(workspace, settings)["fingerprint"]
    path = Path(chosen).expanduser().absolute()
    file = path if path.is_file() else path / "encoder.safetensors"
    try:
        model = load_scan_encoder(path, settings.autoencoder.input_shape)
    except EncoderError as error:
        raise SettingsError(f"embedding.encoder: {error}, or `autoencoder`, or `pca`") from None
    if len(model.input_shape) != settings.ndim:
        raise SettingsError(
            f"embedding.encoder={chosen} takes {len(model.input_shape)}D scans and discovery.cube_shape asks for "
            f"{settings.ndim}D"
        )
    return file, xxhash.xxh3_64_hexdigest(file.read_bytes())


def _say_kept(stage: str, manifest: Mapping[str, Any], archive: Mapping[str, Any], folder: Path) -> None:
    if manifest["archive"] == archive["fingerprint"]:
        say(stage, f"nothing to do: it is in {folder}")
        return
    say(
        stage,
        f"kept from {manifest['counts']['training']} training volumes of another state of the archive, some of which "
        f"may be held out by now; to learn from all, remove {folder} and what was made from it",
    )


def _listed(folder: Path, ids: Sequence[str], volumes_per_part: int) -> dict[int, list[str]]:
    """Volume ids of each part by the part's first number; new ones are listed in parts of their own, for good."""
    path = folder / "listing.parquet"
    listing: dict[int, list[str]] = {}
    if path.is_file():
        for row in pq.read_table(path).to_pylist():
            listing.setdefault(row["start"], []).append(row["volume_id"])
    known = {volume_id for there in listing.values() for volume_id in there}
    new = [volume_id for volume_id in ids if volume_id not in known]
    if new:
        begin = max(listing, default=-volumes_per_part) + volumes_per_part
        listing |= {begin + start: list(there) for start, there in parts_of(new, volumes_per_part)}
        rows = [{"volume_id": volume_id, "start": start} for start, there in listing.items() for volume_id in there]
        write_table(path, pa.Table.from_pylist(rows))
    return listing


def _failures(folder: Path, rows: Mapping[str, Any]) -> list[dict[str, str]]:
    """Write and return the failure rows of the volumes that are in the archive now."""
    parts = ds.dataset([str(path) for path in sorted(folder.glob("part-*.parquet"))])
    table = parts.to_table(columns=["volume_id", "failure"], filter=pc.field("failure") != "")
    failed = [
        {"source": rows[row["volume_id"]]["source"], "reason": row["failure"]}
        for row in table.to_pylist()
        if row["volume_id"] in rows
    ]
    write_table(folder / "failures.parquet", pa.Table.from_pylist(failed, FAILURES))
    for row in failed[:5]:
        say("embed", f"skipped {row['source']}: {row['reason']}")
    return failed


@dataclass
class Embedder:
    """An actor of the pool: embeds the volumes of a part and writes the part."""

    weights: Path
    input_shape: tuple[int, ...]
    folder: Path
    device: str

    def __post_init__(self) -> None:
        self._model = load_scan_encoder(self.weights, self.input_shape).to(self.device)

    def __call__(self, part: pa.Table) -> pa.Table:
        """Arrow rows of a `coarse_cubes` part → one row: how many volumes it holds, or why it cannot be written.

        An exception would arrive without its kind.
        """
        latent = self._encode(part["cube"].to_pylist())
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
        try:
            write_table(_part_path(self.folder, start), table)
        except WorkspaceError as error:
            return pa.table({"volumes": [0], "error": [str(error)]})
        return pa.table({"volumes": [part.num_rows], "error": [""]})

    @torch.inference_mode()
    def _encode(self, cells: Sequence[bytes | None]) -> NDArray[np.float32]:
        shape = self._model.input_shape
        vectors = []
        for first in range(0, len(cells), VOLUMES_PER_BATCH):
            batch = np.zeros((len(cells[first : first + VOLUMES_PER_BATCH]), 1, *shape), np.float32)
            for scan, cell in zip(batch, cells[first:], strict=False):
                if cell:
                    scan[0] = decode(cell, shape)
            vectors.append(self._model.encode(torch.from_numpy(batch).to(self.device)).cpu().numpy())
        return np.concatenate(vectors)


def _embed_parts(
    workspace: Workspace, settings: Settings, weights: Path, folder: Path, parts: Sequence[tuple[int, Any]]
) -> None:
    cluster.connect()
    shape = load_scan_encoder(weights, settings.autoencoder.input_shape).input_shape
    source = coarse_cubes(workspace.volumes, parts, shape, settings.intensity)
    num_gpus = settings.embedding.num_gpus
    if num_gpus:
        cluster.require(f"embedding.num_gpus={num_gpus:g}", 1, num_gpus=num_gpus)
    scans = ray.data.read_datasource(source, override_num_blocks=len(parts))
    scans.context.target_max_block_size = None  # a block is a part, however large
    done = scans.map_batches(
        Embedder,
        fn_constructor_args=(weights, shape, folder, "cuda" if num_gpus else "cpu"),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(settings.embedding.num_actors, len(parts))),
        num_gpus=num_gpus or None,
        zero_copy_batch=True,
    )
    with progress("embed", sum(len(rows) for _, rows in parts), "volumes") as ticker:
        for row in done.iter_rows():
            if row["error"]:
                raise WorkspaceError(row["error"])
            ticker.advance(row["volumes"])


def _split(workspace: Workspace, settings: Settings) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Catalogue rows to learn from and held out. Raises WorkspaceError if either is empty."""
    rows = read_catalogue(workspace.catalog, ndim=settings.ndim)
    training, validation = split_by_subject(rows, settings.validation_fraction, settings.seed)
    if not training or not validation:
        raise WorkspaceError(
            f"{workspace.archive} holds {len(first_volumes(rows))} subject: training and validation need at least 2; "
            "add scans, or check archive.subject_pattern"
        )
    return training, validation


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


def _part_path(folder: Path, start: int) -> Path:
    return folder / f"part-{start:09d}.parquet"


def _chosen(settings: Settings, keys: tuple[str, ...]) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(keys))
