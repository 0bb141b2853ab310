"""Discover: neighbours of reference patients, and their patterns into the store; each scan is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from numpy.typing import NDArray

from raygenesis import cluster
from raygenesis.archive.catalogue import FAILURES, read_catalogue
from raygenesis.archive.cells import DTYPE, STEPS, encode
from raygenesis.archive.source import read_coarse
from raygenesis.config import Settings
from raygenesis.discovery.coordinates import CoordinateError, candidates, largest_extent, spread
from raygenesis.discovery.crop import crop_cube, size_mm
from raygenesis.discovery.neighbours import (
    Patients,
    build_index,
    check_counts,
    choose_references,
    find_neighbours,
    load_patients,
)
from raygenesis.discovery.plan import plan_patterns
from raygenesis.errors import ScanError
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import part_path, write_part
from raygenesis.progress import mib, progress, say
from raygenesis.workspace import Stage, Stopwatch, Workspace, manifest_of, write_table


def discover(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Plan and write the pattern store; returns its manifest. Parts that are there already are not cropped again."""
    index = build_index(workspace, settings)
    chosen = settings.model_dump(mode="json", include={"discovery", "intensity", "seed", "validation_fraction"})
    stage = Stage(workspace.patterns, {**chosen, "method": settings.index.method}, {"index": index["fingerprint"]})
    if stage.is_finished():
        say("discover", f"nothing to do: patterns are in {workspace.patterns}")
        return manifest_of(workspace.patterns, "discover")
    watch = Stopwatch()
    plan, references, failures = _plan(workspace, settings, index)
    with stage.claimed():
        write_table(workspace.patterns / "plan.parquet", plan, row_group_size=4096)
        outcomes = _crop_parts(workspace, settings, plan)
        failures += [failure for outcome in outcomes for failure in outcome["failures"]]
        write_table(workspace.patterns / "failures.parquet", pa.Table.from_pylist(failures, FAILURES))
        (workspace.patterns / "plan.parquet").unlink()
        manifest = _finish(stage, workspace, settings, outcomes, references, failures, watch)
        _summarise(manifest, failures, workspace)
        return manifest


def _plan(
    workspace: Workspace, settings: Settings, index: Mapping[str, Any]
) -> tuple[pa.Table, list[dict[str, Any]], list[dict[str, str]]]:
    """The plan, what is told of each reference, and the scans that are too small."""
    patients = load_patients(workspace, settings)
    where = "that the archive has with scans large enough to crop"
    check_counts(patients.num_subjects(TRAINING), patients.num_subjects(VALIDATION), where, settings)
    anchors = choose_references(patients, settings)
    shards = {split: [workspace.index / name for name in names] for split, names in index["shards"].items()}
    found = [
        {
            split: [patients.rows[n] for n in find_neighbours(patients, split, anchor, shards[split], settings)]
            for split in (TRAINING, VALIDATION)
        }
        for anchor in anchors
    ]
    references = [patients.rows[anchor] for anchor in anchors]
    centres = [_coordinates(workspace, row, number, settings) for number, row in enumerate(references)]
    plan = plan_patterns(references, centres, found, settings.discovery, settings.seed)
    described = [
        {"volume_id": row["volume_id"], "source": row["source"], "centres_mm": centre.tolist()}
        for row, centre in zip(references, centres, strict=True)
    ]
    return plan, described, _too_small(patients, settings)


def _too_small(patients: Patients, settings: Settings) -> list[dict[str, str]]:
    """Failure rows of the scans that cannot hold the largest crop."""
    reach = _mm(np.array(largest_extent(settings.discovery.scales)))
    return [
        {
            "source": patients.rows[number]["source"],
            "reason": f"{_mm(size_mm(patients.rows[number]))} mm is smaller than the largest crop, {reach} mm "
            "(discovery.scales)",
        }
        for number in np.flatnonzero(~patients.is_roomy)
    ]


def _coordinates(
    workspace: Workspace, row: Mapping[str, Any], number: int, settings: Settings
) -> NDArray[np.float64]:
    """The coordinates of one reference, in mm from its corner."""
    size = size_mm(row)
    shape = [-(-side // factor) for side, factor in zip(row["shape"], row["levels"][-1], strict=True)]
    scan = read_coarse(workspace.volumes, row, shape, settings.intensity)
    places = candidates(scan, size / np.array(shape), size, settings.discovery)
    generator = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(2, number)))
    try:
        return spread(places, settings.discovery.num_coordinates, settings.discovery.min_distance_mm, generator)
    except CoordinateError as error:
        raise CoordinateError(f"reference scan {row['source']} ({_mm(size)} mm): {error}") from None


def _crop_parts(workspace: Workspace, settings: Settings, plan: pa.Table) -> list[dict[str, Any]]:
    """Crop and write every part, one task each; returns what each task says of its part."""
    cluster.connect()
    parts = np.unique(plan["part"].to_numpy())
    arguments = {"workspace": workspace, "settings": settings}
    tasks = ray.data.from_items([{"part": int(part)} for part in parts], override_num_blocks=len(parts))
    outcomes = []
    with progress("discover", plan.num_rows, "patterns") as ticker:
        for outcome in tasks.map(crop_part, fn_kwargs=arguments).iter_rows():
            outcomes.append(outcome)
            ticker.advance(outcome["planned"])
    return sorted(outcomes, key=lambda outcome: outcome["part"])


def crop_part(task: Mapping[str, int], workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Crop the patterns of one part, volume by volume, and publish it. A damaged volume loses its patterns."""
    part = int(task["part"])
    plan = pq.read_table(workspace.patterns / "plan.parquet", filters=[("part", "=", part)])
    path = part_path(workspace.patterns, part)
    planned = plan.to_pylist()
    catalogue = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, {p["volume_id"] for p in planned})}
    failures: dict[str, str] = {}
    if not path.is_file():
        cells = _crop_cells(planned, catalogue, failures, workspace, settings)
        kept = [{**pattern, "cube": cell} for pattern, cell in zip(planned, cells, strict=True) if cell]
        write_part(workspace.patterns, part, pa.Table.from_pylist(kept, PATTERN))
    stored = pq.read_table(path, columns=["split", "volume_id"])
    lost = set(catalogue) - set(stored["volume_id"].to_pylist())
    return {
        "part": part,
        "planned": len(planned),
        "patterns": stored.num_rows,
        "validation": stored["split"].to_pylist().count(VALIDATION),
        "volumes": len(catalogue) - len(lost),
        "failures": [
            {"source": catalogue[volume]["source"], "reason": failures.get(volume, "damaged when it was cropped")}
            for volume in sorted(lost)
        ],
    }


def _crop_cells(
    planned: Sequence[Mapping[str, Any]],
    catalogue: Mapping[str, Mapping[str, Any]],
    failures: dict[str, str],
    workspace: Workspace,
    settings: Settings,
) -> list[bytes]:
    """The encoded cube of each planned pattern, empty for damaged volumes, which are added to `failures`."""
    cells = [b""] * len(planned)
    # One scan after the other, so that its chunks are decoded once and stay in the cache.
    for number in sorted(range(len(planned)), key=lambda n: planned[n]["volume_id"]):
        pattern = planned[number]
        volume_id = pattern["volume_id"]
        if volume_id in failures:
            continue
        try:
            cube = crop_cube(
                workspace.volumes, catalogue[volume_id], pattern["origin_mm"], pattern["extent_mm"],
                settings.discovery.cube_shape, settings.intensity,
            )
            cells[number] = encode(cube)
        except ScanError as error:
            failures[volume_id] = str(error)
    return [b"" if pattern["volume_id"] in failures else cell for pattern, cell in zip(planned, cells, strict=True)]


def _finish(
    stage: Stage,
    workspace: Workspace,
    settings: Settings,
    outcomes: Sequence[Mapping[str, Any]],
    references: list[dict[str, Any]],
    failures: Sequence[Mapping[str, str]],
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
    raw_bytes = total["patterns"] * int(np.prod(shape)) * DTYPE.itemsize
    return stage.finish(
        counts, watch.seconds, cube_shape=list(shape), cube_dtype=DTYPE.str, cube_steps=STEPS,
        raw_bytes=raw_bytes, references=references,
    )


def _summarise(manifest: Mapping[str, Any], failures: Sequence[Mapping[str, str]], workspace: Workspace) -> None:
    counts = manifest["counts"]
    for failure in failures[:5]:
        say("discover", f"skipped {failure['source']}: {failure['reason']}")
    say(
        "discover",
        f"{counts['patterns'] - counts['validation']} patterns and {counts['validation']} held-out ones of "
        f"{counts['references'] * counts['coordinates']} classes from {counts['volumes']} scans, "
        f"{len(failures)} failures, {mib(manifest['raw_bytes'])} raw, {mib(manifest['bytes'])} stored, "
        f"{manifest['seconds']:.1f} s → {workspace.patterns}",
    )


def _mm(size: NDArray[np.float64]) -> str:
    return "×".join(f"{side:.0f}" for side in size)
