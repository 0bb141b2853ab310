"""Discover: neighbours of reference patients, and their patterns into the store; each scan is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue
from raygenesis.archive.work import archive_size
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.discovery.alignment import AlignmentError
from raygenesis.discovery.coordinates import CoordinateError
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.neighbours import NeighbourFinder, build_index, searcher, typical_distance
from raygenesis.discovery.patients import Patients, check_counts, load_patients
from raygenesis.discovery.pattern_boxes import patterns_of
from raygenesis.discovery.quality_sample import Neighbourhood, measure_quality
from raygenesis.discovery.references import Correspondence, Reference, choose_coordinates, choose_references
from raygenesis.discovery.store_writer import (
    Reasons,
    StoreSizes,
    StoreTask,
    finish_store,
    manifest_of_parts,
    too_small,
    write_store,
)
from raygenesis.discovery.visits import Visit, plan_visits
from raygenesis.discovery.work import discover_work, index_work
from raygenesis.errors import ScanError, SettingsError
from raygenesis.patterns.schema import TRAINING, VALIDATION, PlannedPattern
from raygenesis.settings import DiscoverySettings, IndexSettings, IntensitySettings, Settings
from raygenesis.workspace.artifacts import ARCHIVE, EMBEDDINGS, PATTERNS
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import PatternsManifest, ReferenceRecord
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

# So many more patients than references are asked, in case that some hold too few coordinates.
SPARE_REFERENCES = 32


def discover(workspace: Workspace, settings: Settings, announce: Announce = unannounced) -> PatternsManifest:
    """Plan and write the pattern store; returns its manifest. Parts that are there already are not cropped again."""
    embedded = EMBEDDINGS.require(workspace.embeddings)
    discovery, intensity, seed = settings.discovery, settings.intensity, settings.seed
    included = {"discovery", "intensity", "seed", "validation_fraction"}
    chosen = settings.model_dump(mode="json", include=included, exclude={"discovery": {"num_crops"}})
    inputs = {"embeddings": embedded.fingerprint}
    stage = Stage(PATTERNS, workspace.patterns, {**chosen, "method": settings.index.method}, inputs)
    if (made := stage.finished()) is not None:
        say("discover", f"nothing to do: patterns are in {workspace.patterns}")
        return made
    if (archive := ARCHIVE.read(workspace.archive)) is not None:
        index = index_work(archive_size(archive), settings.index, discovery, settings.autoencoder.latent_size)
        announce([index, discover_work(discovery)])
    watch = Stopwatch()
    patients = load_patients(workspace, discovery, settings.validation_fraction, seed)
    neighbourhoods = _neighbourhoods(workspace, patients, discovery, settings.index, intensity, seed)
    names = [
        {TRAINING: patients.names(one.training), VALIDATION: patients.names(one.validation)} for one in neighbourhoods
    ]
    per_visit = discovery.num_coordinates * len(discovery.scales)
    plan = plan_visits(names, per_visit, discovery.patterns_per_part)
    references = [one.reference for one in neighbourhoods]
    plan_patterns = PatternPlanner(workspace.volumes, references, discovery, intensity, seed)
    store = StoreTask(workspace.patterns, workspace, discovery.cube_shape, intensity, per_visit, plan_patterns)
    with stage.claimed():
        quality = measure_quality(workspace, patients, neighbourhoods, discovery, intensity, seed)
        small = too_small(workspace.catalog, patients, discovery.scales)
        records, failures = write_store(store, plan, small)
        sizes = StoreSizes(discovery.num_references, discovery.num_coordinates, discovery.num_neighbours)
        parts = manifest_of_parts(records, len(failures), sizes, discovery.cube_shape, watch.seconds)
        chosen_ones = tuple(_record(reference) for reference in references)
        return finish_store(stage, PatternsManifest(**vars(parts), references=chosen_ones, quality=quality), failures)


def _neighbourhoods(
    workspace: Workspace, patients: Patients, discovery: DiscoverySettings, index: IndexSettings,
    intensity: IntensitySettings, seed: int,
) -> list[Neighbourhood]:  # fmt: skip
    """The references and their neighbours. Raises SettingsError where the archive has fewer than are asked for."""
    where = "that the archive has with scans large enough to crop"
    check_counts(patients.num_subjects(TRAINING), patients.num_subjects(VALIDATION), where, discovery)
    embeddings = Embeddings(workspace.embeddings)
    least = discovery.duplicate_distance * typical_distance(embeddings, patients, seed)
    numbers = choose_references(patients, embeddings, least, discovery, seed, SPARE_REFERENCES)
    if len(numbers) < discovery.num_references:
        raise SettingsError(
            f"only {len(numbers)} of discovery.num_references={discovery.num_references} references are no "
            "near-duplicates of each other: lower it or discovery.duplicate_distance"
        )
    references = _fitting_references(workspace, patients.names(numbers), discovery, intensity, seed)
    number_of = dict(zip(patients.names(numbers), numbers, strict=True))
    numbers = [number_of[reference.row["volume_id"]] for reference in references]
    # What cannot fit was refused before anything is built.
    search = searcher(workspace, build_index(workspace, index, discovery, seed))
    members = _members(NeighbourFinder(patients, embeddings, search, least), numbers, discovery)
    return [Neighbourhood(reference, *both) for reference, both in zip(references, members, strict=True)]


def _members(
    finder: NeighbourFinder, references: Sequence[int], discovery: DiscoverySettings
) -> list[tuple[list[int], list[int]]]:
    """Numbers of each reference's training neighbours, itself the first, and of its held-out ones."""
    others = finder.find(references, TRAINING, discovery.num_neighbours - 1, [[number] for number in references])
    _check_members(others, discovery.num_neighbours - 1, TRAINING, "num_neighbours")
    training = [[number, *members] for number, members in zip(references, others, strict=True)]
    # No held-out scan is a copy of one that is learnt from, for whichever reference.
    learnt_from = sorted({number for members in training for number in members})
    wanted = discovery.num_validation_neighbours
    validation = finder.find(references, VALIDATION, wanted, [learnt_from] * len(references))
    _check_members(validation, wanted, VALIDATION, "num_validation_neighbours")
    return list(zip(training, validation, strict=True))


def _check_members(members: Sequence[Sequence[int]], wanted: int, split: str, key: str) -> None:
    """Raise SettingsError if a reference has fewer neighbours than are wanted."""
    lacking = [len(numbers) for numbers in members if len(numbers) < wanted]
    if lacking:
        raise SettingsError(
            f"only {lacking[0]} of {wanted} {split} neighbours are left when near-duplicates are counted once: lower "
            f"discovery.{key} or discovery.duplicate_distance"
        )


def _fitting_references(
    workspace: Workspace, names: Sequence[str], discovery: DiscoverySettings, intensity: IntensitySettings, seed: int
) -> list[Reference]:
    """The first R of the volumes that hold C coordinates; a line is printed for each that is passed over.

    Raises what the first of those raised, if there are fewer.
    """
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, names)}
    references: list[Reference] = []
    faults: list[CoordinateError | ScanError] = []
    for name in names:
        try:
            references.append(
                choose_coordinates(workspace.volumes, rows[name], len(references), discovery, intensity, seed)
            )
        except (CoordinateError, ScanError) as error:
            faults.append(error)
        if len(references) == discovery.num_references:
            break
    if len(references) < discovery.num_references:
        raise faults[0]
    for fault in faults:
        say("discover", f"another reference instead of one that does not fit: {fault}")
    return references


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
