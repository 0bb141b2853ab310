"""Crop: random crops of every scan into a store of their own, for the pretext tasks that need no discovery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raygenesis.archive.catalogue import CatalogueRow, hash_order
from raygenesis.archive.coarse import read_coarse
from raygenesis.archive.store import level_shape
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.discovery.coordinates import NO_PLACE, candidates, largest_extent
from raygenesis.discovery.cubes import size_mm
from raygenesis.discovery.patients import Patients, load_scans
from raygenesis.discovery.pattern_boxes import MOST_CROPS, crops_of
from raygenesis.discovery.store_writer import (
    Reasons,
    StoreSizes,
    StoreTask,
    finish_store,
    manifest_of_parts,
    most_in_memory,
    too_small,
    write_store,
)
from raygenesis.discovery.visits import Visit, plan_visits
from raygenesis.discovery.work import crop_work, crops_per_scan
from raygenesis.errors import ScanError, SettingsError, WorkspaceError
from raygenesis.patterns.schema import TRAINING, UNLABELLED, VALIDATION, PlannedPattern
from raygenesis.patterns.writer import PartRecord
from raygenesis.settings import DiscoverySettings, IntensitySettings, Scale, Settings
from raygenesis.text.amounts import sides
from raygenesis.workspace.artifacts import ARCHIVE, CROPS
from raygenesis.workspace.files import Place, remove_tree
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
    scans = load_scans(workspace.catalog, settings.discovery, settings.validation_fraction, settings.seed)
    names = {
        split: _in_order(scans, split, settings.discovery.scales, settings.seed) for split in (TRAINING, VALIDATION)
    }
    num_crops = _num_crops(settings.discovery, len(names[TRAINING]))
    discovery = settings.discovery.model_copy(update={"num_crops": num_crops})
    chosen = settings.model_copy(update={"discovery": discovery}).model_dump(
        mode="json", include={"discovery": MATTERS, "intensity": True, "seed": True, "validation_fraction": True}
    )
    stage = Stage(CROPS, workspace.crops, chosen, {"archive": archive.fingerprint})
    if (made := stage.finished()) is not None:
        say("crop", f"nothing to do: crops are in {workspace.crops}")
        return made
    announce([crop_work(discovery, len(names[TRAINING]), len(names[VALIDATION]))])
    plan = plan_visits([names], num_crops, discovery.patterns_per_part, most_in_memory(discovery.cube_shape))
    unlabelled = pa.array(np.full(plan.num_rows, UNLABELLED, np.int32))
    plan = plan.set_column(plan.column_names.index("reference"), "reference", unlabelled)
    plan_crops = CropPlanner(workspace.volumes, discovery, settings.intensity, settings.seed)
    store = StoreTask(workspace.crops, workspace, discovery.cube_shape, settings.intensity, num_crops, plan_crops)
    with stage.claimed():
        small = too_small(workspace.catalog, scans, discovery.scales)
        records, failures = write_store(store, plan, small)
        _check_any(workspace.crops, records, failures[len(small) :])
        sizes = StoreSizes(references=0, coordinates=num_crops, neighbours=len(names[TRAINING]))
        manifest = manifest_of_parts(records, len(failures), sizes, discovery.cube_shape, watch.seconds)
        return finish_store(stage, manifest, failures)


def _in_order(scans: Patients, split: str, scales: Sequence[Scale], seed: int) -> pa.StringArray:
    """Volume ids of a split's scans that can hold the largest crop, in an order that seed and ids alone decide.

    Raises WorkspaceError if there are none.
    """
    names = scans.ids.filter(pa.array(scans.eligible(split)))
    if not len(names):
        reach = sides(np.array(largest_extent(scales)))
        raise WorkspaceError(
            f"no {split} scan of the archive can hold the largest crop, {reach} mm: lower discovery.scales' extent_mm "
            "or add scans of other subjects"
        )
    return names.take(pa.array(hash_order(f"crop/{seed}/", names)))


def _num_crops(discovery: DiscoverySettings, num_training: int) -> int:
    """The number of crops of each scan. Raises SettingsError if it is more than can be numbered."""
    num_crops = crops_per_scan(discovery, num_training)
    if num_crops > MOST_CROPS:
        raise SettingsError(
            f"discovery.num_crops={num_crops} (of each of {num_training} training scans) is more than {MOST_CROPS}: "
            "give a smaller number"
        )
    return num_crops


@dataclass(frozen=True)
class CropPlanner:
    """Plans the random crops of a scan (a `Planner`). volumes: the folder of the archive's volumes."""

    volumes: Place
    discovery: DiscoverySettings
    intensity: IntensitySettings
    seed: int

    def __call__(self, visits: Sequence[Visit], row: CatalogueRow, reasons: Reasons) -> list[PlannedPattern]:
        scan = read_coarse(self.volumes, row, level_shape(row, -1), self.intensity)
        size = size_mm(row)
        step = size / np.array(scan.shape)
        places = candidates(scan, step, size, self.discovery)
        if not len(places):
            raise ScanError(NO_PLACE)
        (visit,) = visits
        return crops_of(visit, row, places, step, self.discovery, self.seed)


def _check_any(folder: Place, records: Sequence[PartRecord], failures: pa.Table) -> None:
    """Raise WorkspaceError, and leave nothing, if a split has no crops."""
    num_validation = sum(record.validation for record in records)
    num_training = sum(record.patterns for record in records) - num_validation
    for split, number in ((TRAINING, num_training), (VALIDATION, num_validation)):
        if not number:
            remove_tree(folder)
            raise WorkspaceError(
                f"no {split} scan gave a crop; of {len(failures)} scans that failed the first is "
                "{source}: {reason}".format(**failures[:1].to_pylist()[0])
            )
