"""Embed: the whole archive as a Ray Data pipeline, by an encoder that is made where it is not there (`encoders.py`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch

from raygenesis.archive.catalogue import CatalogueRows, read_columns
from raygenesis.archive.volume_identity import volume_fingerprints
from raygenesis.archive.work import archive_size
from raygenesis.cluster import capacity, environment
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.streams import RETRIED, PartSource, StreamProgress, read_parts, write_parts
from raygenesis.cluster.work import Announce, Work, unannounced
from raygenesis.discovery.coarse_scans import coarse_cubes
from raygenesis.discovery.embedding_parts import (
    LISTING_FILE,
    are_readable,
    digest_of_listing,
    extended,
    missing_parts,
    part_path,
    read_listing,
)
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.encoders import encoder_work, ready_encoder
from raygenesis.discovery.work import embed_work
from raygenesis.networks.scan_encoders import ScanEncoder
from raygenesis.networks.weights.native import ENCODER_FILE
from raygenesis.networks.weights.scan_encoders import load_scan_encoder
from raygenesis.patterns.cells import decode
from raygenesis.settings import AutoencoderSettings, EmbeddingSettings, Settings, adopt, settings_of_run
from raygenesis.text.amounts import several, size
from raygenesis.training.devices import prefer_speed, send
from raygenesis.workspace.artifacts import ARCHIVE, EMBEDDINGS
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import Place, as_place, parquet_dataset, write_table
from raygenesis.workspace.manifest import ArchiveManifest, EmbeddingsCounts, EmbeddingsManifest, Tree
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

VOLUMES_PER_BATCH = 16


def embed(
    workspace: Workspace, settings: Settings, output: str | Place | None = None, announce: Announce = unannounced
) -> EmbeddingsManifest:
    """Embed every volume of the archive into `embeddings/part-*.parquet`, or `output`; returns the manifest.

    A part that is there is not made again unless it is damaged or a volume of it is no longer as it was, and volumes
    that came after it get parts of their own.
    """
    settings = adopt(settings, _intensity_of_run(settings.embedding.encoder))
    archive = ARCHIVE.require(workspace.archive)
    folder = as_place(output) if output else workspace.embeddings
    known = read_columns(workspace.catalog, ["volume_id", "source"], ndim=settings.ndim)
    training = encoder_work(workspace, settings, archive_size(archive))
    embedding = _work(folder, archive, workspace.catalog, known["volume_id"], settings.embedding, settings.autoencoder)
    if training and output is None:
        announce([*training, *embedding])
    weights, identity = ready_encoder(workspace, settings)
    chosen = settings.model_dump(mode="json", include={"intensity"})
    chosen["autoencoder"] = {"input_shape": list(settings.autoencoder.input_shape)}
    chosen["embedding"] = {"volumes_per_part": settings.embedding.volumes_per_part}
    encoder = settings.embedding.encoder
    command = () if encoder == "autoencoder" else ("embed", "--encoder", encoder)
    stage = Stage(EMBEDDINGS, folder, chosen, {"encoder": identity}, command=command)
    earlier = stage.finished()
    is_made = earlier is not None and earlier.archive == archive.fingerprint
    if earlier is not None and is_made and are_readable(folder, earlier.counts.parts):
        say("embed", f"nothing to do: embeddings are in {folder}")
        return earlier
    watch = Stopwatch()
    if embedding and not training and output is None:
        announce(embedding)
    with stage.claimed():
        listed = read_listing(folder)
        listing = extended(listed, known["volume_id"], settings.embedding.volumes_per_part)
        if len(listing) > len(listed):
            write_table(folder / LISTING_FILE, listing)
        missing = missing_parts(folder, listing, volume_fingerprints(workspace.catalog, ndim=settings.ndim))
        _say_made_anew(folder, [start for start, _ in missing])
        parts = [(start, CatalogueRows(workspace.catalog, ids.to_pylist())) for start, ids in missing]
        num_new = sum(len(rows) for _, rows in parts)
        if parts:
            shape = load_scan_encoder(weights, settings.autoencoder.input_shape).input_shape
            source = coarse_cubes(workspace.volumes, parts, shape, settings.intensity)
            num_gpus = settings.embedding.num_gpus
            embedder = Embedder(weights, identity, shape, "cuda" if num_gpus else "cpu")
            stream = embed_stream(source, embedder, settings.embedding)
            shown = StreamProgress("embed", "volumes", source.num_rows, source.num_parts)
            write_parts(stream, functools.partial(publish_part, folder=folder), shown, after_actors=bool(num_gpus))
        failed = _failures(folder, known)
        num_parts = sum(1 for _ in folder.glob("part-*.parquet"))
        counts = EmbeddingsCounts(volumes=len(known) - len(failed), new=num_new, failures=len(failed), parts=num_parts)
        manifest = EmbeddingsManifest(
            counts=counts, seconds=watch.seconds, archive=archive.fingerprint, size=Embeddings(folder).size
        )
        manifest = stage.finish(manifest, content=[archive.fingerprint, digest_of_listing(listing)])
    set_gauge("raygenesis_failures", len(failed), stage=EMBEDDINGS.name)
    _say_embedded(manifest, folder)
    return manifest


def _say_embedded(manifest: EmbeddingsManifest, folder: Place) -> None:
    counts = manifest.counts
    rate = counts.new / max(manifest.seconds, 1e-9)
    say(
        "embed",
        f"{counts.volumes} volumes × {manifest.size} numbers ({counts.new} new, {rate:.1f} volumes/s), "
        f"{counts.failures} failures, {size(manifest.bytes)}, {manifest.seconds:.1f} s → {folder}",
    )


def _intensity_of_run(encoder: str) -> Tree:
    """The section `intensity` that the run which is to embed has learnt from; nothing where no run embeds."""
    path = as_place(encoder)
    run = settings_of_run(path.parent if path.name == ENCODER_FILE else path)
    return {} if run is None else run.model_dump(mode="json", include={"intensity"})


def _work(
    folder: Place, archive: ArchiveManifest, catalog: Place, ids: pa.ChunkedArray, settings: EmbeddingSettings,
    autoencoder: AutoencoderSettings,
) -> list[Work]:  # fmt: skip
    """The work to embed the volumes of the archive that have no embedding in the folder, if there are any."""
    made = EMBEDDINGS.read(folder)
    if made is not None and made.archive == archive.fingerprint and are_readable(folder, made.counts.parts):
        return []
    listing = extended(read_listing(folder), ids, settings.volumes_per_part)
    missing = missing_parts(folder, listing, volume_fingerprints(catalog, ids))
    number = sum(len(volumes) for _, volumes in missing)
    scans = replace(archive_size(archive), num_scans=number)
    return [embed_work(scans, settings, autoencoder)] if number else []


def _say_made_anew(folder: Place, starts: Sequence[int]) -> None:
    """Say which parts are there and made again all the same."""
    anew = [path.name for start in starts if (path := part_path(folder, start)).is_file()]
    if anew:
        say("embed", f"{several(len(anew), 'parts')} made anew, damaged or of other voxels, the first {anew[0]}")


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


@dataclass(frozen=True)
class Embedder:
    """Embeds the volumes of a part, by an encoder that a process reads once.

    weights: of the encoder; identity: what they are, whatever may come to lie there. input_shape: voxels of a scan as
    the encoder sees it; device: cpu or cuda.
    """

    weights: Place
    identity: str
    input_shape: tuple[int, ...]
    device: str

    def __call__(self, part: pa.Table) -> pa.Table:
        """Rows of a `coarse_cubes` part (schema COARSE_SCHEMA) → number, volume_id, fingerprint, embedding, failure."""
        latent = self.encode(part["cube"].to_pylist()).cpu().numpy()  # once a part: a GPU is not waited for in between
        failures = [
            reason or ("" if np.isfinite(vector).all() else "its embedding is not finite")
            for reason, vector in zip(part["failure"].to_pylist(), latent, strict=True)
        ]
        return pa.table(
            {
                "number": part["number"],
                "volume_id": part["volume_id"],
                "fingerprint": part["fingerprint"],
                "embedding": pa.FixedSizeListArray.from_arrays(latent.ravel(), latent.shape[1]),
                "failure": failures,
            }
        )

    @torch.inference_mode()
    def encode(self, cells: Sequence[bytes | None]) -> torch.Tensor:
        """Scans as `coarse_cubes` encodes them, zeros for None → their vectors, float32 [n, size], on the device."""
        model, vectors = _encoder(self), []
        for first in range(0, len(cells), VOLUMES_PER_BATCH):
            batch = np.zeros((len(cells[first : first + VOLUMES_PER_BATCH]), 1, *self.input_shape), np.float32)
            for scan, cell in zip(batch, cells[first:], strict=False):
                if cell:
                    scan[0] = decode(cell, self.input_shape)
            vectors.append(model.encode(send(torch.from_numpy(batch), self.device)))
        return torch.cat(vectors)


@functools.lru_cache(maxsize=1)
def _encoder(embedder: Embedder) -> ScanEncoder:
    prefer_speed(embedder.device)
    return load_scan_encoder(embedder.weights, embedder.input_shape).to(embedder.device)


def embed_stream(source: PartSource, embedder: Embedder, settings: EmbeddingSettings) -> ray.data.Dataset:
    """The embeddings of a `coarse_cubes` source, one block a part.

    On CPUs they are made in tasks, whose processes have been at work before; on GPUs, which a task's process would take
    up anew for each part, by a pool of actors.
    """
    scans = read_parts(source)
    if not settings.num_gpus:
        return scans.map_batches(
            embedder,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            concurrency=settings.num_actors,
            **RETRIED,
        )
    capacity.require(f"embedding.num_gpus={settings.num_gpus:g}", 1, num_gpus=settings.num_gpus)
    num_actors = min(settings.num_actors or capacity.num_concurrent(1, settings.num_gpus), source.num_parts)
    # In a cluster nodes may come: then as many as there are parts.
    most_actors = num_actors if settings.num_actors or not environment.is_joined() else source.num_parts
    # Of fewer than there were, after the loss of a node, those that are idle make room.
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=most_actors, initial_size=num_actors)
    return scans.map_batches(
        embedder, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, compute=pool,
        num_gpus=settings.num_gpus,
    )  # fmt: skip


def publish_part(part: pa.Table, folder: Place) -> None:
    """Write the embeddings of one part under the number of its first volume. Raises WorkspaceError."""
    write_table(part_path(folder, part["number"][0].as_py()), part.drop_columns("number"))
