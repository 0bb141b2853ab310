"""Discover as a whole, on a small archive whose embeddings are given, so that every neighbour is known."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from scipy import ndimage

from raygenesis.archive.catalogue import CATALOGUE, held_out_subjects
from raygenesis.discovery.coordinates import CoordinateError
from raygenesis.discovery.cubes import crop_cubes, size_mm
from raygenesis.discovery.discover import PatternPlanner, discover
from raygenesis.discovery.find_neighbours import find_neighbours
from raygenesis.discovery.references import Reference, choose_coordinates
from raygenesis.discovery.store_writer import StoreTask, _failures, crop_part, publish_part, visit_source, write_store
from raygenesis.discovery.visits import VISIT
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.cells import encode
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.settings import AutoencoderSettings, DiscoverySettings, IndexSettings, Scale, Settings
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import write_json
from raygenesis.workspace.workspace import Workspace
from tests.support.stores import change_manifest, finish_archive, finish_embeddings
from tests.support.synthetic import archived

SUBJECTS = [f"s{n:02d}" for n in range(16)]
# One scan each; the second scans of two subjects, which depend on who is held out, come last by id.
SCANS = [{"subject_id": subject, "volume_id": f"{n * 7 % 16:02d}"} for n, subject in enumerate(SUBJECTS)]
HELD_OUT = sorted(held_out_subjects(SCANS, 0.25, seed=0))
LEARNT_FROM = sorted(set(SUBJECTS) - set(HELD_OUT))
NOT_EMBEDDED, TWICE_HELD_OUT = HELD_OUT[:2]
SMALL, TWICE = LEARNT_FROM[:2]
SCANS += [{"subject_id": TWICE, "volume_id": "16"}, {"subject_id": TWICE_HELD_OUT, "volume_id": "17"}]
SIZES = {"references": 2, "coordinates": 3, "neighbours": 9, "validation_neighbours": 3}


def settings_with(method: str = "exact", **discovery: object) -> Settings:
    scales = (Scale(extent_mm=(16, 16, 16)), Scale(extent_mm=(14, 14, 14), extent_jitter=0.2, shift_mm=1))
    chosen = {f"num_{name}": number for name, number in SIZES.items()} | discovery
    return Settings(
        validation_fraction=0.25,
        autoencoder=AutoencoderSettings(input_shape=(8, 8, 8)),
        index=IndexSettings(method=method, volumes_per_shard=5),
        discovery=DiscoverySettings(
            **{"cube_shape": (8, 8, 8), "scales": scales, "min_distance_mm": 4, "patterns_per_part": 25, **chosen}
        ),
    )


SETTINGS = settings_with()


def scan(number: int, shape: tuple[int, int, int]) -> np.ndarray:
    blobs = ndimage.gaussian_filter(np.random.default_rng(number).standard_normal(shape), 1.5)
    return ((blobs - blobs.min()) / np.ptp(blobs)).astype(np.float32)


def make_workspace(root: Path) -> Workspace:
    """An ingested and embedded archive: 18 scans of 16 subjects, one of them small, one without an embedding."""
    workspace = Workspace.open(root)
    rows = []
    for number, facts in enumerate(SCANS):
        generator = np.random.default_rng([7, number])
        shape = (12, 30, 30) if number == SUBJECTS.index(SMALL) else tuple(generator.integers(24, 34, 3).tolist())
        facts = {"voxels": scan(number, shape), "low": [0.3], "high": [0.7], **facts}
        rows.append(archived(workspace.volumes, spacing_mm=(1.0, 1.1, 0.9), coarse_size=16, **facts))
    rows.sort(key=lambda row: row["volume_id"])
    pq.write_table(pa.Table.from_pylist(rows, CATALOGUE), workspace.catalog)
    workspace.embeddings.mkdir()
    vectors = np.random.default_rng(3).standard_normal((len(rows), 4)).astype(np.float32)
    table = pa.table(
        {
            "volume_id": [row["volume_id"] for row in rows],
            "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 4),
            "failure": ["damaged" if row["subject_id"] == NOT_EMBEDDED else "" for row in rows],
        }
    )
    pq.write_table(table.slice(10), workspace.embeddings / "part-000000010.parquet")
    pq.write_table(table.slice(0, 10), workspace.embeddings / "part-000000000.parquet")
    finish_embeddings(workspace, "given", 17)
    finish_archive(workspace, "given", len(rows))
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Workspace:
    made = make_workspace(tmp_path_factory.mktemp("discover"))
    discover(made, SETTINGS)
    return made


def catalogue(workspace: Workspace) -> dict[str, dict]:
    return {row["volume_id"]: row for row in pq.read_table(workspace.catalog).to_pylist()}


def parts(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(workspace.patterns.glob("part-*.parquet"))}


def manifest(workspace: Workspace) -> dict:
    return json.loads((workspace.patterns / "manifest.json").read_text())


# --- who is a neighbour ---------------------------------------------------------------------------


def nearest_first(workspace: Workspace, anchor: str, subjects: list[str]) -> list[str]:
    """Volume ids of the nearest embedded, large enough scan of each subject, by a plain loop."""
    tables = [pq.read_table(path).to_pylist() for path in workspace.embeddings.glob("part-*.parquet")]
    vectors = {row["volume_id"]: np.array(row["embedding"]) for rows in tables for row in rows if not row["failure"]}
    rows = catalogue(workspace)
    found: dict[str, str] = {}
    for volume_id in sorted(vectors, key=lambda one: float(np.linalg.norm(vectors[one] - vectors[anchor]))):
        subject = rows[volume_id]["subject_id"]
        if subject in subjects and subject != SMALL:
            found.setdefault(subject, volume_id)
    return list(found.values())


def test_neighbours_are_the_nearest_scans_one_a_subject_with_the_reference_first(workspace):
    rows = read_patterns(workspace.patterns, ("reference", "rank", "split", "volume_id")).to_pylist()
    ranked = {(row["split"], row["reference"], row["rank"]): row["volume_id"] for row in rows}
    references = [reference["volume_id"] for reference in manifest(workspace)["references"]]
    subject_of = {volume_id: row["subject_id"] for volume_id, row in catalogue(workspace).items()}
    assert len({subject_of[anchor] for anchor in references}) == 2
    for number, anchor in enumerate(references):
        others = [subject for subject in LEARNT_FROM if subject != subject_of[anchor]]
        expected = [anchor, *nearest_first(workspace, anchor, others)[:8]]
        assert [ranked[TRAINING, number, rank] for rank in range(9)] == expected
        expected = nearest_first(workspace, anchor, HELD_OUT)[:3]
        assert [ranked[VALIDATION, number, rank] for rank in range(1, 4)] == expected


def test_who_is_held_out_follows_from_the_catalogue_alone(workspace):
    """Whoever the auto-encoder learnt from must not be held out here, though a scan could not be embedded."""
    embedded = [row for row in SCANS if row["subject_id"] != NOT_EMBEDDED]
    assert held_out_subjects(embedded, 0.25, 0) - set(HELD_OUT)  # from these alone another would be held out
    rows = catalogue(workspace)
    splits: dict[str, set[str]] = {TRAINING: set(), VALIDATION: set()}
    for row in read_patterns(workspace.patterns, ("split", "volume_id")).to_pylist():
        splits[row["split"]].add(rows[row["volume_id"]]["subject_id"])
    assert splits[VALIDATION] == set(HELD_OUT) - {NOT_EMBEDDED}
    assert splits[TRAINING] <= set(LEARNT_FROM) - {SMALL}


def test_a_scan_smaller_than_a_crop_is_refused_with_its_reason(workspace):
    """The published code crashed of scans thinner than 96 slices."""
    failures = pq.read_table(workspace.patterns / "failures.parquet").to_pylist()
    small = next(row for row in catalogue(workspace).values() if row["subject_id"] == SMALL)
    assert [row["source"] for row in failures] == [small["source"]]
    assert "12×33×27 mm is smaller than the largest crop, 16×19×19 mm" in failures[0]["reason"]
    assert small["volume_id"] not in read_patterns(workspace.patterns, ["volume_id"])["volume_id"].to_pylist()


def test_hnsw_shards_give_the_same_store(workspace, tmp_path):
    other = make_workspace(tmp_path)
    discover(other, settings_with("hnsw"))
    assert len(list(other.index.glob("shard-*.hnsw"))) == 4
    assert parts(other) == parts(workspace)


# --- what is stored -------------------------------------------------------------------------------


def test_every_pattern_is_stored_and_counted(workspace):
    counts = manifest(workspace)["counts"]
    assert counts["patterns"] == read_patterns(workspace.patterns).num_rows == 2 * 3 * 2 * (9 + 3)
    assert counts["validation"] == 2 * 3 * 2 * 3
    assert {name: counts[name] for name in ("references", "coordinates", "neighbours")} == {
        "references": 2, "coordinates": 3, "neighbours": 9
    }  # fmt: skip
    assert counts["parts"] == len(parts(workspace)) > 2
    assert not (workspace.patterns / "plan.parquet").exists()


def test_saved_cubes_are_the_normalised_crops_at_their_places(workspace):
    """The published code normalised the volumes it chose from, and saved cubes of others."""
    rows = catalogue(workspace)
    brightest = 0.0
    for pattern in read_patterns(workspace.patterns).to_pylist():
        box = (pattern["origin_mm"], pattern["extent_mm"])
        (cube,) = crop_cubes(workspace.volumes, rows[pattern["volume_id"]], [box], (8, 8, 8), SETTINGS.intensity)
        assert pattern["cube"] == encode(cube)
        brightest = max(brightest, float(cube.max()))
    assert brightest == pytest.approx(1, abs=1e-6)  # the brightest values lie above the window


def test_the_manifest_says_how_to_read_a_cell(workspace):
    told = manifest(workspace)
    assert (told["cube_shape"], told["cube_dtype"], told["cube_steps"]) == ([8, 8, 8], "<u2", 4095)
    assert told["raw_bytes"] == told["counts"]["patterns"] * 8**3 * 2


def test_coordinates_of_a_reference_keep_their_distance(workspace):
    for reference in manifest(workspace)["references"]:
        centres = np.array(reference["centres_mm"])
        gaps = np.linalg.norm(centres[:, None] - centres, axis=2)[np.triu_indices(3, 1)]
        assert gaps.min() >= SETTINGS.discovery.min_distance_mm


def test_patterns_without_jitter_lie_at_the_same_fraction_of_each_side(workspace):
    rows = catalogue(workspace)
    references = manifest(workspace)["references"]
    for pattern in read_patterns(workspace.patterns, where=predicate(scales=[0])).to_pylist():
        reference = references[pattern["reference"]]
        size, there = size_mm(rows[reference["volume_id"]]), size_mm(rows[pattern["volume_id"]])
        centre = np.array(reference["centres_mm"][pattern["coordinate"]]) / size * there
        expected = np.clip(centre - 8, 0, there - 16)
        np.testing.assert_allclose(pattern["origin_mm"], expected, atol=1e-9)


# --- again, and after a kill ----------------------------------------------------------------------


def test_a_second_call_does_nothing_and_says_so(workspace, capsys):
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    discover(workspace, SETTINGS)
    assert capsys.readouterr().out.count("nothing to do") == 1
    assert {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")} == before


def test_after_a_kill_only_the_missing_parts_are_cropped_and_nothing_differs(workspace, tmp_path):
    killed = make_workspace(tmp_path)
    discover(killed, SETTINGS)
    told = manifest(killed)
    write_json(killed.patterns / "started.json", {"settings": told["settings"], "inputs": told["inputs"]})
    (killed.patterns / "manifest.json").unlink()
    missing = killed.patterns / "part-000001.parquet"
    missing.unlink()
    (killed.patterns / ".part-000001.parquet.abcd1234").write_bytes(b"half a part")
    kept = {path: path.stat().st_mtime_ns for path in killed.patterns.glob("part-*.parquet")}
    discover(killed, SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert parts(killed) == parts(workspace)
    assert manifest(killed)["counts"] == told["counts"]


def test_parts_of_another_plan_are_made_anew(workspace, tmp_path, capsys):
    """A store whose making was interrupted, before a scan that could not be a reference was mended."""
    other = make_workspace(tmp_path)
    first = manifest(workspace)["references"][0]["volume_id"]
    whole = {path: path.read_bytes() for path in (other.volumes / f"{first}.ome.zarr").rglob("*") if path.is_file()}
    blank_coarse(other, first)
    discover(other, SETTINGS)
    told = manifest(other)
    assert first not in [reference["volume_id"] for reference in told["references"]]
    stored = read_patterns(other.patterns).to_pylist()
    write_json(other.patterns / "started.json", {"settings": told["settings"], "inputs": told["inputs"]})
    (other.patterns / "manifest.json").unlink()
    visits = {(row["split"], row["reference"], row["rank"]): row for row in stored}.values()
    plan = [{name: row.get(name, 0) for name in VISIT.names} for row in visits]
    pq.write_table(pa.Table.from_pylist(plan, VISIT), other.patterns / "plan.parquet")
    for path, content in whole.items():
        path.write_bytes(content)
    capsys.readouterr()
    discover(other, SETTINGS)
    assert "the patterns of another plan, which was interrupted, are made again" in capsys.readouterr().out
    assert parts(other) == parts(workspace)


def damage(workspace: Workspace, volume_id: str) -> None:
    """Cut the finest level of a scan short; the coarse one stays whole."""
    shards = [path for path in (workspace.volumes / f"{volume_id}.ome.zarr" / "0").glob("c.*") if path.is_file()]
    assert shards
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:50])


def references_of(workspace: Workspace) -> list[Reference]:
    rows = catalogue(workspace)
    names = [reference["volume_id"] for reference in manifest(workspace)["references"]]
    sections = (SETTINGS.discovery, SETTINGS.intensity, SETTINGS.seed)
    return [choose_coordinates(workspace.volumes, rows[name], n, *sections) for n, name in enumerate(names)]


def test_a_part_without_a_damaged_scan_is_told_alike_when_it_is_resumed(workspace, tmp_path):
    other = make_workspace(tmp_path)
    other.patterns.mkdir()
    rows = read_patterns(workspace.patterns).to_pylist()
    visits = {(row["split"], row["reference"], row["rank"]): row for row in rows}.values()
    plan = pa.Table.from_pylist([{name: row.get(name, 0) for name in VISIT.names} for row in visits], VISIT)
    damaged = rows[0]["volume_id"]
    damage(other, damaged)
    chosen = SETTINGS.discovery
    planner = PatternPlanner(other.volumes, references_of(workspace), chosen, SETTINGS.intensity, SETTINGS.seed)
    store = StoreTask(other.patterns, other, chosen.cube_shape, SETTINGS.intensity, 3 * 2, planner)
    outcome = publish_part(other.patterns, crop_part(plan, store))
    stored = pq.read_table(other.patterns / "part-000000.parquet")
    everyone = [row["volume_id"] for row in rows]
    assert stored.num_rows == outcome.patterns == len(everyone) - everyone.count(damaged)
    assert damaged not in stored["volume_id"].to_pylist()
    ((source, reason),) = outcome.failures
    assert source == f"{damaged}.nii" and "damaged" in reason
    # Resumed: the part is there, is not cropped again, and still says who is missing.
    (visited,) = [table for task in visit_source(store, plan).get_read_tasks(1) for table in task()]
    assert not len(visited)
    before = (other.patterns / "part-000000.parquet").stat()
    records, failures = write_store(store, plan, FAILURES.empty_table())
    assert records == [outcome] and failures.to_pylist() == [{"source": source, "reason": reason}]
    assert (other.patterns / "part-000000.parquet").stat() == before


@pytest.mark.parametrize("rank", [0, 2])
def test_a_scan_damaged_since_ingest_loses_its_patterns_alone(workspace, tmp_path, rank, capsys):
    """A neighbour, or a reference itself, whose coarse level is whole: measured without it, the rest is the same."""
    rows = read_patterns(workspace.patterns).to_pylist()
    damaged = next(row["volume_id"] for row in rows if row["reference"] == 0 and row["rank"] == rank)
    other = make_workspace(tmp_path)
    damage(other, damaged)
    told = discover(other, SETTINGS)
    keys = ("pattern_id", "volume_id", "cube")
    expected = sorted([row[key] for key in keys] for row in rows if row["volume_id"] != damaged)
    stored = read_patterns(other.patterns).to_pylist()
    assert sorted([row[key] for key in keys] for row in stored) == expected
    failures = pq.read_table(other.patterns / "failures.parquet").to_pylist()
    assert f"{damaged}.nii" in [row["source"] for row in failures] and len(failures) == 2
    assert f"skipped {damaged}.nii: " in capsys.readouterr().out
    whole = manifest(workspace)["quality"]
    lost = {(row["reference"], row["rank"]) for row in rows if row["volume_id"] == damaged and row["rank"] > 0}
    if rank:
        lost = {one for one in lost if one[0] in (0, 1)}
    else:
        lost |= {(0, n) for n in range(1, 9)}
    assert told.quality.neighbours.num_patients == whole["neighbours"]["num_patients"] - len(lost)


def blank_coarse(workspace: Workspace, volume_id: str) -> None:
    path = workspace.volumes / f"{volume_id}.ome.zarr"
    coarsest = len(catalogue(workspace)[volume_id]["levels"]) - 1
    level = zarr.open_group(path, mode="r+")[str(coarsest)]
    level[:] = np.full(level.shape, 0.5, level.dtype)


def test_a_patient_that_cannot_be_a_reference_gives_way_to_the_next(workspace, tmp_path, capsys):
    first, second = (reference["volume_id"] for reference in manifest(workspace)["references"])
    other = make_workspace(tmp_path)
    blank_coarse(other, first)
    made = discover(other, SETTINGS)
    chosen = [reference.volume_id for reference in made.references]
    assert chosen[0] == second and len(set(chosen)) == 2 and first not in chosen
    assert f"another reference instead of one that does not fit: reference scan {first}.nii" in capsys.readouterr().out
    assert made.counts.references == 2


# --- whether it worked ----------------------------------------------------------------------------


def numbers_in(tree: object) -> list[float]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for branch in tree for number in numbers_in(branch)]
    return [tree] if isinstance(tree, int | float) else []


def test_the_manifest_says_how_alike_neighbours_and_random_patients_are(workspace):
    quality = manifest(workspace)["quality"]
    assert all(np.isfinite(numbers_in(quality)))
    assert quality["neighbours"]["num_patients"] == 2 * 8 and quality["random"]["num_patients"] == 2 * 2
    assert [group["ranks"] for group in quality["by_rank"]] == [[1, 3], [4, 7], [8, 8]]
    assert 0 <= quality["p_value"] <= 1 and {"neighbours", "random", "by_rank", "p_value", "warning"} == set(quality)
    # Of scans that are noise no two are alike at any place.
    assert all(abs(quality[who][key]) < 0.2 for who in ("neighbours", "random") for key in ("within", "between"))


NUM_FAMILIES, PER_FAMILY = 3, 12


def families(root: Path, apart: float) -> Workspace:
    """Three kinds of patients whose scans are alike, with embeddings that lie so far apart by kind."""
    workspace = Workspace.open(root)
    generator, rows, vectors = np.random.default_rng(5), [], []
    for number in range(NUM_FAMILIES * PER_FAMILY):
        voxels = 0.7 * scan(1000 + number % NUM_FAMILIES, (24, 24, 24)) + 0.3 * scan(number, (24, 24, 24))
        rows.append(archived(workspace.volumes, f"{number:02d}", voxels, (1.0, 1.0, 1.0), coarse_size=24))
        vectors.append(apart * np.eye(4)[number % NUM_FAMILIES] + generator.standard_normal(4))
    pq.write_table(pa.Table.from_pylist(rows, CATALOGUE), workspace.catalog)
    workspace.embeddings.mkdir()
    table = pa.table(
        {
            "volume_id": [row["volume_id"] for row in rows],
            "embedding": pa.FixedSizeListArray.from_arrays(np.float32(vectors).ravel(), 4),
            "failure": [""] * len(rows),
        }
    )
    pq.write_table(table, workspace.embeddings / "part-000000000.parquet")
    finish_embeddings(workspace, "given", len(rows))
    finish_archive(workspace, "given", len(rows))
    return workspace


@pytest.mark.parametrize("telling", [True, False])
def test_neighbours_by_embeddings_that_tell_nothing_are_warned_of(ray_cluster, tmp_path, telling, capsys):
    made = families(tmp_path, 4.0 * telling)  # so near that they are one group
    settings = settings_with(
        num_neighbours=7, num_validation_neighbours=1, scales=(Scale(extent_mm=(12, 12, 12)),), duplicate_distance=0.001
    )
    quality = discover(made, settings).quality
    said = capsys.readouterr().out
    assert quality.random.num_patients == 2 * (27 - 7)
    if telling:
        assert quality.p_value < 1e-3 and quality.warning is None and "warning" not in said
        assert quality.neighbours.within > 0.6 > 0.4 > quality.random.within
        assert quality.neighbours.between < 0.3
    else:
        assert quality.p_value > 0.05
        assert quality.warning.startswith("neighbours are not more similar than random patients")
        assert f"discover: warning: {quality.warning}" in said
    assert manifest(made)["quality"] == json.loads(json.dumps(asdict(quality)))


def test_labels_never_cross_groups_and_each_ones_references_are_recorded(ray_cluster, tmp_path):
    made = families(tmp_path, 20.0)
    settings = settings_with(
        num_references=3, num_neighbours=5, num_validation_neighbours=1, scales=(Scale(extent_mm=(12, 12, 12)),),
        duplicate_distance=0.001,
    )  # fmt: skip
    told = discover(made, settings)
    assert len(told.references_by_group) == NUM_FAMILIES and sum(told.references_by_group) == len(told.references) == 3
    for row in read_patterns(made.patterns, ("reference", "volume_id")).to_pylist():
        reference = told.references[row["reference"]].volume_id
        assert int(row["volume_id"]) % NUM_FAMILIES == int(reference) % NUM_FAMILIES


# --- what cannot be discovered --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "number", "there"),
    [("neighbours", 12, "11 training"), ("references", 12, "11 training"), ("validation_neighbours", 4, "3 held-out")],
)
def test_more_than_the_archive_holds_is_refused_naming_the_key(ray_cluster, tmp_path, key, number, there):
    with pytest.raises(SettingsError, match=rf"discovery\.num_{key}={number} is more than the {there} subjects"):
        discover(make_workspace(tmp_path), settings_with(**{f"num_{key}": number}))
    assert not (tmp_path / "patterns").exists() and not (tmp_path / "index").exists()


def test_embeddings_that_all_failed_are_one_sentence_before_anything_is_searched(tmp_path):
    made = make_workspace(tmp_path)
    for path in made.embeddings.glob("part-*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.set_column(2, "failure", pa.array(["damaged"] * len(table))), path)
    with pytest.raises(WorkspaceError, match=r"no training volume has an embedding: see .*failures\.parquet"):
        discover(made, SETTINGS)
    with pytest.raises(WorkspaceError, match=r"no scan has an embedding: see .*failures\.parquet"):
        find_neighbours(made, SETTINGS)
    assert not made.index.exists() and not made.neighbours.exists()


def test_neighbours_made_anew_are_another_input_unless_an_earlier_version_recorded_none(workspace):
    recorded = manifest(workspace)
    change_manifest(workspace.neighbours, lambda tree: tree.update(fingerprint="other"))
    try:
        with pytest.raises(WorkspaceError, match="patterns was not made from the present neighbours: remove"):
            discover(workspace, SETTINGS)
        change_manifest(workspace.patterns, lambda tree: tree["inputs"].pop("neighbours"))
        assert discover(workspace, SETTINGS).fingerprint == recorded["fingerprint"]
    finally:
        change_manifest(workspace.neighbours, lambda tree: tree.update(fingerprint=recorded["inputs"]["neighbours"]))
        write_json(workspace.patterns / "manifest.json", recorded)


def test_near_duplicates_that_leave_too_few_are_refused_naming_the_keys(ray_cluster, tmp_path):
    settings = settings_with(duplicate_distance=0.99)
    with pytest.raises(SettingsError) as refused:
        discover(make_workspace(tmp_path), settings)
    found = re.fullmatch(
        r"(\d) distinct training neighbours found, 8 needed \(discovery\.num_neighbours=9 includes the reference\)\. "
        r"Dropped as near-duplicates: (\d+) patients?\. .* lower discovery\.duplicate_distance \(0\.99\); "
        r"otherwise give discovery\.num_neighbours=(\d)",
        str(refused.value),
    )
    assert found and int(found[2]) > 0 and int(found[3]) == int(found[1]) + 1


def test_the_reference_alone_is_a_class_too(ray_cluster, tmp_path):
    """K = 1: nobody to compare with, and patterns of the reference and of held-out patients."""
    told = discover(make_workspace(tmp_path), settings_with(num_neighbours=1))
    assert told.counts.patterns == 2 * 3 * 2 * (1 + 3)
    assert told.quality.neighbours.num_patients == 0 and told.quality.warning is None


def test_coordinates_that_do_not_fit_are_refused_naming_scan_and_key(ray_cluster, tmp_path):
    with pytest.raises(CoordinateError, match=r"reference scan \d\d\.nii .*discovery\.num_coordinates=500 does not"):
        discover(make_workspace(tmp_path), settings_with(num_coordinates=500))


def test_other_settings_are_refused(workspace):
    with pytest.raises(WorkspaceError, match=r"discovery\.num_coordinates was 3 and is now 2"):
        discover(workspace, settings_with(num_coordinates=2))


def test_a_store_at_larger_k_and_c_holds_the_smaller_one(workspace, tmp_path):
    smaller = make_workspace(tmp_path)
    discover(smaller, settings_with(num_neighbours=4, num_coordinates=2))
    columns = ("pattern_id", "rank", "volume_id", "origin_mm", "extent_mm", "cube")
    within = read_patterns(workspace.patterns, columns, predicate(None, 4, 2)).sort_by("pattern_id")
    assert within.equals(read_patterns(smaller.patterns, columns).sort_by("pattern_id"))


def test_a_registration_that_failed_costs_its_visit_alone_and_is_told_with_its_reference():
    visits = [{"volume_id": name, "reference": reference} for name in "abc" for reference in (0, 1)]
    rows = {name: {"source": f"{name}.nii"} for name in "abc"}
    there = {("a", 0), ("a", 1), ("b", 1)}
    reasons = {("b", 0): "it cannot be aligned: it turns it by 90 degrees", ("c", None): "a chunk is damaged"}
    told = _failures(visits, there, rows, reasons)
    assert told == [
        {"source": "b.nii", "reason": "it cannot be aligned: it turns it by 90 degrees (reference 0)"},
        {"source": "c.nii", "reason": "a chunk is damaged"},
    ]
    again = _failures(visits, there, rows, {})  # resumed: the reasons are not known any more
    assert [row["source"] for row in again] == ["b.nii", "c.nii"] and "aligned" in again[0]["reason"]
