"""Discover: neighbours of reference patients, and their patterns into the store; each scan is read once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raygenesis import cluster
from raygenesis.archive.catalogue import FAILURES, read_catalogue
from raygenesis.archive.cells import DTYPE, STEPS, encode
from raygenesis.config import Settings
from raygenesis.discovery.alignment import AlignmentError
from raygenesis.discovery.coordinates import largest_extent
from raygenesis.discovery.crop import crop_cubes, place, size_mm
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.neighbours import Search, build_index, find_neighbours, searcher, typical_distance
from raygenesis.discovery.patients import Patients, check_counts, choose_references, load_patients
from raygenesis.discovery.plan import patterns_of, plan_visits
from raygenesis.discovery.quality import MOST_COORDINATES, MOST_REFERENCES, NUM_RANDOM, likeness, sampled_ranks
from raygenesis.discovery.quality import summary as quality_summary
from raygenesis.discovery.quality import warning as quality_warning
from raygenesis.discovery.reference import Correspondence, Reference, choose_coordinates, mm
from raygenesis.errors import ScanError, SettingsError
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import checksum, is_sealed, part_path, write_part
from raygenesis.progress import mib, progress, say
from raygenesis.workspace import Stage, Stopwatch, Workspace, manifest_of, write_table

# Cubes of one scan made at a time, so that many references do not fill the memory.
MOST_BOXES = 256

Found = list[dict[str, list[int]]]


def discover(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Plan and write the pattern store; returns its manifest. Parts that are there already are not cropped again."""
    embedded = manifest_of(workspace.embeddings, "embed")
    chosen = settings.model_dump(mode="json", include={"discovery", "intensity", "seed", "validation_fraction"})
    inputs = {"embeddings": embedded["fingerprint"]}
    stage = Stage(workspace.patterns, {**chosen, "method": settings.index.method}, inputs)
    if stage.is_finished():
        say("discover", f"nothing to do: patterns are in {workspace.patterns}")
        return manifest_of(workspace.patterns, "discover")
    watch = Stopwatch()
    patients = load_patients(workspace, settings)
    where = "that the archive has with scans large enough to crop"
    check_counts(patients.num_subjects(TRAINING), patients.num_subjects(VALIDATION), where, settings)
    embeddings = Embeddings(workspace.embeddings)
    least = settings.discovery.duplicate_distance * typical_distance(embeddings, patients, settings)
    numbers = choose_references(patients, embeddings, least, settings)
    if len(numbers) < settings.discovery.num_references:
        raise SettingsError(
            f"only {len(numbers)} of discovery.num_references={settings.discovery.num_references} references are no "
            "near-duplicates of each other: lower it or discovery.duplicate_distance"
        )
    references = _references(workspace, settings, patients.names(numbers))
    # What cannot fit was refused before anything is built.
    search = searcher(workspace, build_index(workspace, settings))
    found = _neighbours(settings, patients, embeddings, search, numbers, least)
    names = [{split: patients.names(members) for split, members in one.items()} for one in found]
    discovery = settings.discovery
    per_visit = discovery.num_coordinates * len(discovery.scales)
    plan = plan_visits(names, per_visit, discovery.patterns_per_part)
    with stage.claimed():
        quality = _quality(workspace, settings, patients, references, found)
        write_table(workspace.patterns / "plan.parquet", plan)
        failures = _too_small(workspace, patients, settings)
        outcomes = _crop_parts(workspace, settings, plan, references, per_visit)
        failures += [failure for outcome in outcomes for failure in outcome["failures"]]
        write_table(workspace.patterns / "failures.parquet", pa.Table.from_pylist(failures, FAILURES))
        (workspace.patterns / "plan.parquet").unlink()
        manifest = _finish(stage, settings, outcomes, references, failures, quality, watch)
    _summarise(manifest, failures, workspace)
    return manifest


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


def _references(workspace: Workspace, settings: Settings, names: Sequence[str]) -> list[Reference]:
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, names)}
    return [
        choose_coordinates(workspace.volumes, rows[name], number, settings) for number, name in enumerate(names)
    ]


def _too_small(workspace: Workspace, patients: Patients, settings: Settings) -> list[dict[str, str]]:
    """Failure rows of the scans that cannot hold the largest crop."""
    reach = mm(np.array(largest_extent(settings.discovery.scales)))
    names = patients.names(np.flatnonzero(~patients.is_roomy & patients.is_there))
    return [
        {
            "source": row["source"],
            "reason": f"{mm(size_mm(row))} mm is smaller than the largest crop, {reach} mm (discovery.scales)",
        }
        for row in read_catalogue(workspace.catalog, names)
    ]


def _quality(
    workspace: Workspace, settings: Settings, patients: Patients, references: Sequence[Reference], found: Found
) -> dict[str, Any]:
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
    told = []
    with progress("quality", len(asked), "patients") as ticker:
        for measured in cluster.each(_measure, asked, compared, workspace, settings):
            told += measured
            ticker.advance()
    told.sort(key=lambda visit: (visit["reference"], visit["rank"], visit["within"]))
    quality = quality_summary(told, settings.discovery.num_neighbours)
    near, random = quality["neighbours"], quality["random"]
    if near["num_patients"]:
        others = ", with no other patients to compare"
        if random["num_patients"]:
            others = f", other random patients' by {random['within']:.3f}"
        say(
            "discover",
            f"patterns of one class correlate with the reference's by {near['within']:.3f}{others}; "
            f"of different classes by {near['between']:.3f}",
        )
    if (sentence := quality_warning(quality)) is not None:
        say("discover", f"warning: {sentence}")
    return {**quality, "warning": sentence}


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
) -> list[dict[str, Any]]:
    """Likeness of one patient's patterns to a reference's; nothing of a scan that is damaged."""
    number, rank, row = asked
    reference, anchors = references[number]
    if anchors is None:
        return []
    try:
        within, between = likeness(anchors, _plain_cubes(row, reference, workspace, settings))
    except ScanError:
        return []  # cropping tells of it
    return [{"reference": number, "rank": rank, "within": within, "between": between}]


def _plain_cubes(
    row: Mapping[str, Any], reference: Reference, workspace: Workspace, settings: Settings
) -> NDArray[np.float32]:
    """The first coordinates' cubes of a scan without jitter, [C, voxels]."""
    extent = np.array(settings.discovery.scales[0].extent_mm)
    correspondence = Correspondence(workspace.volumes, row, settings)
    centres = correspondence.centres_mm(reference)[:MOST_COORDINATES]
    boxes = [(place(centre, extent, size_mm(row)), extent) for centre in centres]
    cubes = crop_cubes(workspace.volumes, row, boxes, settings.discovery.cube_shape, settings.intensity)
    return np.stack([cube.ravel() for cube in cubes])


def _crop_parts(
    workspace: Workspace, settings: Settings, plan: pa.Table, references: Sequence[Reference], per_visit: int
) -> list[dict[str, Any]]:
    """Crop and write every part, one task each; returns what each task says of its part."""
    parts = np.unique(plan["part"].to_numpy()).tolist()
    outcomes = []
    with progress("discover", plan.num_rows * per_visit, "patterns") as ticker:
        for outcome in cluster.each(crop_part, parts, workspace, settings, list(references)):
            outcomes.append(outcome)
            ticker.advance(outcome["planned"])
    return sorted(outcomes, key=lambda outcome: outcome["part"])


def crop_part(
    part: int, workspace: Workspace, settings: Settings, references: Sequence[Reference]
) -> dict[str, Any]:
    """Crop the patterns of one part, volume by volume, and publish it. A damaged volume loses its patterns."""
    plan = pq.read_table(workspace.patterns / "plan.parquet", filters=[("part", "=", part)])
    path = part_path(workspace.patterns, part)
    visits = sorted(plan.to_pylist(), key=lambda visit: visit["volume_id"])
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, {v["volume_id"] for v in visits})}
    failures: dict[tuple[str, int | None], str] = {}
    if not is_sealed(path):
        patterns: list[dict[str, Any]] = []
        for volume_id, there in itertools.groupby(visits, key=lambda visit: visit["volume_id"]):
            try:
                patterns += _cropped(list(there), rows[volume_id], workspace, settings, references, failures)
            except ScanError as error:
                failures[volume_id, None] = str(error)
        patterns.sort(key=lambda row: (row["rank"], row["reference"], row["coordinate"], row["scale"]))
        write_part(workspace.patterns, part, pa.Table.from_pylist(patterns, PATTERN))
    stored = pq.read_table(path, columns=["split", "volume_id", "reference"])
    there = set(zip(stored["volume_id"].to_pylist(), stored["reference"].to_pylist(), strict=True))
    return {
        "part": part,
        "planned": len(visits) * settings.discovery.num_coordinates * len(settings.discovery.scales),
        "patterns": stored.num_rows,
        "validation": stored["split"].to_pylist().count(VALIDATION),
        "volumes": len({volume for volume, _ in there}),
        "checksum": checksum(path),
        "failures": _failures(visits, there, rows, failures),
    }


def _failures(
    visits: Sequence[Mapping[str, Any]],
    there: set[tuple[str, int]],
    rows: Mapping[str, Mapping[str, Any]],
    reasons: Mapping[tuple[str, int | None], str],
) -> list[dict[str, str]]:
    """Failure rows of the visits that left nothing: one for a scan that is damaged, one each for those not aligned."""
    stored = {volume for volume, _ in there}
    out = {}
    for visit in visits:
        volume, reference = visit["volume_id"], visit["reference"]
        if (volume, reference) in there:
            continue
        is_aligned = volume not in stored and (volume, reference) not in reasons
        reason = reasons.get((volume, None), "damaged when it was cropped")
        if not is_aligned:
            said = reasons.get((volume, reference), "it could not be aligned when it was cropped")
            reason = f"{said} (reference {reference})"
        out[volume, None if is_aligned else reference] = {"source": rows[volume]["source"], "reason": reason}
    return list(out.values())


def _cropped(
    visits: Sequence[Mapping[str, Any]],
    row: Mapping[str, Any],
    workspace: Workspace,
    settings: Settings,
    references: Sequence[Reference],
    failures: dict[tuple[str, int | None], str],
) -> list[dict[str, Any]]:
    """The patterns of one scan for all its visits, with their encoded cubes. Raises ScanError if it is damaged.

    A visit whose registration fails goes to `failures`, by volume and reference.
    """
    correspondence = Correspondence(workspace.volumes, row, settings)
    patterns = []
    for visit in visits:
        try:
            centres = correspondence.centres_mm(references[visit["reference"]])
        except AlignmentError as error:
            failures[row["volume_id"], visit["reference"]] = str(error)
            continue
        patterns += patterns_of(visit, row, centres, settings.discovery, settings.seed)
    for start in range(0, len(patterns), MOST_BOXES):
        some = patterns[start : start + MOST_BOXES]
        boxes = [(pattern["origin_mm"], pattern["extent_mm"]) for pattern in some]
        cubes = crop_cubes(workspace.volumes, row, boxes, settings.discovery.cube_shape, settings.intensity)
        for pattern, cube in zip(some, cubes, strict=True):
            pattern["cube"] = encode(cube)
    return patterns


def _finish(
    stage: Stage,
    settings: Settings,
    outcomes: Sequence[Mapping[str, Any]],
    references: Sequence[Reference],
    failures: Sequence[Mapping[str, str]],
    quality: Mapping[str, Any],
    watch: Stopwatch,
) -> dict[str, Any]:
    total = {key: sum(outcome[key] for outcome in outcomes) for key in ("patterns", "validation", "volumes")}
    counts = {
        **total,
        "parts": len(outcomes),
        "failures": len(failures),
        "references": settings.discovery.num_references,
        "coordinates": settings.discovery.num_coordinates,
        "neighbours": settings.discovery.num_neighbours,
    }
    shape = settings.discovery.cube_shape
    described = [
        {"volume_id": one.row["volume_id"], "source": one.row["source"], "centres_mm": one.centres_mm.tolist()}
        for one in references
    ]
    raw_bytes = total["patterns"] * int(np.prod(shape)) * DTYPE.itemsize
    return stage.finish(
        counts, watch.seconds, cube_shape=list(shape), cube_dtype=DTYPE.str, cube_steps=STEPS, raw_bytes=raw_bytes,
        references=described, quality=quality, parts=[outcome["checksum"] for outcome in outcomes],
    )  # fmt: skip


def _summarise(manifest: Mapping[str, Any], failures: Sequence[Mapping[str, str]], workspace: Workspace) -> None:
    counts = manifest["counts"]
    for failure in failures[:5]:
        say("discover", f"skipped {failure['source']}: {failure['reason']}")
    rate = counts["patterns"] / max(manifest["seconds"], 1e-9)
    say(
        "discover",
        f"{counts['patterns'] - counts['validation']} patterns and {counts['validation']} held-out ones of "
        f"{counts['references'] * counts['coordinates']} classes from {counts['volumes']} scans, "
        f"{len(failures)} failures, {mib(manifest['raw_bytes'])} raw, {mib(manifest['bytes'])} stored, "
        f"{manifest['seconds']:.1f} s ({rate:.0f} patterns/s) → {workspace.patterns}",
    )
