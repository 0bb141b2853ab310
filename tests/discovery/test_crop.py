"""Random crops as a whole: a store like the discovered one, of places that fit and show anatomy, always the same."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import ndimage, stats

from raygenesis import PatternDataset
from raygenesis.archive.catalogue import CATALOGUE, held_out_subjects
from raygenesis.discovery.crop import crop
from raygenesis.discovery.pattern_boxes import crops_of, pattern_number
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.cells import decode
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.verification import verify
from raygenesis.settings import DiscoverySettings, Scale, Settings
from raygenesis.workspace.artifacts import CROPS
from raygenesis.workspace.files import remove_tree, write_json
from raygenesis.workspace.workspace import Workspace
from tests.support.stores import finish_archive
from tests.support.synthetic import archived

SCALES = (Scale(extent_mm=(18, 18, 18)), Scale(extent_mm=(16, 14, 14), extent_jitter=0.1, shift_mm=1))
REACH = 18.0
CUBE = (24, 24, 32)  # finer than the voxels: crops come from the finest level
SHAPES = [(32, 40, 36), (28, 36, 40), (40, 28, 32)]
SUBJECTS = [f"s{n:02d}" for n in range(12)]
SCANS = [{"subject_id": subject, "volume_id": f"{n * 5 % 12:02d}"} for n, subject in enumerate(SUBJECTS)]
HELD_OUT = held_out_subjects(SCANS, 0.25, seed=0)
LEARNT_FROM = sorted(set(SUBJECTS) - HELD_OUT)
THIN, FLAT, TWICE = LEARNT_FROM[:3]
# Second scans, of ids that leave who is held out as it is.
SCANS += [{"subject_id": TWICE, "volume_id": "12"}, {"subject_id": min(HELD_OUT), "volume_id": "13"}]
NUM_TRAINING, NUM_HELD_OUT = 9 + 1 - 2, 3 + 1
NUM_CROPS = 7


def settings_with(seed: int = 0, **discovery: object) -> Settings:
    chosen = {"cube_shape": CUBE, "scales": SCALES, "num_crops": NUM_CROPS, "min_content": 0.5, "patterns_per_part": 25}
    return Settings(seed=seed, validation_fraction=0.25, discovery=DiscoverySettings(**(chosen | discovery)))


SETTINGS = settings_with()


def scan(number: int) -> np.ndarray:
    """Texture in one half and nothing in the other, which half depends on the number; float32 in [0, 1]."""
    shape = SHAPES[number % 3]
    voxels = ndimage.gaussian_filter(np.random.default_rng(number).standard_normal(shape), 1.5)
    voxels = (voxels - voxels.min()) / np.ptp(voxels)
    axis = 1 + number % 2
    half = [slice(None)] * 3
    half[axis] = slice(shape[axis] // 2, None)
    voxels[tuple(half)] = 0.5
    return voxels.astype(np.float32)


def make_workspace(root: Path, scans: list[dict] = SCANS) -> Workspace:
    """An ingested archive of isotropic scans of 1 mm: one is too thin, one shows nothing."""
    workspace = Workspace.open(root)
    rows = []
    for facts in scans:
        voxels = scan(int(facts["volume_id"]))
        if facts["subject_id"] == THIN:
            voxels = voxels[:17]
        if facts["subject_id"] == FLAT and facts["volume_id"] != "12":
            voxels = np.full_like(voxels, 0.5)
        rows.append(archived(workspace.volumes, voxels=voxels, spacing_mm=(1.0, 1.0, 1.0), coarse_size=20, **facts))
    rows.sort(key=lambda row: row["volume_id"])
    pq.write_table(pa.Table.from_pylist(rows, CATALOGUE), workspace.catalog)
    finish_archive(workspace, f"{len(scans)} scans", len(scans))
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Workspace:
    made = make_workspace(tmp_path_factory.mktemp("crop"))
    crop(made, SETTINGS)
    return made


def catalogue(workspace: Workspace) -> dict[str, dict]:
    return {row["volume_id"]: row for row in pq.read_table(workspace.catalog).to_pylist()}


def volume_of(subject: str) -> str:
    return next(facts["volume_id"] for facts in SCANS if facts["subject_id"] == subject)


def stored(workspace: Workspace, where: object = None) -> list[dict]:
    return read_patterns(workspace.crops, where=where).to_pylist()


def files(workspace: Workspace) -> dict[str, bytes]:
    """All but the manifest, which holds times."""
    paths = sorted(path for path in workspace.crops.iterdir() if path.name not in ("manifest.json", "started.json"))
    return {path.name: path.read_bytes() for path in paths}


def manifest(workspace: Workspace) -> dict:
    return json.loads((workspace.crops / "manifest.json").read_text())


def failures(workspace: Workspace) -> dict[str, str]:
    rows = pq.read_table(workspace.crops / "failures.parquet").to_pylist()
    assert len({row["source"] for row in rows}) == len(rows)
    return {row["source"]: row["reason"] for row in rows}


def content_of(rows: list[dict]) -> dict[tuple, tuple]:
    """What was cropped, by scan and number."""
    return {
        (row["volume_id"], row["coordinate"]): (row["scale"], row["origin_mm"], row["extent_mm"], row["cube"])
        for row in rows
    }


# --- what is stored -------------------------------------------------------------------------------


def test_every_scan_gives_its_crops_and_the_store_is_whole(workspace, capsys):
    told = manifest(workspace)
    assert told["counts"] == {
        "patterns": (NUM_TRAINING + NUM_HELD_OUT) * NUM_CROPS, "validation": NUM_HELD_OUT * NUM_CROPS,
        "volumes": NUM_TRAINING + NUM_HELD_OUT, "parts": 5, "failures": 2,
        "references": 0, "coordinates": NUM_CROPS, "neighbours": NUM_TRAINING + 1,
    }  # fmt: skip
    assert (told["cube_shape"], told["cube_dtype"], told["cube_steps"]) == ([*CUBE], "<u2", 4095)
    assert told["raw_bytes"] == told["counts"]["patterns"] * np.prod(CUBE) * 2
    assert verify(workspace, CROPS) == told["counts"]["patterns"]
    assert {path.name for path in workspace.crops.iterdir()} == {
        "manifest.json", "started.json", "failures.parquet",
        *(f"part-{n:06d}.{end}" for n in range(5) for end in ("parquet", "json")),
    }  # fmt: skip


def test_rows_are_those_of_a_pattern_store_without_labels(workspace):
    rows = stored(workspace)
    assert pq.read_schema(workspace.crops / "part-000000.parquet").equals(PATTERN)
    assert {(row["label"], row["reference"]) for row in rows} == {(-1, -1)}
    assert all(row["scale"] == row["coordinate"] % 2 for row in rows)
    for row in rows:
        number = pattern_number(row["split"] == VALIDATION, 0, row["rank"], row["coordinate"], row["scale"])
        assert row["pattern_id"] == number
        assert row["origin_voxels"] == row["origin_mm"] and row["extent_voxels"] == row["extent_mm"]  # of 1 mm
    of_scans: dict[tuple, set] = {}
    for row in rows:
        of_scans.setdefault((row["split"], row["rank"], row["volume_id"]), set()).add(row["coordinate"])
    assert set(map(tuple, of_scans.values())) == {tuple(range(NUM_CROPS))}
    assert len(of_scans) == len({volume for *_, volume in of_scans}) == NUM_TRAINING + NUM_HELD_OUT


def test_the_torch_dataset_reads_them(workspace):
    for split, num_scans in ((TRAINING, NUM_TRAINING), (VALIDATION, NUM_HELD_OUT)):
        dataset, rows = PatternDataset(workspace.crops, split), stored(workspace, predicate(split))
        assert len(dataset) == len(rows) == num_scans * NUM_CROPS and dataset.num_classes == 0
        assert dataset.labels.tolist() == [-1] * len(rows)
        assert np.array_equal(dataset[5]["cube"][0], decode(rows[5]["cube"], CUBE)) and dataset[5]["label"] == -1


def test_cubes_are_linear_interpolation_of_the_scan_at_their_places(workspace):
    rows = stored(workspace)
    for row in rows[::3]:
        places = [
            start + (np.arange(num) + 0.5) * length / num - 0.5
            for start, length, num in zip(row["origin_mm"], row["extent_mm"], CUBE, strict=True)
        ]
        voxels = scan(int(row["volume_id"]))
        expected = ndimage.map_coordinates(voxels, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
        np.testing.assert_allclose(decode(row["cube"], CUBE), expected, atol=0.5 / 4095 + 2e-5)


# --- where ----------------------------------------------------------------------------------------


def shows(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bool arrays of the coarse voxels: where the largest crop fits, and where its window shows anatomy."""
    shape = tuple(side // 2 for side in voxels.shape)
    coarse = voxels.reshape(shape[0], 2, shape[1], 2, shape[2], 2).mean((1, 3, 5), dtype=np.float64)

    def windows(image: np.ndarray, width: int) -> np.ndarray:
        padded = np.pad(image, width // 2, mode="edge")
        return np.lib.stride_tricks.sliding_window_view(padded, (width,) * 3)

    varies = windows(coarse, 3).std((3, 4, 5)) >= 0.1 * coarse.std()
    share = windows(varies.astype(float), int(REACH / 2)).mean((3, 4, 5))
    centres = 2 * np.indices(shape) + 1
    size = 2 * np.array(shape).reshape(3, 1, 1, 1)
    fits = ((centres >= REACH / 2) & (centres <= size - REACH / 2)).all(0)
    return fits, share >= 0.5


def test_crops_lie_inside_the_scan_and_show_anatomy(workspace):
    seen = 0
    for volume_id in {row["volume_id"] for row in stored(workspace)}:
        row = catalogue(workspace)[volume_id]
        assert row["levels"][-1] == [2, 2, 2]
        fits, is_shown = shows(scan(int(volume_id)))
        assert (fits & ~is_shown).sum() > 20 < (fits & is_shown).sum()  # there is something to avoid
        for pattern in stored(workspace, pa.compute.field("volume_id") == volume_id):
            origin, extent = np.array(pattern["origin_mm"]), np.array(pattern["extent_mm"])
            assert (origin >= 0).all() and (origin + extent <= np.array(row["shape"]) + 1e-9).all()
            centre = origin + extent / 2
            # Half a coarse voxel of 2 mm from the centre of one that fits and shows anatomy.
            near = np.argwhere(fits & is_shown) * 2 + 1
            assert (np.abs(near - centre).max(1) <= 1 + 1e-9).any()
            seen += 1
    assert seen == (NUM_TRAINING + NUM_HELD_OUT) * NUM_CROPS


def many_crops(num_crops: int, places: np.ndarray, volume_id: str = "a", seed: int = 0) -> list[dict]:
    volume = {"volume_id": volume_id, "shape": [200] * 3, "spacing_mm": [1.0] * 3}
    visit = {"reference": -1, "rank": 4, "split": TRAINING}
    chosen = settings_with(num_crops=num_crops).discovery
    return crops_of(visit, volume, places, np.array([2.0, 3.0, 4.0]), chosen, seed)


def test_places_and_what_moves_them_are_uniform():
    places = np.array([[50, 60, 70], [80, 60, 70], [50, 90, 70], [90, 90, 120.0]])
    rows = many_crops(4000, places)
    centres = np.array([np.add(row["origin_mm"], np.array(row["extent_mm"]) / 2) for row in rows])
    distance = np.abs(centres[:, None] - places).max(2)
    which = distance.argmin(1)
    assert stats.chisquare(np.bincount(which, minlength=4)).pvalue > 0.001
    moved = (centres - places[which]) / [2.0, 3.0, 4.0]
    assert np.abs(moved).max() <= 0.5
    for axis in range(3):
        assert stats.kstest(moved[:, axis], stats.uniform(-0.5, 1).cdf).pvalue > 0.001
    assert np.abs(np.corrcoef(moved.T)[np.triu_indices(3, 1)]).max() < 0.05
    extents = np.array([row["extent_mm"] for row in rows])
    assert (extents[::2] == 18).all() and (extents[1::2, 0] == 16).all()
    assert (extents[1::2, 1] == extents[1::2, 2]).all()
    assert stats.kstest(extents[1::2, 1] / 14, stats.uniform(0.9, 0.2).cdf).pvalue > 0.001


def test_the_first_crops_of_a_scan_are_those_of_fewer_and_other_scans_and_seeds_have_others():
    places = np.random.default_rng(0).uniform(30, 170, (1000, 3))
    rows = many_crops(40, places)
    assert many_crops(9, places) == rows[:9]
    for other in (many_crops(40, places, volume_id="b"), many_crops(40, places, seed=1)):
        assert all(one["origin_mm"] != two["origin_mm"] for one, two in zip(rows, other, strict=True))


# --- who ------------------------------------------------------------------------------------------


def test_held_out_subjects_are_never_among_the_training_ones(workspace):
    rows = catalogue(workspace)
    subjects = {TRAINING: set(), VALIDATION: set()}
    ranks: dict[str, set[int]] = {TRAINING: set(), VALIDATION: set()}
    for row in stored(workspace):
        subjects[row["split"]].add(rows[row["volume_id"]]["subject_id"])
        ranks[row["split"]].add(row["rank"])
    assert subjects == {TRAINING: set(LEARNT_FROM) - {THIN, FLAT}, VALIDATION: set(HELD_OUT)}
    assert ranks[VALIDATION] == {1, 2, 3, 4}
    assert ranks[TRAINING] < set(range(NUM_TRAINING + 1)) and len(ranks[TRAINING]) == NUM_TRAINING  # the flat one's


def test_scans_without_a_crop_are_told_with_their_reason(workspace):
    told = failures(workspace)
    thin, flat = f"{volume_of(THIN)}.nii", f"{volume_of(FLAT)}.nii"
    assert told.keys() == {thin, flat}
    assert "is smaller than the largest crop, 18×18×18 mm (discovery.scales)" in told[thin]
    assert told[flat].startswith("no place where a crop fits and shows anatomy: lower discovery.scales'")


def test_k_scans_and_c_crops_of_each_are_predicates(workspace, tmp_path):
    some = stored(workspace, predicate(TRAINING, num_neighbours=4, num_coordinates=3))
    everything = stored(workspace)
    expected = [row for row in everything if row["split"] == TRAINING and row["rank"] < 4 and row["coordinate"] < 3]
    assert some == expected and 9 <= len(some) <= 12
    fewer = make_workspace(tmp_path)
    crop(fewer, settings_with(num_crops=3))
    assert stored(fewer) == [row for row in everything if row["coordinate"] < 3]


def test_fewer_scans_keep_the_places_and_the_order_of_the_others(workspace, tmp_path):
    gone = [volume_of(LEARNT_FROM[-1]), volume_of(LEARNT_FROM[-2])]
    fewer = make_workspace(tmp_path, [facts for facts in SCANS if facts["volume_id"] not in gone])
    crop(fewer, SETTINGS)
    rows, there = stored(workspace), stored(fewer)
    assert content_of(there) == content_of([row for row in rows if row["volume_id"] not in gone])

    ranks = [{row["volume_id"]: row["rank"] for row in some if row["split"] == TRAINING} for some in (rows, there)]
    in_both = ranks[0].keys() & ranks[1].keys()
    assert len(in_both) == 6
    assert sorted(in_both, key=ranks[0].get) == sorted(in_both, key=ranks[1].get) != sorted(in_both)


def test_as_many_crops_as_discovery_would_write_when_no_number_is_given(workspace, tmp_path):
    """2 references × 5 neighbours × 3 coordinates × 2 scales = 60 of 9 scans with room."""
    other = make_workspace(tmp_path)
    asked = {"num_references": 2, "num_neighbours": 5, "num_coordinates": 3}
    told = crop(other, settings_with(num_crops=None, **asked))
    assert told.counts.coordinates == 7 and told.settings["discovery"]["num_crops"] == 7
    assert files(other) == files(workspace)


# --- again, after a kill, and with damage ---------------------------------------------------------


def test_a_second_call_does_nothing_whatever_discovery_alone_is_told(workspace, capsys):
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    for chosen in (SETTINGS, settings_with(num_neighbours=3, num_coordinates=2, alignment="rigid")):
        crop(workspace, chosen)
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")} == before


def test_other_settings_and_another_archive_are_refused(workspace, tmp_path):
    with pytest.raises(WorkspaceError, match=r"crops was made with other settings \(discovery\.num_crops was 7 and is"):
        crop(workspace, settings_with(num_crops=8))
    grown = make_workspace(tmp_path)
    crop(grown, SETTINGS)
    finish_archive(grown, "another", len(SCANS))
    with pytest.raises(WorkspaceError, match="crops was not made from the present archive"):
        crop(grown, SETTINGS)


def break_finest(workspace: Workspace, volume_id: str) -> None:
    for shard in (workspace.volumes / f"{volume_id}.ome.zarr" / "0").glob("c.*"):
        shard.write_bytes(shard.read_bytes()[:50])


def break_coarsest(workspace: Workspace, volume_id: str) -> None:
    for shard in (workspace.volumes / f"{volume_id}.ome.zarr" / "1").glob("c.*"):
        shard.write_bytes(shard.read_bytes()[:50])


def remove(workspace: Workspace, volume_id: str) -> None:
    remove_tree(workspace.volumes / f"{volume_id}.ome.zarr")


@pytest.mark.parametrize("damage", [break_finest, break_coarsest, remove])
def test_a_damaged_scan_loses_its_crops_alone_and_is_told_alike_after_a_kill(workspace, tmp_path, damage, capsys):
    other, damaged = make_workspace(tmp_path), volume_of(LEARNT_FROM[4])
    damage(other, damaged)
    told = crop(other, SETTINGS)
    assert f"crop: skipped {damaged}.nii: " in capsys.readouterr().out
    expected = [row for row in stored(workspace) if row["volume_id"] != damaged]
    assert stored(other) == expected and len(expected) == told.counts.patterns
    assert failures(other).keys() == failures(workspace).keys() | {f"{damaged}.nii"}
    assert told.counts.failures == 3
    before = files(other)
    write_json(other.crops / "started.json", {"settings": told.settings, "inputs": told.inputs})
    (other.crops / "manifest.json").unlink()
    (other.crops / "part-000001.parquet").unlink()
    (other.crops / ".part-000001.parquet.abcd1234").write_bytes(b"half a part")
    kept = {path: path.stat().st_mtime_ns for path in other.crops.glob("part-*.parquet")}
    crop(other, SETTINGS)
    (other.crops / ".part-000001.parquet.abcd1234").unlink()
    assert files(other) == before and manifest(other)["counts"] == asdict(told.counts)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and len(kept) == told.counts.parts - 1


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_crops(workspace, tmp_path):
    again = make_workspace(tmp_path / "again")
    crop(again, SETTINGS)
    assert files(again) == files(workspace)
    other = make_workspace(tmp_path / "other")
    crop(other, settings_with(seed=1))
    assert {row["cube"] for row in stored(other)}.isdisjoint(row["cube"] for row in stored(workspace))


# --- what cannot be cropped -----------------------------------------------------------------------


def test_an_archive_without_a_place_is_refused_in_a_sentence_and_leaves_nothing(ray_cluster, tmp_path):
    made = make_workspace(tmp_path)
    with pytest.raises(WorkspaceError, match=r"no training scan gave a crop; of 13 .* first is \d\d\.nii: no place"):
        crop(made, settings_with(box=((0, 1), (0.95, 1), (0, 1))))
    assert not made.crops.exists()
    assert crop(made, SETTINGS).counts.volumes == NUM_TRAINING + NUM_HELD_OUT


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path):
    empty = Workspace.open(tmp_path / "empty")
    with pytest.raises(WorkspaceError, match="archive is not there or not finished: run `raygenesis ingest` first"):
        crop(empty, SETTINGS)
    made = make_workspace(tmp_path / "made", SCANS[:4])
    with pytest.raises(WorkspaceError, match="no training scan of the archive can hold the largest crop, 90×90×90 mm"):
        crop(made, settings_with(scales=(Scale(extent_mm=(90, 90, 90)),)))
    with pytest.raises(SettingsError, match=r"discovery\.num_crops=32769 .* is more than 32768: give a smaller"):
        crop(made, settings_with(num_crops=2**15 + 1))
    one = make_workspace(tmp_path / "one", [facts for facts in SCANS if facts["subject_id"] == TWICE])
    with pytest.raises(WorkspaceError, match=r"no validation scan .* add scans of other subjects"):
        crop(one, SETTINGS)
    assert not made.crops.exists() and not one.crops.exists()
