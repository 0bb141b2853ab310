"""Discover: neighbours of reference patients, and their patterns into the store; each scan is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from numpy.typing import NDArray

from raygenesis import cluster
from raygenesis.archive.catalogue import FAILURES, read_catalogue, split_by_subject
from raygenesis.archive.cells import DTYPE, STEPS, encode
from raygenesis.archive.source import read_coarse
from raygenesis.config import Settings
from raygenesis.discovery.coordinates import CoordinateError, candidates, largest_extent, spread
from raygenesis.discovery.crop import crop_cube, size_mm
from raygenesis.discovery.embed import read_embeddings
from raygenesis.discovery.index import Neighbours, build_shard, exact_search, recall, search_shards
from raygenesis.discovery.plan import plan_patterns
from raygenesis.errors import ScanError, SettingsError
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import part_path, write_part
from raygenesis.progress import mib, progress, say
from raygenesis.workspace import Stage, Stopwatch, Workspace, manifest_of, write_table

RECALL_QUERIES = 100


def build_index(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """HNSW shards over the embeddings of training and of held-out volumes; returns the manifest with the recall.

    The two splits never share a shard, so a search in one cannot return the other.
    """
    embeddings = manifest_of(workspace.embeddings, "embed")
    chosen = settings.model_dump(mode="json", include={"index", "seed", "validation_fraction"})
    chosen["num_neighbours"] = settings.discovery.num_neighbours
    stage = Stage(workspace.index, chosen, {"embeddings": embeddings["fingerprint"]})
    if stage.is_finished():
        say("index", f"nothing to do: it is in {workspace.index}")
        return manifest_of(workspace.index, "discover")
    watch = Stopwatch()
    stage.start()
    cluster.connect()
    rows, vectors = _embedded_rows(workspace)
    measured, shards = {}, {}
    for split, members in _members(rows, settings).items():
        paths = _build_shards(workspace.index, split, vectors[members], settings)
        shards[split] = [path.name for path in paths]
        measured[split] = _measured_recall(paths, vectors[members], settings)
    manifest = stage.finish(
        {"volumes": len(rows), "shards": sum(map(len, shards.values()))}, watch.seconds,
        recall=measured, shards=shards, metric="l2",
    )
    text = ", ".join(f"{value:.4f} among {split} volumes" for split, value in measured.items())
    say(
        "index",
        f"{len(rows)} volumes in {manifest['counts']['shards']} HNSW shards, "
        f"recall@{settings.discovery.num_neighbours} against exact search {text}, "
        f"{mib(manifest['bytes'])}, {watch.seconds:.1f} s → {workspace.index}",
    )
    return manifest


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
    stage.start()
    write_table(workspace.patterns / "plan.parquet", plan, row_group_size=4096)
    outcomes = _crop_parts(workspace, settings, plan)
    failures += [failure for outcome in outcomes for failure in outcome["failures"]]
    write_table(workspace.patterns / "failures.parquet", pa.Table.from_pylist(failures, FAILURES))
    (workspace.patterns / "plan.parquet").unlink()
    manifest = _finish(stage, workspace, settings, outcomes, references, failures, watch)
    _summarise(manifest, failures, workspace)
    return manifest


def check_archive(workspace: Workspace, settings: Settings) -> None:
    """Raise SettingsError if the archive has fewer subjects than discovery needs."""
    rows = read_catalogue(workspace.catalog)
    _check_counts(_one_a_subject(rows), settings, f"{workspace.archive}")


def _plan(
    workspace: Workspace, settings: Settings, index: Mapping[str, Any]
) -> tuple[pa.Table, list[dict[str, Any]], list[dict[str, str]]]:
    rows, vectors = _embedded_rows(workspace)
    reach = np.array(largest_extent(settings.discovery.scales))
    fits = np.array([(size_mm(row) >= reach - 1e-6).all() for row in rows])
    failures = [
        {
            "source": row["source"],
            "reason": f"{_mm(size_mm(row))} mm is smaller than the largest crop, {_mm(reach)} mm (discovery.scales)",
        }
        for row, fit in zip(rows, fits, strict=True)
        if not fit
    ]
    _check_counts(_one_a_subject([row for row, fit in zip(rows, fits, strict=True) if fit]), settings, "the archive")
    members = {split: numbers[fits[numbers]] for split, numbers in _members(rows, settings).items()}
    anchors = _choose_references(rows, members[TRAINING], settings)
    found = [
        {
            split: [rows[n] for n in _search(workspace, index, split, rows, vectors, members[split], anchor, settings)]
            for split in (TRAINING, VALIDATION)
        }
        for anchor in anchors
    ]
    references = [rows[anchor] for anchor in anchors]
    centres = [_coordinates(workspace, row, number, settings) for number, row in enumerate(references)]
    plan = plan_patterns(references, centres, found, settings.discovery, settings.seed)
    described = [
        {"volume_id": row["volume_id"], "source": row["source"], "centres_mm": centre.tolist()}
        for row, centre in zip(references, centres, strict=True)
    ]
    return plan, described, failures


def _choose_references(rows: Sequence[Mapping[str, Any]], members: NDArray[np.int64], settings: Settings) -> list[int]:
    """R training volumes of different subjects, drawn by seed."""
    generator = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(1,)))
    chosen: dict[str, int] = {}
    for number in generator.permutation(members):
        chosen.setdefault(rows[number]["subject_id"], int(number))
        if len(chosen) == settings.discovery.num_references:
            break
    return list(chosen.values())


def _search(
    workspace: Workspace,
    index: Mapping[str, Any],
    split: str,
    rows: Sequence[Mapping[str, Any]],
    vectors: NDArray[np.float32],
    members: NDArray[np.int64],
    anchor: int,
    settings: Settings,
) -> list[int]:
    """Row numbers of the nearest volumes to a reference, one a subject; in training the reference comes first."""
    discovery = settings.discovery
    wanted = discovery.num_neighbours if split == TRAINING else discovery.num_validation_neighbours
    everyone = _members(rows, settings)[split]
    query = vectors[anchor][None]
    allowed = set(members.tolist())
    # Scans of one subject, and scans too small to crop, take places in the list that are passed over.
    k = min(len(everyone), wanted + len(everyone) - len(_one_a_subject([rows[n] for n in members])))
    method = settings.index.method
    if method == "hnsw" or (method == "auto" and len(everyone) > settings.index.exact_limit):
        found = search_shards([workspace.index / name for name in index["shards"][split]], query, k, settings.index)
    else:
        found = exact_search(vectors[everyone], query, k)
    chosen: dict[str, int] = {rows[anchor]["subject_id"]: anchor} if split == TRAINING else {}
    for number in everyone[found.numbers[0]].tolist():
        if number in allowed:
            chosen.setdefault(rows[number]["subject_id"], number)
    return list(chosen.values())[:wanted]


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


def _embedded_rows(workspace: Workspace) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
    """Catalogue rows and embeddings of the volumes that could be embedded, in order of volume id."""
    ids, vectors = read_embeddings(workspace.embeddings)
    return read_catalogue(workspace.catalog, ids), vectors


def _members(rows: Sequence[Mapping[str, Any]], settings: Settings) -> dict[str, NDArray[np.int64]]:
    """Row numbers of each split."""
    _, held_out = split_by_subject(list(rows), settings.validation_fraction, settings.seed)
    validation = {row["volume_id"] for row in held_out}
    is_validation = np.array([row["volume_id"] in validation for row in rows])
    return {TRAINING: np.flatnonzero(~is_validation), VALIDATION: np.flatnonzero(is_validation)}


def _build_shards(folder: Path, split: str, vectors: NDArray[np.float32], settings: Settings) -> list[Path]:
    size = settings.index.volumes_per_shard
    build = ray.remote(build_shard)
    paths = [folder / f"shard-{split}-{number:05d}.hnsw" for number in range(-(-len(vectors) // size))]
    ray.get(
        [
            build.remote(path, vectors[number * size : (number + 1) * size], number * size, settings.index,
                         settings.seed)
            for number, path in enumerate(paths)
        ]
    )
    return paths


def _measured_recall(paths: Sequence[Path], vectors: NDArray[np.float32], settings: Settings) -> float:
    """Recall of the graphs at the K of discovery, against exact search, over a seeded sample of queries."""
    generator = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(3,)))
    queries = vectors[generator.permutation(len(vectors))[:RECALL_QUERIES]]
    k = min(settings.discovery.num_neighbours, len(vectors))
    truth: Neighbours = exact_search(vectors, queries, k)
    return recall(search_shards(paths, queries, k, settings.index), truth)


def _one_a_subject(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({row["subject_id"]: row for row in rows}.values())


def _check_counts(rows: Sequence[Mapping[str, Any]], settings: Settings, where: str) -> None:
    training, validation = split_by_subject([dict(row) for row in rows], settings.validation_fraction, settings.seed)
    discovery = settings.discovery
    for key, wanted, there, kind in (
        ("num_neighbours", discovery.num_neighbours, len(training), "training"),
        ("num_references", discovery.num_references, len(training), "training"),
        ("num_validation_neighbours", discovery.num_validation_neighbours, len(validation), "held-out"),
    ):
        if wanted > there:
            raise SettingsError(
                f"discovery.{key}={wanted} is more than the {there} {kind} subjects that {where} has with scans large "
                f"enough to crop: lower it to at most {there} or add scans"
            )


def _mm(size: NDArray[np.float64]) -> str:
    return "×".join(f"{side:.0f}" for side in size)
