"""Embed: the whole archive as a Ray Data pipeline, by an encoder that is made where it is not there (`encoders.py`)."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch

from raygenesis.archive.catalogue import CatalogueRows, read_columns
from raygenesis.archive.work import archive_size
from raygenesis.cluster import capacity, environment
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.streams import RETRIED, PartSource, StreamProgress, read_parts, write_parts
from raygenesis.cluster.work import Announce, Work, unannounced
from raygenesis.discovery.coarse_scans import coarse_cubes
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.encoders import encoder_work, ready_encoder
from raygenesis.discovery.work import embed_work
from raygenesis.networks.scan_encoders import ScanEncoder
from raygenesis.networks.weights.native import ENCODER_FILE
from raygenesis.networks.weights.scan_encoders import load_scan_encoder
from raygenesis.patterns.cells import decode
from raygenesis.settings import AutoencoderSettings, EmbeddingSettings, Settings, adopt, settings_of_run
from raygenesis.text.amounts import size
from raygenesis.training.devices import prefer_speed, send
from raygenesis.workspace.artifacts import ARCHIVE, EMBEDDINGS
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import Place, as_place, parquet_dataset, read_table, write_table
from raygenesis.workspace.fingerprint import digest_of_text
from raygenesis.workspace.manifest import ArchiveManifest, EmbeddingsCounts, EmbeddingsManifest, Tree
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

VOLUMES_PER_BATCH = 16

# Which part a volume is in, by the part's first number.
LISTING_FILE = "listing.parquet"
LISTING = pa.schema([("volume_id", pa.string()), ("start", pa.int64())])


def embed(
    workspace: Workspace, settings: Settings, output: str | Place | None = None, announce: Announce = unannounced
) -> EmbeddingsManifest:
    """Embed every volume of the archive into `embeddings/part-*.parquet`, or `output`; returns the manifest.

    A part that is there is not made again, and volumes that came after it get parts of their own.
    """
    settings = adopt(settings, _intensity_of_run(settings.embedding.encoder))
    archive = ARCHIVE.require(workspace.archive)
    folder = as_place(output) if output else workspace.embeddings
    known = read_columns(workspace.catalog, ["volume_id", "source"], ndim=settings.ndim)
    training = encoder_work(workspace, settings, archive_size(archive))
    embedding = _work(folder, archive, known["volume_id"], settings.embedding, settings.autoencoder)
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
    if earlier is not None and earlier.archive == archive.fingerprint:
        say("embed", f"nothing to do: embeddings are in {folder}")
        return earlier
    watch = Stopwatch()
    if embedding and not training and output is None:
        announce(embedding)
    with stage.claimed():
        listed = _read_listing(folder)
        listing = _extended(listed, known["volume_id"], settings.embedding.volumes_per_part)
        if len(listing) > len(listed):
            write_table(folder / LISTING_FILE, listing)
        num_made = len(_names_of_parts(folder))
        missing = _missing_parts(folder, listing, known["volume_id"])
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
        num_parts = num_made + len(parts)
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


def _intensity_of_run(encoder: str) -> Tree:
    """The section `intensity` that the run which is to embed has learnt from; nothing where no run embeds."""
    path = as_place(encoder)
    run = settings_of_run(path.parent if path.name == ENCODER_FILE else path)
    return {} if run is None else run.model_dump(mode="json", include={"intensity"})


def _work(
    folder: Place, archive: ArchiveManifest, ids: pa.ChunkedArray, settings: EmbeddingSettings,
    autoencoder: AutoencoderSettings,
) -> list[Work]:  # fmt: skip
    """The work to embed the volumes of the archive that have no embedding in the folder, if there are any."""
    made = EMBEDDINGS.read(folder)
    if made is not None and made.archive == archive.fingerprint:
        return []
    listing = _extended(_read_listing(folder), ids, settings.volumes_per_part)
    number = sum(len(missing) for _, missing in _missing_parts(folder, listing, ids))
    scans = replace(archive_size(archive), num_scans=number)
    return [embed_work(scans, settings, autoencoder)] if number else []


def _read_listing(folder: Place) -> pa.Table:
    """Rows (schema LISTING) of all parts in order; none where nothing has been embedded."""
    path = folder / LISTING_FILE
    return read_table(path, schema=LISTING) if path.is_file() else LISTING.empty_table()


def _extended(listing: pa.Table, ids: pa.ChunkedArray, volumes_per_part: int) -> pa.Table:
    """The listing, with the volumes that are new in parts of their own, for good."""
    new = ids.filter(pc.invert(pc.is_in(ids, value_set=listing["volume_id"])))
    if len(new):
        begin = listing["start"][-1].as_py() + volumes_per_part if len(listing) else 0
        starts = begin + np.arange(len(new)) // volumes_per_part * volumes_per_part
        listing = pa.concat_tables([listing, pa.table([new, pa.array(starts)], schema=LISTING)]).combine_chunks()
    return listing


def _missing_parts(folder: Place, listing: pa.Table, ids: pa.ChunkedArray) -> list[tuple[int, pa.ChunkedArray]]:
    """The first number and the volumes of each part that is not there; only of volumes with these ids."""
    made = _names_of_parts(folder)
    there = listing.filter(pc.is_in(listing["volume_id"], value_set=ids))
    return [(start, volumes) for start, volumes in _parts(there) if _part_path(folder, start).name not in made]


def _names_of_parts(folder: Place) -> set[str]:
    return {path.name for path in folder.glob("part-*.parquet")}


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
        """Rows of a `coarse_cubes` part (schema COARSE_SCHEMA) → number, volume_id, embedding, failure of each."""
        latent = self.encode(part["cube"].to_pylist()).cpu().numpy()  # once a part: a GPU is not waited for in between
        failures = [
            reason or ("" if np.isfinite(vector).all() else "its embedding is not finite")
            for reason, vector in zip(part["failure"].to_pylist(), latent, strict=True)
        ]
        return pa.table(
            {
                "number": part["number"],
                "volume_id": part["volume_id"],
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
    write_table(_part_path(folder, part["number"][0].as_py()), part.drop_columns("number"))


def _part_path(folder: Place, start: int) -> Place:
    return folder / f"part-{start:09d}.parquet"
