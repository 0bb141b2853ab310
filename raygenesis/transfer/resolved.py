"""A described target resolved: its examples, how they are read, and the settings that it is learnt with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raygenesis.archive.formats.readers import read_scan_geometry
from raygenesis.cluster import fan_out
from raygenesis.cluster.progress import say
from raygenesis.errors import ScanError, SettingsError
from raygenesis.settings import (
    ArchiveSettings,
    AutoencoderSettings,
    DiscoverySettings,
    FinetuneSettings,
    IntensitySettings,
    Settings,
)
from raygenesis.transfer.cases import Form, form_of
from raygenesis.transfer.description import Description, read_target, settings_for
from raygenesis.transfer.examples import SEGMENTATION, ImageFile, Target
from raygenesis.transfer.runs import PREPARATION, Run, archive_settings, as_pretrained
from raygenesis.transfer.target_files import digest_of_content
from raygenesis.workspace.files import xxh3_of
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.manifest import Manifest
from raygenesis.workspace.manifest_files import Started
from raygenesis.workspace.workspace import Workspace

FILES = "target files"  # the input that is the bytes of a target's files
MAX_HEADERS = 200  # that are read for the median voxel size
MAX_HASHED_BYTES = 2**26  # of a larger label map the size must do


@dataclass(frozen=True)
class ResolvedTarget:
    """A target to learn.

    target: its examples. form: of its cases. settings: with what its description changes, and as the runs have them.
    runs: those that it is learnt from, whose training subjects must not be tested on.
    """

    target: Target
    form: Form
    settings: Settings
    runs: tuple[Run, ...] = ()


def resolve_target(
    description: Description, workspace: Workspace, settings: Settings, runs: Sequence[Run] = ()
) -> ResolvedTarget:
    """Read a description, with intensities and shapes as the runs were pretrained; no image is decoded.

    Raises ScanError or SettingsError where it describes no target, or where the runs would need different images.
    """
    by_run = {run.name: settings_for(description, as_pretrained(settings, run)) for run in runs if run.settings}
    settings = next(iter(by_run.values()), None) or settings_for(description, settings)
    made_with = archive_settings(workspace) or settings.archive
    pattern = settings.archive.subject_pattern or made_with.subject_pattern
    target = listed_target(description, pattern)
    _check_alike(target, by_run)
    shape = _shape_for(target, settings.finetune, settings.discovery, settings.autoencoder)
    form = form_for(target, settings.finetune, settings.intensity, shape, settings.archive)
    return ResolvedTarget(target, form, settings, tuple(runs))


def listed_target(description: Description, subject_pattern: str | None) -> Target:
    """As `read_target`, but a task parses the target's tables, documents and headers. Raises as it does."""
    return fan_out.in_a_task(read_target, description, subject_pattern)


def form_for(
    target: Target, settings: FinetuneSettings, intensity: IntensitySettings, shape: tuple[int, ...],
    archive: ArchiveSettings | None = None,
) -> Form:  # fmt: skip
    """The form of a target's cases. Raises SettingsError where they have other dimensions.

    shape: voxels that a network sees at once. archive: of the scans that were learnt from.
    """
    to_segment = target.task == SEGMENTATION
    if to_segment and settings.mode == "knn":
        raise SettingsError(
            "finetune.mode=knn gives one answer an image: give full, encoder, frozen or probe to segment"
        )
    spacing = None
    if to_segment and _shows_whole_scans(target):
        spacing = settings.spacing_mm or fan_out.in_a_task(common_spacing, target)
    for key, sides in (("input_shape", shape), ("spacing_mm", spacing)):
        if sides is not None and len(sides) != target.ndim:
            raise SettingsError(
                f"finetune.{key}={list(sides)} has {len(sides)} sides and the target's images are {target.ndim}D: give "
                f"finetune.{key} with {target.ndim}"
            )
    return form_of(target, shape, spacing, intensity, archive)


def _shape_for(
    target: Target, settings: FinetuneSettings, discovery: DiscoverySettings, autoencoder: AutoencoderSettings
) -> tuple[int, ...]:
    """Voxels that a network sees at once."""
    to_classify_whole = target.task != SEGMENTATION and _shows_whole_scans(target)
    return settings.input_shape or (autoencoder.input_shape if to_classify_whole else discovery.cube_shape)


def _shows_whole_scans(target: Target) -> bool:
    return all(example.region is None for example in target.examples)


def _check_alike(target: Target, by_run: Mapping[str, Settings]) -> None:
    """Raise SettingsError where runs were pretrained on different images, and no setting decides which to use.

    by_run: by a run's name, the settings that the target would have as that run was pretrained.
    """
    deciding: dict[str, Callable[[Settings], Any]] = {
        "intensity.window": lambda settings: target.window or settings.intensity.window,
        "finetune.input_shape": lambda settings: _shape_for(
            target, settings.finetune, settings.discovery, settings.autoencoder
        ),
        **{f"archive.{key}": partial(_of_archive, key) for key in sorted(PREPARATION)},
    }
    for key, value_in in deciding.items():
        values = {name: value_in(settings) for name, settings in by_run.items()}
        for name, value in values.items():
            first, usual = next(iter(values.items()))
            if value != usual:
                raise SettingsError(
                    f"{key} would be {json.dumps(usual)} as {first} was pretrained and {json.dumps(value)} as {name} "
                    f"was, but all are given the same images: give {key} on the command line, or compare them one by "
                    "one"
                )


def _of_archive(key: str, settings: Settings) -> Any:
    return getattr(settings.archive, key)


def common_spacing(target: Target) -> tuple[float, ...]:
    """Median voxel size in mm, z y x (2D: y x), of the target's images; of many of an even sample of them."""
    images = [example.image for example in target.examples if isinstance(example.image, ImageFile)]
    spacings = []
    for image in images[:: -(-len(images) // MAX_HEADERS) or 1]:
        try:
            shape, spacing = read_scan_geometry(image.paths)[0]
        except (ScanError, OSError):
            continue  # reported when it is read
        if len(shape) == target.ndim:
            spacings.append(spacing)
    if not spacings:
        raise ScanError(f"none of the target's images can be read as {target.ndim}D images: check `ndim` and `images`")
    return tuple(np.median(spacings, axis=0).tolist())


def target_inputs(target: Target, begun: Manifest | Started | None, workspace: Workspace) -> dict[str, str]:
    """What a stage records of the target that it learns: its examples, and the bytes of its files.

    begun: the record of what is there, if anything is: an earlier version told images by their sizes alone, and what it
    began goes on so, with a line in the log.
    """
    if begun is None or FILES in begun.inputs:
        return {"target": digest_of(target), FILES: digest_of_content(target, workspace)}
    say("finetune", "an earlier version began this and told images by their sizes: see to it that none was replaced")
    return {"target": digest_of(target, reads_labels=True)}


def digest_of(target: Target, reads_labels: bool = False) -> str:
    """Identity of a target's examples and the sizes of their files; of labels the content, as in earlier versions."""
    known: dict[Path, Any] = {}

    def of_file(path: Path, content: bool) -> Any:
        if path not in known:
            size = path.stat().st_size if path.is_file() else None
            known[path] = xxh3_of(path) if content and size is not None and size <= MAX_HASHED_BYTES else size
        return known[path]

    def of(value: Any) -> Any:
        if isinstance(value, Path):
            return of_file(value, content=reads_labels)
        if isinstance(value, tuple) and value and isinstance(value[0], Path):
            return [of_file(path, content=False) for path in value]
        return repr(value)

    listed = [
        [
            [repr(value) for value in (example.name, example.subject, example.value, example.region, example.split)],
            [of_file(path, content=False) for path in example.image.paths],
            [of(getattr(example.label, field.name)) for field in fields(example.label)] if example.label else None,
        ]
        for example in target.examples
    ]
    return digest([target.task, target.classes, target.keeps_empty, listed])
