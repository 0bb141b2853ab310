"""Embed: train what describes a scan when it is not there, then embed the whole archive through an actor pool."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
import xxhash
from numpy.typing import NDArray

from raygenesis.archive.catalogue import CatalogueRows, is_held_out, read_columns
from raygenesis.archive.source import parts_of
from raygenesis.archive.work import archive_size
from raygenesis.cluster import capacity, joining
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.progress import Stopwatch, progress, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.discovery.autoencoder import IdentityMapping
from raygenesis.discovery.coarse import coarse_cubes
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.work import autoencoder_work, embed_work
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.networks.scan_encoders import EncoderError, fit_components, load_scan_encoder, save_encoder
from raygenesis.patterns.cells import decode
from raygenesis.settings import Settings, adopt, settings_of_run
from raygenesis.text.amounts import size
from raygenesis.training.fit import fit_with_ray, samples_from
from raygenesis.workspace.artifacts import ARCHIVE, AUTOENCODER, COMPONENTS, EMBEDDINGS
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import Place, as_place, parquet_dataset, read_table, write_table
from raygenesis.workspace.fingerprint import digest_of_text
from raygenesis.workspace.manifest import (
    ArchiveManifest,
    AutoencoderCounts,
    AutoencoderManifest,
    ComponentsCounts,
    ComponentsManifest,
    EmbeddingsCounts,
    EmbeddingsManifest,
)
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

WEIGHTS = "autoencoder.safetensors"
PCA_WEIGHTS = "pca.safetensors"
VOLUMES_PER_BLOCK = 16
VOLUMES_PER_BATCH = 16
MOST_FITTED = 1000  # scans that principal components are found from: all are held at once

# Which part a volume is in, by the part's first number.
LISTING = pa.schema([("volume_id", pa.string()), ("start", pa.int64())])


def train_autoencoder(
    workspace: Workspace, settings: Settings, announce: Announce = unannounced
) -> AutoencoderManifest:
    """Train the auto-encoder on the training subjects' coarse levels; returns the manifest.

    One that is there stays as the archive grows.
    """
    archive = ARCHIVE.require(workspace.archive)
    keys = ("autoencoder", "intensity", "seed", "validation_fraction")
    stage = Stage(AUTOENCODER, workspace.autoencoder, _chosen(settings, keys), {})
    if (made := stage.finished()) is not None:
        _say_kept("auto-encoder", made, archive, workspace.autoencoder)
        return made
    scans = archive_size(workspace)
    assert scans is not None  # the archive is there
    announce([autoencoder_work(scans, settings)])
    watch = Stopwatch()
    training, validation = _split(workspace, settings)
    with stage.claimed():
        joining.connect()
        most = settings.autoencoder.max_volumes
        drawn = {key: _sample(ids, most, settings) for key, ids in (("train", training), ("validation", validation))}
        datasets = {key: _coarse_dataset(workspace, ids, settings) for key, ids in drawn.items()}
        say(
            "auto-encoder",
            f"{len(drawn['train'])} of {len(training)} training volumes, {len(drawn['validation'])} of "
            f"{len(validation)} held out",
        )
        experiment = IdentityMapping(settings.autoencoder, settings.seed)
        state, num_epochs = fit_with_ray(experiment, datasets, workspace.autoencoder)
        chosen = settings.autoencoder.model_dump(mode="json", include={"input_shape", "base_width", "latent_size"})
        save_encoder(workspace.autoencoder / WEIGHTS, "autoencoder", state["best"], chosen)
        best = min(row["val_mse"] for row in state["history"])
        counts = AutoencoderCounts(
            training=len(drawn["train"]), validation=len(drawn["validation"]), epochs=len(state["history"])
        )
        manifest = AutoencoderManifest(counts=counts, seconds=watch.seconds, archive=archive.fingerprint, val_mse=best)
        manifest = stage.finish(manifest, content=archive.fingerprint)
    say("auto-encoder", f"{num_epochs} epochs, held-out error {best:.5f}, {watch.seconds:.1f} s → {stage.folder}")
    return manifest


def fit_pca(workspace: Workspace, settings: Settings) -> ComponentsManifest:
    """Principal components of the training subjects' coarse levels, the linear baseline; returns the manifest."""
    archive = ARCHIVE.require(workspace.archive)
    chosen = _chosen(settings, ("intensity", "seed", "validation_fraction"))
    chosen["autoencoder"] = settings.autoencoder.model_dump(mode="json", include={"input_shape", "latent_size"})
    stage = Stage(COMPONENTS, workspace.pca, chosen, {})
    if (made := stage.finished()) is not None:
        _say_kept("pca", made, archive, workspace.pca)
        return made
    watch = Stopwatch()
    training, validation = _split(workspace, settings)
    with stage.claimed():
        joining.connect()
        experiment = IdentityMapping(settings.autoencoder, settings.seed)
        most = min(MOST_FITTED, settings.autoencoder.max_volumes)
        drawn = [_sample(ids, most, settings) for ids in (training, validation)]
        samples = [samples_from(_coarse_dataset(workspace, ids, settings), experiment) for ids in drawn]
        model = fit_components(samples[0], settings.autoencoder.latent_size)
        architecture = {"input_shape": list(model.input_shape), "latent_size": model.latent_size}
        save_encoder(workspace.pca / PCA_WEIGHTS, "pca", model.state_dict(), architecture)
        held_out = samples[1].batch(np.arange(len(samples[1]))).cubes
        error = float((model(held_out) - held_out).square().mean())
        counts = ComponentsCounts(components=model.latent_size, training=len(samples[0]), validation=len(held_out))
        manifest = ComponentsManifest(counts=counts, seconds=watch.seconds, archive=archive.fingerprint, val_mse=error)
        manifest = stage.finish(manifest, content=archive.fingerprint)
    say("pca", f"{model.latent_size} components, held-out error {error:.5f}, {watch.seconds:.1f} s → {stage.folder}")
    return manifest


def embed(
    workspace: Workspace, settings: Settings, output: str | Place | None = None, announce: Announce = unannounced
) -> EmbeddingsManifest:
    """Embed every volume of the archive into `embeddings/part-*.parquet`, or `output`; returns the manifest.

    A part that is there is not made again, and volumes that came after it get parts of their own.
    """
    settings = _as_pretrained(settings)
    weights, identity = _encoder(workspace, settings, announce)
    archive = ARCHIVE.require(workspace.archive)
    folder = as_place(output) if output else workspace.embeddings
    chosen = _chosen(settings, ("intensity",))
    chosen["autoencoder"] = {"input_shape": list(settings.autoencoder.input_shape)}
    chosen["embedding"] = {"volumes_per_part": settings.embedding.volumes_per_part}
    encoder = settings.embedding.encoder
    command = () if encoder == "autoencoder" else ("embed", "--encoder", encoder)
    stage = Stage(EMBEDDINGS, folder, chosen, {"encoder": identity}, command=command)
    earlier = stage.finished()
    if earlier is not None and earlier.archive == archive.fingerprint:
        say("embed", f"nothing to do: embeddings are in {folder}")
        return earlier
    watch = Stopwatch()
    known = read_columns(workspace.catalog, ["volume_id", "source"], ndim=settings.ndim)
    with stage.claimed():
        listing = _listed(folder, known["volume_id"], settings.embedding.volumes_per_part)
        made = {path.name for path in folder.glob("part-*.parquet")}
        there = listing.filter(pc.is_in(listing["volume_id"], value_set=known["volume_id"]))
        parts = [
            (start, CatalogueRows(workspace.catalog, ids.to_pylist()))
            for start, ids in _parts(there)
            if _part_path(folder, start).name not in made
        ]
        num_new = sum(len(rows) for _, rows in parts)
        if parts:
            scans = archive_size(workspace)
            assert scans is not None  # the archive is there
            announce([embed_work(replace(scans, num_scans=num_new), settings)])
            _embed_parts(workspace, settings, weights, folder, parts)
        failed = _failures(folder, known)
        num_parts = len(made) + len(parts)
        counts = EmbeddingsCounts(volumes=len(known) - len(failed), new=num_new, failures=len(failed), parts=num_parts)
        manifest = EmbeddingsManifest(
            counts=counts, seconds=watch.seconds, archive=archive.fingerprint, size=Embeddings(folder).size
        )
        manifest = stage.finish(manifest, content=[archive.fingerprint, _digest(listing)])
    set_gauge("raygenesis_failures", len(failed), stage=EMBEDDINGS.name)
    rate = num_new / max(watch.seconds, 1e-9)
    say(
        "embed",
        f"{counts.volumes} volumes × {manifest.size} numbers ({num_new} new, {rate:.1f} volumes/s), "
        f"{len(failed)} failures, {size(manifest.bytes)}, {watch.seconds:.1f} s → {folder}",
    )
    return manifest


def _as_pretrained(settings: Settings) -> Settings:
    """The settings, with the intensity that the run which is to embed has learnt from, but for keys that were given."""
    path = as_place(settings.embedding.encoder)
    run = settings_of_run(path.parent if path.name == "encoder.safetensors" else path)
    return adopt(settings, run.model_dump(mode="json", include={"intensity"})) if run else settings


def _encoder(workspace: Workspace, settings: Settings, announce: Announce) -> tuple[Place, str]:
    """The weights that embed, trained when they are to be and are not there, and what identifies them."""
    chosen = settings.embedding.encoder
    if chosen == "autoencoder":
        return workspace.autoencoder / WEIGHTS, train_autoencoder(workspace, settings, announce).fingerprint
    if chosen == "pca":
        return workspace.pca / PCA_WEIGHTS, fit_pca(workspace, settings).fingerprint
    path = as_place(chosen)
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


def _say_kept(
    stage: str, manifest: AutoencoderManifest | ComponentsManifest, archive: ArchiveManifest, folder: Place
) -> None:
    if manifest.archive == archive.fingerprint:
        say(stage, f"nothing to do: it is in {folder}")
        return
    say(
        stage,
        f"kept from {manifest.counts.training} training volumes of another state of the archive, some of which "
        f"may be held out by now; to learn from all, remove {folder} and what was made from it",
    )


def _listed(folder: Place, ids: pa.ChunkedArray, volumes_per_part: int) -> pa.Table:
    """Rows (schema LISTING) of all parts in order; volumes that are new are listed in parts of their own, for good."""
    path = folder / "listing.parquet"
    listing = read_table(path, schema=LISTING) if path.is_file() else LISTING.empty_table()
    new = ids.filter(pc.invert(pc.is_in(ids, value_set=listing["volume_id"])))
    if len(new):
        begin = listing["start"][-1].as_py() + volumes_per_part if len(listing) else 0
        starts = begin + np.arange(len(new)) // volumes_per_part * volumes_per_part
        listing = pa.concat_tables([listing, pa.table([new, pa.array(starts)], schema=LISTING)]).combine_chunks()
        write_table(path, listing)
    return listing


def _parts(listing: pa.Table) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """The first number of each part and the ids of its volumes."""
    starts, begins = np.unique(listing["start"].to_numpy(), return_index=True)
    for start, begin, end in zip(starts.tolist(), begins, [*begins[1:], len(listing)], strict=True):
        yield start, listing["volume_id"][begin:end]


def _digest(listing: pa.Table) -> str:
    """The digest of the tree of parts: start → volume ids."""
    texts = (f'"{start}": {json.dumps(ids.to_pylist())}' for start, ids in _parts(listing))
    return digest_of_text(itertools.chain("{", (", " * (number > 0) + text for number, text in enumerate(texts)), "}"))


def _failures(folder: Place, known: pa.Table) -> pa.Table:
    """Write and return the failures (schema FAILURES) of the volumes that are in the archive now."""
    parts = parquet_dataset(sorted(folder.glob("part-*.parquet")))
    table = parts.to_table(columns=["volume_id", "failure"], filter=pc.field("failure") != "")
    at = pc.index_in(table["volume_id"], value_set=known["volume_id"])
    columns = [known["source"].take(at.drop_null()), table["failure"].filter(at.is_valid())]
    failed = pa.table(columns, schema=FAILURES)
    write_table(folder / "failures.parquet", failed)
    for row in failed[:5].to_pylist():
        say("embed", f"skipped {row['source']}: {row['reason']}")
    return failed


@dataclass
class Embedder:
    """An actor of the pool: embeds the volumes of a part and writes the part."""

    weights: Place
    input_shape: tuple[int, ...]
    folder: Place
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
    workspace: Workspace, settings: Settings, weights: Place, folder: Place, parts: Sequence[tuple[int, Any]]
) -> None:
    joining.connect()
    shape = load_scan_encoder(weights, settings.autoencoder.input_shape).input_shape
    source = coarse_cubes(workspace.volumes, parts, shape, settings.intensity)
    num_gpus = settings.embedding.num_gpus
    if num_gpus:
        capacity.require(f"embedding.num_gpus={num_gpus:g}", 1, num_gpus=num_gpus)
    # Without GPUs Ray Data has the actors read as well, so that they may have all cores.
    num_actors = min(settings.embedding.num_actors or capacity.num_concurrent(1, num_gpus), len(parts))
    # In a cluster nodes may come: then as many as there are parts.
    most_actors = num_actors if settings.embedding.num_actors or not joining.is_joined() else len(parts)
    scans = ray.data.read_datasource(source, override_num_blocks=len(parts))
    scans.context.target_max_block_size = None  # a block is a part, however large
    done = scans.map_batches(
        Embedder,
        fn_constructor_args=(weights, shape, folder, "cuda" if num_gpus else "cpu"),
        batch_size=None,
        batch_format="pyarrow",
        # Of fewer than there were, after the loss of a node, those that are idle make room.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most_actors, initial_size=num_actors),
        num_gpus=num_gpus or None,
        zero_copy_batch=True,
    )
    with progress("embed", sum(len(rows) for _, rows in parts), "volumes") as ticker:
        for row in done.iter_rows():
            if row["error"]:
                raise WorkspaceError(row["error"])
            ticker.advance(row["volumes"])


def _split(workspace: Workspace, settings: Settings) -> tuple[pa.StringArray, pa.StringArray]:
    """Ids of the volumes to learn from and held out. Raises WorkspaceError if there are none of either."""
    table = read_columns(workspace.catalog, ["volume_id", "subject_id"], ndim=settings.ndim).combine_chunks()
    volumes, subjects = (table[name].combine_chunks() for name in table.column_names)
    held_out = is_held_out(volumes, subjects, settings.validation_fraction, settings.seed)
    if held_out.all() or not held_out.any():
        raise WorkspaceError(
            f"{workspace.archive} holds {len(subjects.unique())} subject: training and validation need at least 2; "
            "add scans, or check archive.subject_pattern"
        )
    return volumes.filter(pa.array(~held_out)), volumes.filter(pa.array(held_out))


def _coarse_dataset(workspace: Workspace, volume_ids: Sequence[str], settings: Settings) -> ray.data.Dataset:
    """Whole scans at the coarse level, in Ray's object store; damaged volumes are left out."""
    parts = [
        (start, CatalogueRows(workspace.catalog, there)) for start, there in parts_of(volume_ids, VOLUMES_PER_BLOCK)
    ]
    source = coarse_cubes(workspace.volumes, parts, settings.autoencoder.input_shape, settings.intensity)
    dataset = ray.data.read_datasource(source, override_num_blocks=len(parts)).map_batches(
        lambda table: table.filter(pa.compute.equal(table["failure"], "")), batch_size=None, batch_format="pyarrow"
    )
    return dataset.materialize()


def _sample(volume_ids: pa.StringArray, most: int, settings: Settings) -> list[str]:
    """So many of the ids at the most, drawn by seed."""
    if len(volume_ids) <= most:
        return volume_ids.to_pylist()
    generator = np.random.default_rng(np.random.SeedSequence([settings.seed, len(volume_ids)]))
    chosen = generator.choice(len(volume_ids), most, replace=False)
    return volume_ids.take(pa.array(np.sort(chosen))).to_pylist()


def _part_path(folder: Place, start: int) -> Place:
    return folder / f"part-{start:09d}.parquet"


def _chosen(settings: Settings, keys: tuple[str, ...]) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(keys))
