"""The pretrained weights that a target begins with: which run left them, in which workspace, by which settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raygenesis.networks.weights.native import ENCODER_FILE
from raygenesis.settings import Settings, adopt, settings_of_run
from raygenesis.transfer.initialisations import is_file, named
from raygenesis.transfer.statistics import RANDOM
from raygenesis.workspace.files import as_place
from raygenesis.workspace.workspace import Workspace

# Sections of the settings that a target is read by as the run has them, key by key.
SHARED = ("intensity", "discovery", "autoencoder")


@dataclass(frozen=True)
class Run:
    """Where weights come from. name: what tables call them. workspace: None of weights that no run of ours left.

    settings: those of the pretraining, None where they are not kept beside the weights.
    """

    name: str
    workspace: Workspace | None = None
    settings: Settings | None = None


def runs_of(starts: Sequence[str], workspace: Workspace) -> list[Run]:
    """The runs that starts name, by name or by path, in their order; `random` is none."""
    return [_run_of(name, start, workspace) for name, start in map(named, starts) if start != RANDOM]


def as_pretrained(settings: Settings, run: Run) -> Settings:
    """The settings, with intensity, shapes, split and subjects as the run has them but for keys that were given."""
    if run.settings is None:
        return settings
    theirs = run.settings.model_dump(mode="json", include={*SHARED, "validation_fraction"})
    if settings.archive.subject_pattern is None:
        theirs["archive"] = {"subject_pattern": run.settings.archive.subject_pattern}
    return adopt(settings, theirs)


def _run_of(name: str, start: str, workspace: Workspace) -> Run:
    folder = as_place(start) if is_file(start) else workspace.run(start)
    if folder.name == ENCODER_FILE:
        folder = folder.parent
    elif is_file(start) and not folder.is_dir():
        return Run(name)
    return Run(name, Workspace(folder.parent.parent), settings_of_run(folder))
