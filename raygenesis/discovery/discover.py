"""Discover: neighbours of reference patients, and their patterns into the store; each scan is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import read_catalogue
from raygenesis.archive.work import archive_size
from raygenesis.cluster import fan_out
from raygenesis.cluster.progress import Stopwatch, progress, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.discovery.alignment import AlignmentError
from raygenesis.discovery.coordinates import CoordinateError
from raygenesis.discovery.cubes import crop_cubes, origin_of, size_mm
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.neighbours import Search, build_index, find_neighbours, searcher, typical_distance
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
from raygenesis.discovery.patients import Patients, check_counts, choose_references, load_patients
from raygenesis.discovery.plan import patterns_of, plan_visits
from raygenesis.discovery.quality import (
    MOST_COORDINATES,
    MOST_REFERENCES,
    NUM_RANDOM,
    MeasuredVisit,
    likeness,
    quality_of,
    sampled_ranks,
)
from raygenesis.discovery.reference import Correspondence, Reference, choose_coordinates
from raygenesis.discovery.work import discover_work, index_work
from raygenesis.errors import ScanError, SettingsError
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.settings import Settings
from raygenesis.workspace.artifacts import EMBEDDINGS, PATTERNS
from raygenesis.workspace.manifest import PatternsManifest, Quality, ReferenceRecord
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

# So many more patients than references are asked, in case that some hold too few coordinates.
SPARE_REFERENCES = 32

Found = list[dict[str, list[int]]]


def discover(workspace: Workspace, settings: Settings, announce: Announce = unannounced) -> PatternsManifest:
    """Plan and write the pattern store; returns its manifest. Parts that are there already are not cropped again."""
    embedded = EMBEDDINGS.require(workspace.embeddings)
    included = {"discovery", "intensity", "seed", "validation_fraction"}
    chosen = settings.model_dump(mode="json", include=included, exclude={"discovery": {"num_crops"}})
    inputs = {"embeddings": embedded.fingerprint}
    stage = Stage(PATTERNS, workspace.patterns, {**chosen, "method": settings.index.method}, inputs)
    if (made := stage.finished()) is not None:
        say("discover", f"nothing to do: patterns are in {workspace.patterns}")
        return made
    scans = archive_size(workspace)
    announce([index_work(scans, settings), discover_work(settings)] if scans else [])
    watch = Stopwatch()
    patients = load_patients(workspace, settings)
    where = "that the archive has with scans large enough to crop"
    check_counts(patients.num_subjects(TRAINING), patients.num_subjects(VALIDATION), where, settings)
    embeddings = Embeddings(workspace.embeddings)
    least = settings.discovery.duplicate_distance * typical_distance(embeddings, patients, settings)
    numbers = choose_references(patients, embeddings, least, settings, SPARE_REFERENCES)
    if len(numbers) < settings.discovery.num_references:
        raise SettingsError(
            f"only {len(numbers)} of discovery.num_references={settings.discovery.num_references} references are no "
            "near-duplicates of each other: lower it or discovery.duplicate_distance"
        )
    references, numbers = _references(workspace, settings, patients, numbers)
    # What cannot fit was refused before anything is built.
    search = searcher(workspace, build_index(workspace, settings))
    found = _neighbours(settings, patients, embeddings, search, numbers, least)
    names = [{split: patients.names(members) for split, members in one.items()} for one in found]
    plan = plan_visits(names, _per_visit(settings), settings.discovery.patterns_per_part)
    with stage.claimed():
        quality = _quality(workspace, settings, patients, references, found)
        small = too_small(workspace, patients, settings)
        shared = (workspace, settings, references)
        outcomes, failures = write_parts(workspace.patterns, plan, _per_visit(settings), small, crop_part, *shared)
        chosen_sizes = settings.discovery
        sizes = StoreSizes(chosen_sizes.num_references, chosen_sizes.num_coordinates, chosen_sizes.num_neighbours)
        store = described(outcomes, len(failures), sizes, settings.discovery.cube_shape, watch.seconds)
        records = [
            ReferenceRecord(
                volume_id=one.row["volume_id"], source=one.row["source"],
                centres_mm=tuple(map(tuple, one.centres_mm.tolist())),
            )
            for one in references
        ]  # fmt: skip
        manifest = PatternsManifest(**vars(store), references=tuple(records), quality=quality)
        return finish_store(stage, manifest, failures)


def _neighbours(
    settings: Settings,
    patients: Patients,
    embeddings: Embeddings,
    search: Search,
    references: Sequence[int],
    least: float,
) -> Found:
    """Each reference's neighbours by split, itself the first of the training ones; `least`: nearer ones are copies."""
    discovery = settings.discovery
    found: Found = [{TRAINING: [number], VALIDATION: []} for number in references]
    for split, wanted in (
        (TRAINING, discovery.num_neighbours - 1), (VALIDATION, discovery.num_validation_neighbours),
    ):  # fmt: skip
        seen = [one[TRAINING] for one in found]
        if split == VALIDATION:  # no held-out scan is a copy of one that is learnt from, for whichever reference
            seen = [sorted({number for one in found for number in one[TRAINING]})] * len(found)
        picked = find_neighbours(patients, embeddings, search, references, split, wanted, least, seen)
        for one, numbers in zip(found, picked, strict=True):
            if len(numbers) < wanted:
                key = "num_neighbours" if split == TRAINING else "num_validation_neighbours"
                raise SettingsError(
                    f"only {len(numbers)} of {wanted} {split} neighbours are left when near-duplicates are counted "
                    f"once: lower discovery.{key} or discovery.duplicate_distance"
                )
            one[split] = one[split] + numbers
    return found


def _references(
    workspace: Workspace, settings: Settings, patients: Patients, numbers: Sequence[int]
) -> tuple[list[Reference], list[int]]:
    """The first R of the patients that hold C coordinates, and their numbers; the others are passed over, and told.

    Raises what the first of those raised, if there are fewer.
    """
    wanted = settings.discovery.num_references
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, patients.names(numbers))}
    references: list[Reference] = []
    kept, faults = [], []
    for number, name in zip(numbers, patients.names(numbers), strict=True):
        try:
            references.append(choose_coordinates(workspace.volumes, rows[name], len(references), settings))
        except (CoordinateError, ScanError) as error:
            faults.append(error)
            continue
        kept.append(number)
        if len(kept) == wanted:
            break
    if len(kept) < wanted:
        raise faults[0]
    for fault in faults:
        say("discover", f"another reference instead of one that does not fit: {fault}")
    return references, kept


def _quality(
    workspace: Workspace, settings: Settings, patients: Patients, references: Sequence[Reference], found: Found
) -> Quality:
    """How alike the patterns of neighbours are, and of random patients, on a sample."""
    visits = []
    for number, one in enumerate(found[:MOST_REFERENCES]):
        generator = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(6, number)))
        others = patients.eligible(TRAINING) & ~np.isin(patients.subjects, patients.subjects[one[TRAINING]])
        random = generator.permutation(np.flatnonzero(others))[:NUM_RANDOM]
        near = sampled_ranks(len(one[TRAINING]))
        pairs = [(rank, one[TRAINING][rank]) for rank in near] + [(-1, int(other)) for other in random]
        names = patients.names([patient for _, patient in pairs])
        visits += [(number, rank, name) for (rank, _), name in zip(pairs, names, strict=True)]
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, {name for *_, name in visits})}
    asked = [(number, rank, rows[name]) for number, rank, name in visits]
    compared = [(one, _anchors(one, workspace, settings)) for one in references[:MOST_REFERENCES]]
    measured: list[MeasuredVisit] = []
    with progress("quality", len(asked), "patients") as ticker:
        for visit in fan_out.each(_measure, asked, compared, workspace, settings):
            measured += visit
            ticker.advance()
    measured.sort(key=lambda visit: (visit.reference, visit.rank, visit.within))
    quality = quality_of(measured, settings.discovery.num_neighbours)
    like, unlike = quality.neighbours, quality.random
    if like.num_patients:
        compared_to = ", with no other patients to compare"
        if unlike.num_patients:
            compared_to = f", other random patients' by {unlike.within:.3f}"
        say(
            "discover",
            f"patterns of one class correlate with the reference's by {like.within:.3f}{compared_to}; "
            f"of different classes by {like.between:.3f}",
        )
    if quality.warning is not None:
        say("discover", f"warning: {quality.warning}")
    return quality


def _anchors(reference: Reference, workspace: Workspace, settings: Settings) -> NDArray[np.float32] | None:
    try:
        return _plain_cubes(reference.row, reference, workspace, settings)
    except ScanError:
        return None  # cropping tells of it


def _measure(
    asked: tuple[int, int, Mapping[str, Any]],
    references: Sequence[tuple[Reference, NDArray[np.float32] | None]],
    workspace: Workspace,
    settings: Settings,
) -> list[MeasuredVisit]:
    """Likeness of one patient's patterns to a reference's; nothing of a scan that is damaged."""
    number, rank, row = asked
    reference, anchors = references[number]
    if anchors is None:
        return []
    try:
        within, between = likeness(anchors, _plain_cubes(row, reference, workspace, settings))
    except ScanError:
        return []  # cropping tells of it
    return [MeasuredVisit(number, rank, within, between)]


def _plain_cubes(
    row: Mapping[str, Any], reference: Reference, workspace: Workspace, settings: Settings
) -> NDArray[np.float32]:
    """The first coordinates' cubes of a scan without jitter, [C, voxels]."""
    extent = np.array(settings.discovery.scales[0].extent_mm)
    correspondence = Correspondence(workspace.volumes, row, settings)
    centres = correspondence.centres_mm(reference)[:MOST_COORDINATES]
    boxes = [(origin_of(centre, extent, size_mm(row)), extent) for centre in centres]
    cubes = crop_cubes(workspace.volumes, row, boxes, settings.discovery.cube_shape, settings.intensity)
    return np.stack([cube.ravel() for cube in cubes])


def crop_part(part: int, workspace: Workspace, settings: Settings, references: Sequence[Reference]) -> PartOutcome:
    """Crop the patterns of one part and publish it (`write_planned`); returns what there is to say of it."""

    def plan_patterns(visits: Sequence[Visit], row: Mapping[str, Any], reasons: Reasons) -> list[dict[str, Any]]:
        correspondence = Correspondence(workspace.volumes, row, settings)
        patterns = []
        for visit in visits:
            try:
                centres = correspondence.centres_mm(references[visit["reference"]])
            except AlignmentError as error:
                reasons[row["volume_id"], visit["reference"]] = str(error)
                continue
            patterns += patterns_of(visit, row, centres, settings.discovery, settings.seed)
        return patterns

    return write_planned(part, workspace.patterns, workspace, settings, _per_visit(settings), plan_patterns)


def _per_visit(settings: Settings) -> int:
    return settings.discovery.num_coordinates * len(settings.discovery.scales)
