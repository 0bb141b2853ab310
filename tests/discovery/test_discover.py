"""Discover as a whole, on a small archive whose embeddings are given, so that every neighbour is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import ndimage

from raygenesis.archive.catalogue import CATALOGUE, held_out_subjects
from raygenesis.archive.cells import encode
from raygenesis.config import AutoencoderSettings, DiscoverySettings, IndexSettings, Scale, Settings
from raygenesis.discovery.coordinates import CoordinateError
from raygenesis.discovery.crop import crop_cube
from raygenesis.discovery.discover import crop_part, discover
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.workspace import Workspace, write_json
from tests.synthetic import archived

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
    pq.write_table(table.slice(10), workspace.embeddings / "part-00000010.parquet")
    pq.write_table(table.slice(0, 10), workspace.embeddings / "part-00000000.parquet")
    write_json(workspace.embeddings / "manifest.json", {"fingerprint": "given", "counts": {"volumes": 17}})
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
    failures = pq.read_table(workspace.patterns / "failures.parquet").to_pylist()
    small = next(row for row in catalogue(workspace).values() if row["subject_id"] == SMALL)
    assert [row["source"] for row in failures] == [small["source"]]
    assert "12×33×27 mm is smaller than the largest crop, 16×19×19 mm" in failures[0]["reason"]
    assert small["volume_id"] not in read_patterns(workspace.patterns, ["volume_id"])["volume_id"].to_pylist()


def test_hnsw_shards_give_the_same_store(workspace, tmp_path):
    other = make_workspace(tmp_path)
    discover(other, settings_with("hnsw"))
    assert len(list(other.index.glob("shard-training-*.hnsw"))) == 3
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
    rows = catalogue(workspace)
    brightest = 0.0
    for pattern in read_patterns(workspace.patterns).to_pylist():
        cube = crop_cube(
            workspace.volumes, rows[pattern["volume_id"]], pattern["origin_mm"], pattern["extent_mm"], (8, 8, 8),
            SETTINGS.intensity,
        )
        assert pattern["cube"] == encode(cube)
        brightest = max(brightest, float(cube.max()))
    assert brightest == 1  # the brightest values lie above the window


def test_the_manifest_says_how_to_read_a_cell(workspace):
    told = manifest(workspace)
    assert (told["cube_shape"], told["cube_dtype"], told["cube_steps"]) == ([8, 8, 8], "<u2", 4095)
    assert told["raw_bytes"] == told["counts"]["patterns"] * 8**3 * 2


def test_coordinates_of_a_reference_keep_their_distance(workspace):
    for reference in manifest(workspace)["references"]:
        centres = np.array(reference["centres_mm"])
        gaps = np.linalg.norm(centres[:, None] - centres, axis=2)[np.triu_indices(3, 1)]
        assert gaps.min() >= SETTINGS.discovery.min_distance_mm


# --- again, and after a kill ----------------------------------------------------------------------


def test_a_second_call_does_nothing_and_says_so(workspace, capsys):
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    discover(workspace, SETTINGS)
    assert capsys.readouterr().out.count("nothing to do") == 2
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


def test_a_damaged_scan_loses_its_patterns_alone(workspace, tmp_path):
    other = make_workspace(tmp_path)
    other.patterns.mkdir()
    planned = read_patterns(workspace.patterns).drop(["cube"])
    pq.write_table(planned.append_column("part", pa.array([0] * len(planned), pa.int32())),
                   other.patterns / "plan.parquet")  # fmt: skip
    damaged = planned["volume_id"][0].as_py()
    for shard in (other.volumes / f"{damaged}.ome.zarr" / "0").glob("c.*"):
        if shard.is_file():
            shard.write_bytes(shard.read_bytes()[:50])
    outcome = crop_part({"part": 0}, other, SETTINGS)
    stored = pq.read_table(other.patterns / "part-000000.parquet")
    everyone = planned["volume_id"].to_pylist()
    assert stored.num_rows == outcome["patterns"] == len(everyone) - everyone.count(damaged)
    assert damaged not in stored["volume_id"].to_pylist()
    assert [failure["source"] for failure in outcome["failures"]] == [f"{damaged}.nii"]
    assert "damaged" in outcome["failures"][0]["reason"]
    again = crop_part({"part": 0}, other, SETTINGS)  # resumed: the part is there, and still tells who is missing
    assert again["patterns"] == outcome["patterns"]
    assert [failure["source"] for failure in again["failures"]] == [f"{damaged}.nii"]


# --- what cannot be discovered --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "number", "there"),
    [("neighbours", 12, "11 training"), ("references", 12, "11 training"), ("validation_neighbours", 4, "3 held-out")],
)
def test_more_than_the_archive_holds_is_refused_naming_the_key(ray_cluster, tmp_path, key, number, there):
    with pytest.raises(SettingsError, match=rf"discovery\.num_{key}={number} is more than the {there} subjects"):
        discover(make_workspace(tmp_path), settings_with(**{f"num_{key}": number}))
    assert not (tmp_path / "patterns").exists()


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
