"""Stages by scale: the epochs of each phase learn from the largest crops first, and from the smallest last."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raygenesis.errors import SettingsError
from raygenesis.settings import PretrainingSettings, Scale


def coarse_to_fine(scales: Sequence[Scale]) -> tuple[tuple[int, ...], ...]:
    """The numbers of a store's scales by their extent, the largest first; those of one extent are one stage.

    Raises:
        SettingsError: All have one extent.
    """
    volumes = [math.prod(scale.extent_mm) for scale in scales]
    stages = tuple(
        tuple(number for number, other in enumerate(volumes) if other == volume)
        for volume in sorted(set(volumes), reverse=True)
    )
    if len(stages) < 2:
        raise SettingsError(
            "pretraining.scale_stages=true needs a store with scales of different extents, and discovery.scales has "
            f"{list(scales[0].extent_mm)} mm alone: leave it out, or make the store again with several"
        )
    return stages


def stages_of(settings: PretrainingSettings, scales: Sequence[Scale]) -> tuple[tuple[int, ...], ...]:
    """The stages on a store of these scales, where the settings ask for them, and otherwise none: `coarse_to_fine`."""
    return coarse_to_fine(scales) if settings.scale_stages else ()


def stage_of(epoch: int, phases: Sequence[str], num_stages: int) -> int:
    """The number of an epoch's stage: the epochs of its phase are divided evenly among the stages, in order.

    phases: the phase of every epoch; all epochs of one follow one another.
    """
    phase = phases[min(epoch, len(phases) - 1)]
    return min((epoch - phases.index(phase)) * num_stages // phases.count(phase), num_stages - 1)


def check_epochs(phases: Sequence[str], num_stages: int) -> None:
    """Raise SettingsError if a phase has fewer epochs than there are stages."""
    for phase in dict.fromkeys(phases):
        if phases.count(phase) < num_stages:
            raise SettingsError(
                f"pretraining.scale_stages=true divides the epochs of each phase among {num_stages} scales, and the "
                f"phase {phase} has {phases.count(phase)}: raise pretraining.num_classification_epochs or "
                "pretraining.num_joint_epochs, or leave scale_stages out"
            )


def check_crops(num_crops: int, num_scales: int) -> None:
    """Raise SettingsError if some scales are among none of the random crops: those of a scan take turns."""
    if num_crops < num_scales:
        raise SettingsError(
            f"pretraining.scale_stages=true learns from each of the {num_scales} scales of random crops, and the "
            f"{num_crops} crops of a scan in use have fewer: raise pretraining.num_coordinates or discovery.num_crops, "
            "or leave scale_stages out"
        )
