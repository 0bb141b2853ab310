"""Crop: random crops of every scan into a store of their own, for the pretext tasks that need no discovery."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raygenesis.archive.catalogue import hash_order
from raygenesis.archive.source import read_coarse
from raygenesis.archive.store import level_shape
from raygenesis.archive.work import archive_size
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.discovery.coordinates import NO_PLACE, candidates, largest_extent
from raygenesis.discovery.cubes import size_mm
from raygenesis.discovery.parts import (
    PartOutcome,
    Reasons,
    StoreSizes,
    Visit,
    described,
    finish_store,
    too_small,
    write_parts,
    write_planned,
)
from raygenesis.discovery.patients import Patients, load_scans
from raygenesis.discovery.plan import MOST_CROPS, crops_of, plan_visits
from raygenesis.discovery.work import discover_work
from raygenesis.discovery.work import num_crops as num_crops_of
from raygenesis.errors import ScanError, SettingsError, WorkspaceError
from raygenesis.patterns.schema import TRAINING, UNLABELLED, VALIDATION
from raygenesis.settings import Settings
from raygenesis.text.amounts import sides
from raygenesis.workspace.artifacts import ARCHIVE, CROPS
from raygenesis.workspace.files import remove_tree
from raygenesis.workspace.manifest import StoreManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

# What of the discovery's settings makes a difference to random crops.
MATTERS = {"cube_shape", "scales", "num_crops", "min_content", "box", "patterns_per_part"}


def crop(workspace: Workspace, settings: Settings, announce: Announce = unannounced) -> StoreManifest:
    """Write random crops of every scan that can hold one; returns the manifest.

    Parts that are there already are not cropped again. Raises WorkspaceError if a split would have no crops.
    """
    archive = ARCHIVE.require(workspace.archive)
    watch = Stopwatch()
    scans = load_scans(workspace, settings)
    names = {split: _in_order(scans, split, settings) for split in (TRAINING, VALIDATION)}
    num_crops = _num_crops(settings, len(names[TRAINING]))
    settings = settings.model_copy(update={"discovery": settings.discovery.model_copy(update={"num_crops": num_crops})})
    chosen = settings.model_dump(
        mode="json", include={"discovery": MATTERS, "intensity": True, "seed": True, "validation_fraction": True}
    )
    stage = Stage(CROPS, workspace.crops, chosen, {"archive": archive.fingerprint})
    if (made := stage.finished()) is not None:
        say("crop", f"nothing to do: crops are in {workspace.crops}")
        return made
    if (size := archive_size(workspace)) is not None:
        announce([discover_work(settings, num_crops_of(size, settings), "crop")])
    plan = plan_visits([names], num_crops, settings.discovery.patterns_per_part)
    unlabelled = pa.array(np.full(plan.num_rows, UNLABELLED, np.int32))
    plan = plan.set_column(plan.column_names.index("reference"), "reference", unlabelled)
    with stage.claimed():
        small = too_small(workspace, scans, settings)
        outcomes, failures = write_parts(workspace.crops, plan, num_crops, small, crop_part, workspace, settings)
        _check_any(workspace, outcomes, failures[len(small) :])
        sizes = StoreSizes(references=0, coordinates=num_crops, neighbours=len(names[TRAINING]))
        manifest = described(outcomes, len(failures), sizes, settings.discovery.cube_shape, watch.seconds)
        return finish_store(stage, manifest, failures)


def _in_order(scans: Patients, split: str, settings: Settings) -> pa.StringArray:
    """Volume ids of a split's scans that can hold the largest crop, in an order that seed and ids alone decide.

    Raises WorkspaceError if there are none.
    """
    names = scans.ids.filter(pa.array(scans.eligible(split)))
    if not len(names):
        reach = sides(np.array(largest_extent(settings.discovery.scales)))
        raise WorkspaceError(
            f"no {split} scan of the archive can hold the largest crop, {reach} mm: lower discovery.scales' extent_mm "
            "or add scans of other subjects"
        )
    return names.take(pa.array(hash_order(f"crop/{settings.seed}/", names)))


def _num_crops(settings: Settings, num_training: int) -> int:
    """The number of crops of each scan. Raises SettingsError if it is more than can be numbered."""
    discovery = settings.discovery
    if (num_crops := discovery.num_crops) is None:
        wanted = discovery.num_references * discovery.num_neighbours * discovery.num_coordinates * len(discovery.scales)
        num_crops = math.ceil(wanted / num_training)
    if num_crops > MOST_CROPS:
        raise SettingsError(
            f"discovery.num_crops={num_crops} (of each of {num_training} training scans) is more than {MOST_CROPS}: "
            "give a smaller number"
        )
    return num_crops


def crop_part(part: int, workspace: Workspace, settings: Settings) -> PartOutcome:
    """Crop the scans of one part and publish it (`write_planned`); returns what there is to say of it."""

    def plan_crops(visits: Sequence[Visit], row: Mapping[str, Any], reasons: Reasons) -> list[dict[str, Any]]:
        scan = read_coarse(workspace.volumes, row, level_shape(row, -1), settings.intensity)
        size = size_mm(row)
        step = size / np.array(scan.shape)
        places = candidates(scan, step, size, settings.discovery)
        if not len(places):
            raise ScanError(NO_PLACE)
        (visit,) = visits
        return crops_of(visit, row, places, step, settings.discovery, settings.seed)

    num_crops = settings.discovery.num_crops
    assert num_crops is not None  # `crop` has put it in
    return write_planned(part, workspace.crops, workspace, settings, num_crops, plan_crops)


def _check_any(workspace: Workspace, outcomes: Sequence[PartOutcome], failures: pa.Table) -> None:
    """Raise WorkspaceError, and leave nothing, if a split has no crops."""
    num_validation = sum(outcome.validation for outcome in outcomes)
    num_training = sum(outcome.patterns for outcome in outcomes) - num_validation
    for split, number in ((TRAINING, num_training), (VALIDATION, num_validation)):
        if not number:
            remove_tree(workspace.crops)
            raise WorkspaceError(
                f"no {split} scan gave a crop; of {len(failures)} scans that failed the first is "
                "{source}: {reason}".format(**failures[:1].to_pylist()[0])
            )
