"""The pretraining runs behind a target's initialisations: in which workspace, with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raygenesis.networks.weights.native import ENCODER_FILE
from raygenesis.settings import ArchiveSettings, Settings, adopt, settings_of_run
from raygenesis.transfer.initialisations import RANDOM, is_path, name_and_source, sources_in
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.files import as_place
from raygenesis.workspace.workspace import Workspace

# Sections of the settings that are taken from the run, key by key, to read a target.
SHARED = ("intensity", "discovery", "autoencoder")
PREPARATION = {"crop_to_body", "spacing_mm"}  # of the archive's settings, what is done to an image before it is stored


@dataclass(frozen=True)
class Run:
    """Where weights come from.

    name: of the initialisation, or the source where an initialisation has several. workspace: None for weights that are
    not of a run of ours. settings: of the pretraining, with those of the archive as it was made; None where they are
    not kept beside the weights.
    """

    name: str
    workspace: Workspace | None = None
    settings: Settings | None = None


def runs_of(sources: Sequence[str], workspace: Workspace) -> list[Run]:
    """The runs behind the sources of initialisations, in their order; none behind `random`."""
    runs = []
    for name, source in map(name_and_source, sources):
        several = sources_in(source)
        named = [(name, source)] if len(several) == 1 else zip(several, several, strict=True)
        runs += [_run_of(one, each, workspace) for one, each in named if each != RANDOM]
    return runs


def as_pretrained(settings: Settings, run: Run) -> Settings:
    """Settings with intensity, shapes, split and subjects as the run has them, except for keys that were given."""
    if run.settings is None:
        return settings
    theirs = run.settings.model_dump(mode="json", include={*SHARED, "validation_fraction"})
    theirs["archive"] = run.settings.archive.model_dump(mode="json", include=PREPARATION)
    if settings.archive.subject_pattern is None:
        theirs["archive"]["subject_pattern"] = run.settings.archive.subject_pattern
    return adopt(settings, theirs)


def _run_of(name: str, source: str, workspace: Workspace) -> Run:
    folder = as_place(source) if is_path(source) else workspace.run(source)
    if folder.name == ENCODER_FILE:
        folder = folder.parent
    elif is_path(source) and not folder.is_dir():
        return Run(name)
    workspace, settings = Workspace(folder.parent.parent), settings_of_run(folder)
    made_with = archive_settings(workspace)
    if settings is not None and made_with is not None:  # those of the run's own tree may be any preset's
        prepared = {key: getattr(made_with, key) for key in PREPARATION}
        settings = settings.model_copy(update={"archive": settings.archive.model_copy(update=prepared)})
    return Run(name, workspace, settings)


def archive_settings(workspace: Workspace) -> ArchiveSettings | None:
    """The settings that the workspace's archive was made with; None where there is no finished archive."""
    manifest = ARCHIVE.read(workspace.archive)
    return None if manifest is None else ArchiveSettings.model_validate(manifest.settings["archive"])
