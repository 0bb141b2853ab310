"""The store that a pretext task learns from: the settings that it was made with, and whether the task fits it."""

from __future__ import annotations

import json

from raygenesis.errors import SettingsError
from raygenesis.patterns.schema import TRAINING
from raygenesis.pretraining.overlap import class_boxes
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.stages import check_crops, stages_of
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import DiscoverySettings, PretrainingSettings, Scale, Settings, adopt, flatten, settings_from
from raygenesis.training.file_samples import StoredPatterns
from raygenesis.training.trackers import check_trackers
from raygenesis.workspace.artifacts import CROPS, PATTERNS
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import StoreManifest


def with_store_settings(settings: Settings, store: StoreManifest) -> Settings:
    """The settings, with those that decided the cubes of a store as the store was made with them.

    A target is read as its run's settings say.

    Raises:
        SettingsError: Other values were given on the command line, or cubes have another number of dimensions.
    """
    shape = store.cube_shape
    if len(shape) != settings.ndim:
        raise SettingsError(
            f"the store holds cubes of {len(shape)} sides, {list(shape)}, and discovery.cube_shape="
            f"{list(settings.discovery.cube_shape)} has {settings.ndim}: give the preset that the store was made with"
        )
    made_with = {key: store.settings[key] for key in ("discovery", "intensity", "validation_fraction")}
    adopted, stored = adopt(settings, made_with), adopt(settings_from(settings.model_dump(mode="json")), made_with)
    ours, theirs = (flatten(each.model_dump(mode="json", include=set(made_with))) for each in (adopted, stored))
    for key, value in theirs.items():
        if ours[key] != value:  # given on the command line
            raise SettingsError(
                f"{key}={json.dumps(ours[key])}, but the cubes in the store were made with {json.dumps(value)}: leave "
                "it out, or make the store again"
            )
    return adopted


def pretext_task(settings: PretrainingSettings, seed: int, store: StoreManifest) -> PretextTask:
    """The pretext task of the settings on the cubes of a store.

    Raises:
        SettingsError: The store holds fewer neighbours or coordinates than are to be used, or the task does not fit.
    """
    counts, pretext = store.counts, pretext_of(settings)
    for key in ("num_neighbours", "num_coordinates"):
        number, most = getattr(settings, key), counts.of(key)
        if number is not None and number > most:
            again = f"discover again with discovery.{key}={number}"
            if pretext.store == CROPS:
                again = (
                    "crop more scans" if key == "num_neighbours" else f"crop again with discovery.num_crops={number}"
                )
            raise SettingsError(
                f"pretraining.{key}={number} is more than the {most} in the store: lower it, or {again}"
            )
    coordinates = settings.num_coordinates or counts.coordinates
    boxes = None if settings.overlap is None else class_boxes(store, coordinates, settings.overlap)
    scales = [Scale(**scale) for scale in store.settings["discovery"]["scales"]] if settings.scale_stages else []
    if pretext.store == CROPS:
        check_crops(coordinates, len(scales))
    stages, shape = stages_of(settings, scales), tuple(store.cube_shape)
    return PretextTask(settings, seed, shape, counts.references, coordinates, stages=stages, boxes=boxes)


def stored_patterns(folder: Place, settings: PretrainingSettings, split: str) -> StoredPatterns:
    """The selected patterns of a split, as the settings say that they are read; those of training may be kept."""
    memory_gib = settings.memory_gib if split == TRAINING else 0.0
    return StoredPatterns(
        folder, split, settings.num_neighbours, settings.num_coordinates, settings.num_decoders, memory_gib,
        settings.window_groups,
    )  # fmt: skip


def check_pretext(
    settings: PretrainingSettings, discovery: DiscoverySettings, store: StoreManifest | None = None
) -> None:
    """Raise SettingsError if there is no such pretext task, it does not fit its store, or a tracker is not installed.

    Args:
        settings: The pretext task.
        discovery: What the store will be made with, where it is yet to be made.
        store: Manifest of the store; None where it is yet to be made.
    """
    check_trackers(settings.trackers)
    if store is not None:
        pretext_task(settings, 0, store)
        return
    PretextTask(settings, 0, discovery.cube_shape, 1, 1, stages=stages_of(settings, discovery.scales))
    if pretext_of(settings).store != PATTERNS:
        return
    for name in ("num_neighbours", "num_coordinates"):
        number, most = getattr(settings, name), getattr(discovery, name)
        if number is not None and number > most:
            raise SettingsError(
                f"pretraining.{name}={number} is more than the {most} that are discovered: lower it or raise "
                f"discovery.{name}"
            )
