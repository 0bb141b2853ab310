"""Discover: neighbours of reference patients, and their patterns into the store; each scan is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.discovery.alignment import AlignmentError
from raygenesis.discovery.coordinates import CoordinateError
from raygenesis.discovery.embeddings import Embeddings, present_embeddings
from raygenesis.discovery.find_neighbours import find_neighbours
from raygenesis.discovery.group_shares import group_numbers, references_by_group
from raygenesis.discovery.neighbours import NeighbourFinder, Search, searcher, typical_distance
from raygenesis.discovery.patients import Patients, check_patients, load_patients
from raygenesis.discovery.pattern_boxes import patterns_of
from raygenesis.discovery.quality_sample import Neighbourhood, measure_quality
from raygenesis.discovery.references import Correspondence, Reference, choose_coordinates, choose_references
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
from raygenesis.discovery.work import discover_work
from raygenesis.errors import ScanError, SettingsError
from raygenesis.patterns.schema import TRAINING, VALIDATION, PlannedPattern
from raygenesis.settings import DiscoverySettings, IntensitySettings, Settings
from raygenesis.text.amounts import several
from raygenesis.workspace.artifacts import ARCHIVE, INDEX, NEIGHBOURS, PATTERNS
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import PatternsManifest, ReferenceRecord
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

# So many more patients than references are asked, in case that some hold too few coordinates.
SPARE_REFERENCES = 32


def discover(workspace: Workspace, settings: Settings, announce: Announce = unannounced) -> PatternsManifest:
    """Plan and write the pattern store; returns its manifest. Parts that are there already are not cropped again."""
    embedded = present_embeddings(workspace)
    discovery, intensity, seed = settings.discovery, settings.intensity, settings.seed
    included = {"discovery", "intensity", "seed", "validation_fraction"}
    chosen = settings.model_dump(mode="json", include=included, exclude={"discovery": {"num_crops"}})
    inputs = {"embeddings": embedded.fingerprint, "archive": ARCHIVE.require(workspace.archive).fingerprint}
    if (near := NEIGHBOURS.read(workspace.neighbours)) is not None:
        inputs["neighbours"] = near.fingerprint
    later = frozenset({"neighbours", "archive"})
    stage = Stage(PATTERNS, workspace.patterns, {**chosen, "method": settings.index.method}, inputs, later=later)
    if (made := stage.finished()) is not None:
        say("discover", f"nothing to do: patterns are in {workspace.patterns}")
        return made
    patients = load_patients(workspace, discovery, settings.validation_fraction, seed)
    check_patients(patients, discovery)
    near = find_neighbours(workspace, settings, announce)
    stage = replace(stage, inputs=inputs | {"neighbours": near.fingerprint})
    announce([discover_work(discovery)])
    watch = Stopwatch()
    groups = group_numbers(workspace.neighbours, patients)
    shares = references_by_group(patients, groups, discovery)
    search = searcher(workspace, INDEX.require(workspace.index), settings.index)
    searched = NeighbourhoodSearch(workspace, search, discovery, intensity, seed)
    neighbourhoods = searched.of_groups(patients, groups, shares)
    names = [
        {TRAINING: patients.names(one.training), VALIDATION: patients.names(one.validation)} for one in neighbourhoods
    ]
    per_visit = discovery.num_coordinates * len(discovery.scales)
    plan = plan_visits(names, per_visit, discovery.patterns_per_part, most_in_memory(discovery.cube_shape))
    references = [one.reference for one in neighbourhoods]
    plan_patterns = PatternPlanner(workspace.volumes, references, discovery, intensity, seed)
    store = StoreTask(workspace.patterns, workspace, discovery.cube_shape, intensity, per_visit, plan_patterns)
    with stage.claimed():
        quality = measure_quality(workspace, neighbourhoods, discovery, intensity, seed)
        small = too_small(workspace.catalog, patients, discovery.scales)
        records, failures = write_store(store, plan, small)
        sizes = StoreSizes(discovery.num_references, discovery.num_coordinates, discovery.num_neighbours)
        parts = manifest_of_parts(records, len(failures), sizes, discovery.cube_shape, watch.seconds)
        chosen_ones = tuple(_record(reference) for reference in references)
        manifest = PatternsManifest(**vars(parts), references=chosen_ones, references_by_group=shares, quality=quality)
        return finish_store(stage, manifest, failures)


@dataclass(frozen=True)
class NeighbourhoodSearch:
    """Chooses references and their neighbours within the groups of an archive."""

    workspace: Workspace
    search: Search
    discovery: DiscoverySettings
    intensity: IntensitySettings
    seed: int

    def of_groups(self, patients: Patients, groups: NDArray[np.int64], shares: Sequence[int]) -> list[Neighbourhood]:
        """The references and their neighbours: of each group so many.

        Raises SettingsError where a group has fewer than are asked for.
        """
        found: list[Neighbourhood] = []
        for group, share in enumerate(shares):
            if share:
                found += self._of_group(patients.among(groups == group), share, len(found))
        return found

    def _of_group(self, patients: Patients, number: int, first: int) -> list[Neighbourhood]:
        """References numbered from `first` on, and their neighbours, among the patients of a group."""
        discovery = self.discovery.model_copy(update={"num_references": number})
        embeddings = Embeddings(self.workspace.embeddings)
        least = discovery.duplicate_distance * typical_distance(embeddings, patients, self.seed)
        numbers = choose_references(patients, embeddings, least, discovery, self.seed, SPARE_REFERENCES)
        if len(numbers) < number:
            raise SettingsError(
                f"only {len(numbers)} of discovery.num_references={number} references are no near-duplicates of each "
                "other: lower it or discovery.duplicate_distance"
            )
        references = self._fitting(patients.names(numbers), number, first)
        number_of = dict(zip(patients.names(numbers), numbers, strict=True))
        numbers = [number_of[reference.row["volume_id"]] for reference in references]
        members = _members(NeighbourFinder(patients, embeddings, self.search, least), numbers, discovery)
        return [Neighbourhood(one, patients, *both) for one, both in zip(references, members, strict=True)]

    def _fitting(self, names: Sequence[str], number: int, first: int) -> list[Reference]:
        """The first so many of the volumes that hold C coordinates; a line is printed for each that is passed over.

        Raises what the first of those raised, if there are fewer.
        """
        rows = {row["volume_id"]: row for row in read_catalogue(self.workspace.catalog, names)}
        chosen = self.discovery, self.intensity, self.seed
        references: list[Reference] = []
        faults: list[CoordinateError | ScanError] = []
        for name in names:
            try:
                place = first + len(references)
                references.append(choose_coordinates(self.workspace.volumes, rows[name], place, *chosen))
            except (CoordinateError, ScanError) as error:
                faults.append(error)
            if len(references) == number:
                break
        if len(references) < number:
            raise faults[0]
        for fault in faults:
            say("discover", f"another reference instead of one that does not fit: {fault}")
        return references


def _members(
    finder: NeighbourFinder, references: Sequence[int], discovery: DiscoverySettings
) -> list[tuple[list[int], list[int]]]:
    """Numbers of each reference's training neighbours, itself the first, and of its held-out ones."""
    others = finder.find(references, TRAINING, discovery.num_neighbours - 1, [[number] for number in references])
    num_patients = finder.patients.num_subjects(TRAINING) - 1  # beside the reference
    _check_members(others, discovery.num_neighbours - 1, TRAINING, num_patients, discovery)
    training = [[number, *members] for number, members in zip(references, others, strict=True)]
    # No held-out scan is a copy of one that is learnt from, for whichever reference.
    learnt_from = sorted({number for members in training for number in members})
    wanted = discovery.num_validation_neighbours
    validation = finder.find(references, VALIDATION, wanted, [learnt_from] * len(references))
    _check_members(validation, wanted, VALIDATION, finder.patients.num_subjects(VALIDATION), discovery)
    return list(zip(training, validation, strict=True))


def _check_members(
    members: Sequence[Sequence[int]], wanted: int, split: str, num_patients: int, discovery: DiscoverySettings
) -> None:
    """Raise SettingsError if a reference has fewer neighbours than are wanted of the patients of a split."""
    found = min(map(len, members))
    if found >= wanted:
        return
    if split == TRAINING:
        key, value = f"num_neighbours={discovery.num_neighbours} includes the reference", f"num_neighbours={found + 1}"
    else:
        key, value = f"num_validation_neighbours={wanted}", f"num_validation_neighbours={found}"
    raise SettingsError(
        f"{found} distinct {split} neighbours found, {wanted} needed (discovery.{key}). Dropped as near-duplicates: "
        f"{several(num_patients - found, 'patients')}. If they are different patients, lower "
        f"discovery.duplicate_distance ({discovery.duplicate_distance:g}); otherwise give discovery.{value}"
    )


@dataclass(frozen=True)
class PatternPlanner:
    """Plans the patterns of a scan (a `Planner`). volumes: the folder of the archive's volumes."""

    volumes: Place
    references: Sequence[Reference]
    discovery: DiscoverySettings
    intensity: IntensitySettings
    seed: int

    def __call__(self, visits: Sequence[Visit], row: CatalogueRow, reasons: Reasons) -> list[PlannedPattern]:
        correspondence = Correspondence(self.volumes, row, self.discovery, self.intensity)
        patterns = []
        for visit in visits:
            try:
                centres = correspondence.centres_mm(self.references[visit["reference"]])
            except AlignmentError as error:
                reasons[row["volume_id"], visit["reference"]] = str(error)
                continue
            patterns += patterns_of(visit, row, centres, self.discovery, self.seed)
        return patterns


def _record(reference: Reference) -> ReferenceRecord:
    centres = tuple(map(tuple, reference.centres_mm.tolist()))
    return ReferenceRecord(volume_id=reference.row["volume_id"], source=reference.row["source"], centres_mm=centres)
