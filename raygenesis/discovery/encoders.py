"""What describes a whole scan, as the settings choose it: trained or fitted on the archive where it is not there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import ray.data

from raygenesis.archive.catalogue import CatalogueRows, is_held_out, read_columns
from raygenesis.archive.source import parts_of
from raygenesis.cluster import capacity, joining
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.streams import read_parts
from raygenesis.cluster.work import ArchiveSize, Work
from raygenesis.discovery.autoencoder_training import IdentityMapping
from raygenesis.discovery.coarse_scans import coarse_cubes
from raygenesis.discovery.principal_components import fit_components
from raygenesis.discovery.work import autoencoder_work
from raygenesis.errors import SettingsError, WeightsError, WorkspaceError
from raygenesis.networks.weights.native import ENCODER_FILE
from raygenesis.networks.weights.scan_encoders import (
    AUTOENCODER_FILE,
    COMPONENTS_FILE,
    load_scan_encoder,
    save_scan_encoder,
)
from raygenesis.settings import AutoencoderSettings, IntensitySettings, Settings
from raygenesis.settings.streams import ENCODER_SCANS
from raygenesis.training.chosen_precision import with_precision
from raygenesis.training.fit import Resources, fit_with_ray, samples_from
from raygenesis.workspace.artifacts import ARCHIVE, AUTOENCODER, COMPONENTS, PCA_COMMAND
from raygenesis.workspace.faults import patiently
from raygenesis.workspace.files import Place, as_place, blake2b_of
from raygenesis.workspace.manifest import (
    ArchiveManifest,
    AutoencoderCounts,
    AutoencoderManifest,
    ComponentsCounts,
    ComponentsManifest,
)
from raygenesis.workspace.stage import Stage, settings_of
from raygenesis.workspace.workspace import Workspace

VOLUMES_PER_BLOCK = 16
MOST_FITTED = 1000  # scans that principal components are found from: all are held at once


def ready_encoder(workspace: Workspace, settings: Settings) -> tuple[Place, str]:
    """The file of weights that embeds, made where it is to be and is not there, and what identifies it.

    Raises SettingsError if `embedding.encoder` is no encoder, or one for another number of dimensions.
    """
    chosen = settings.embedding.encoder
    if chosen == "autoencoder":
        return workspace.autoencoder / AUTOENCODER_FILE, train_autoencoder(workspace, settings).fingerprint
    if chosen == "pca":
        return workspace.pca / COMPONENTS_FILE, fit_pca(workspace, settings).fingerprint
    path = as_place(chosen)
    file = path if path.is_file() else path / ENCODER_FILE
    try:
        model = load_scan_encoder(path, settings.autoencoder.input_shape)
    except WeightsError as error:
        raise SettingsError(f"embedding.encoder: {error}, or `autoencoder`, or `pca`") from None
    if len(model.input_shape) != settings.ndim:
        raise SettingsError(
            f"embedding.encoder={chosen} takes {len(model.input_shape)}D scans and discovery.cube_shape asks for "
            f"{settings.ndim}D"
        )
    return file, patiently(partial(blake2b_of, file), file)


def encoder_work(workspace: Workspace, settings: Settings, scans: ArchiveSize) -> list[Work]:
    """The work of `ready_encoder`: the auto-encoder's, where it is to be trained.

    Raises WorkspaceError if the auto-encoder that is there was made with other settings.
    """
    if settings.embedding.encoder != "autoencoder" or _autoencoder_stage(workspace, settings)[0].finished() is not None:
        return []
    return [autoencoder_work(scans, settings.autoencoder, settings.validation_fraction)]


def train_autoencoder(workspace: Workspace, settings: Settings) -> AutoencoderManifest:
    """Train the auto-encoder on the training subjects' coarse levels; returns the manifest.

    One that is there stays as the archive grows.
    """
    archive = ARCHIVE.require(workspace.archive)
    stage, settings = _autoencoder_stage(workspace, settings)
    if (made := stage.finished()) is not None:
        _say_kept("auto-encoder", made, archive, workspace.autoencoder)
        return made
    watch = Stopwatch()
    training, validation = _split(workspace, settings.ndim, settings.validation_fraction, settings.seed)
    if stage.begins_anew():
        say("auto-encoder", "it was begun with another state of the archive, and begins anew")
    with stage.claimed():
        joining.connect()
        _check_resources(settings.autoencoder)
        drawn = [_sample(ids, settings.autoencoder.max_volumes, settings.seed) for ids in (training, validation)]
        shape, intensity = settings.autoencoder.input_shape, settings.intensity
        datasets = [_coarse_dataset(workspace, ids, shape, intensity) for ids in drawn]
        say(
            "auto-encoder",
            f"{len(drawn[0])} of {len(training)} training volumes, {len(drawn[1])} of {len(validation)} held out",
        )
        experiment = IdentityMapping(settings.autoencoder, settings.seed)
        named = dict(zip(("train", "validation"), datasets, strict=True))
        state, num_epochs = fit_with_ray(experiment, named, workspace.autoencoder, _resources(settings.autoencoder))
        network = settings.autoencoder.model_dump(mode="json", include={"input_shape", "base_width", "latent_size"})
        save_scan_encoder(workspace.autoencoder / AUTOENCODER_FILE, "autoencoder", state["best"], network)
        best = min(row["val_mse"] for row in state["history"])
        counts = AutoencoderCounts(training=len(drawn[0]), validation=len(drawn[1]), epochs=len(state["history"]))
        manifest = AutoencoderManifest(counts=counts, seconds=watch.seconds, archive=archive.fingerprint, val_mse=best)
        manifest = stage.finish(manifest)
    say("auto-encoder", f"{num_epochs} epochs, held-out error {best:.5f}, {watch.seconds:.1f} s → {stage.folder}")
    return manifest


def _check_resources(settings: AutoencoderSettings) -> None:
    key = f"autoencoder.num_workers={settings.num_workers}" + " with autoencoder.use_gpu=true" * settings.use_gpu
    capacity.require(key, settings.num_workers, num_gpus=float(settings.use_gpu))


def _resources(settings: AutoencoderSettings) -> Resources:
    return Resources(num_workers=settings.num_workers, use_gpu=settings.use_gpu)


def _autoencoder_stage(workspace: Workspace, settings: Settings) -> tuple[Stage[AutoencoderManifest], Settings]:
    """The stage, and the settings with the precision that it computes in."""
    begun = settings_of(AUTOENCODER, workspace.autoencoder)
    settings = with_precision(settings, "autoencoder", "cuda" if settings.autoencoder.use_gpu else "cpu", begun)
    chosen = settings.model_dump(
        mode="json", include={"autoencoder", "intensity", "seed", "validation_fraction"},
        exclude={"autoencoder": {"num_workers", "use_gpu"}},
    )  # fmt: skip
    if begun is not None and "precision" not in begun["autoencoder"] and chosen["autoencoder"]["precision"] == "fp32":
        del chosen["autoencoder"]["precision"]  # as an earlier version recorded it
    inputs = {"archive": ARCHIVE.require(workspace.archive).fingerprint}
    return Stage(AUTOENCODER, workspace.autoencoder, chosen, inputs, growing=frozenset(inputs)), settings


def fit_pca(workspace: Workspace, settings: Settings) -> ComponentsManifest:
    """Principal components of the training subjects' coarse levels, the linear baseline; returns the manifest."""
    archive = ARCHIVE.require(workspace.archive)
    chosen = settings.model_dump(mode="json", include={"intensity", "seed", "validation_fraction"})
    chosen["autoencoder"] = settings.autoencoder.model_dump(mode="json", include={"input_shape", "latent_size"})
    inputs = {"archive": archive.fingerprint}
    stage = Stage(COMPONENTS, workspace.pca, chosen, inputs, command=PCA_COMMAND, growing=frozenset(inputs))
    if (made := stage.finished()) is not None:
        _say_kept("pca", made, archive, workspace.pca)
        return made
    watch = Stopwatch()
    training, validation = _split(workspace, settings.ndim, settings.validation_fraction, settings.seed)
    with stage.claimed():
        joining.connect()
        experiment = IdentityMapping(settings.autoencoder, settings.seed)
        most = min(MOST_FITTED, settings.autoencoder.max_volumes)
        drawn = [_sample(ids, most, settings.seed) for ids in (training, validation)]
        shape, intensity = settings.autoencoder.input_shape, settings.intensity
        samples = [samples_from(_coarse_dataset(workspace, ids, shape, intensity), experiment) for ids in drawn]
        model = fit_components(samples[0], settings.autoencoder.latent_size)
        network = {"input_shape": list(model.input_shape), "latent_size": model.latent_size}
        save_scan_encoder(workspace.pca / COMPONENTS_FILE, "pca", model.state_dict(), network)
        held_out = samples[1].batch(np.arange(len(samples[1]))).cubes
        error = float((model(held_out) - held_out).square().mean())
        counts = ComponentsCounts(components=model.latent_size, training=len(samples[0]), validation=len(held_out))
        manifest = ComponentsManifest(counts=counts, seconds=watch.seconds, archive=archive.fingerprint, val_mse=error)
        manifest = stage.finish(manifest)
    say("pca", f"{model.latent_size} components, held-out error {error:.5f}, {watch.seconds:.1f} s → {stage.folder}")
    return manifest


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


def _split(
    workspace: Workspace, ndim: int, validation_fraction: float, seed: int
) -> tuple[pa.StringArray, pa.StringArray]:
    """Ids of the volumes to learn from and held out. Raises WorkspaceError if there are none of either."""
    table = read_columns(workspace.catalog, ["volume_id", "subject_id"], ndim=ndim).combine_chunks()
    volumes, subjects = (table[name].combine_chunks() for name in table.column_names)
    held_out = is_held_out(volumes, subjects, validation_fraction, seed)
    if held_out.all() or not held_out.any():
        raise WorkspaceError(
            f"{workspace.archive} holds {len(subjects.unique())} subject: training and validation need at least 2; "
            "add scans, or check archive.subject_pattern"
        )
    return volumes.filter(pa.array(~held_out)), volumes.filter(pa.array(held_out))


def _coarse_dataset(
    workspace: Workspace, volume_ids: Sequence[str], shape: Sequence[int], intensity: IntensitySettings
) -> ray.data.Dataset:
    """Whole scans at the coarse level, in Ray's object store; damaged volumes are left out."""
    parts = [
        (start, CatalogueRows(workspace.catalog, there)) for start, there in parts_of(volume_ids, VOLUMES_PER_BLOCK)
    ]
    source = coarse_cubes(workspace.volumes, parts, shape, intensity)
    dataset = read_parts(source).map_batches(
        lambda table: table.filter(pa.compute.equal(table["failure"], "")), batch_size=None, batch_format="pyarrow"
    )
    return dataset.materialize()


def _sample(volume_ids: pa.StringArray, most: int, seed: int) -> list[str]:
    """So many of the ids at the most, drawn by seed."""
    if len(volume_ids) <= most:
        return volume_ids.to_pylist()
    chosen = ENCODER_SCANS.generator(seed, len(volume_ids)).choice(len(volume_ids), most, replace=False)
    return volume_ids.take(pa.array(np.sort(chosen))).to_pylist()
