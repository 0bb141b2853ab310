"""A reference's coordinates, and where they lie in another scan: by its sides, its body, or its registration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from raygenesis.discovery import references as module
from raygenesis.discovery.coordinates import CoordinateError
from raygenesis.discovery.cubes import size_mm
from raygenesis.discovery.patients import Patients
from raygenesis.discovery.references import Correspondence, Reference, choose_coordinates, choose_references
from raygenesis.settings import AutoencoderSettings, DiscoverySettings, Scale, Settings
from tests.support.patients import SUBJECTS, TOO_SMALL, discovery_settings, embedded, on_a_line, patients
from tests.support.synthetic import archived, imaged

SPACING = (2.0, 1.5, 1.5)
BODY = np.random.default_rng(0).uniform(-1, 1, (12, 3))


def scene(*, at: tuple[float, float, float]):
    """A body of blobs about 25 mm wide each way, centred at `at`, told in mm."""

    def values(z, y, x):
        grey = np.zeros(z.shape)
        for place in BODY:
            centre = np.array(at) + 20 * place
            gaps = sum((axis - middle) ** 2 for axis, middle in zip((z, y, x), centre, strict=True))
            grey += np.exp(-gaps / (2 * 8**2))
        return np.clip(grey, 0, 1)

    return values


def settings(**chosen: object) -> Settings:
    scales = (Scale(extent_mm=(16, 16, 16)),)
    few = {"cube_shape": (8, 8, 8), "num_coordinates": 4, "min_distance_mm": 4, "min_content": 0.2, "scales": scales}
    discovery = DiscoverySettings(**few | chosen)
    return Settings(autoencoder=AutoencoderSettings(input_shape=(8, 8, 8)), discovery=discovery)


def coordinates(folder: Path, row: dict, number: int, chosen: Settings, seed: int = 0) -> Reference:
    return choose_coordinates(folder, row, number, chosen.discovery, chosen.intensity, seed)


def correspondence_of(folder: Path, row: dict, chosen: Settings) -> Correspondence:
    return Correspondence(folder, row, chosen.discovery, chosen.intensity)


def head(folder: Path, name: str, at: tuple[float, float, float], shape=(50, 64, 60)) -> dict:
    return archived(folder, name, imaged(scene(at=at), shape, SPACING), SPACING, coarse_size=24)


@pytest.fixture
def row(tmp_path: Path) -> dict:
    return head(tmp_path, "reference", (50, 48, 45))


def test_coordinates_lie_in_the_scan_and_follow_from_seed_and_number(tmp_path, row):
    one = coordinates(tmp_path, row, 3, settings())
    assert one.centres_mm.shape == (4, 3) and one.row is row
    assert (one.centres_mm >= 8).all() and (one.centres_mm <= size_mm(row) - 8).all()
    again = coordinates(tmp_path, row, 3, settings())
    np.testing.assert_array_equal(one.centres_mm, again.centres_mm)
    others = [
        coordinates(tmp_path, row, 4, settings()),
        coordinates(tmp_path, row, 3, settings(), seed=1),
    ]
    assert all(not np.array_equal(one.centres_mm, other.centres_mm) for other in others)
    boxed = coordinates(tmp_path, row, 3, settings(box=((0, 1), (0, 0.5), (0, 1))))
    assert (boxed.centres_mm[:, 1] <= size_mm(row)[1] / 2).all()


def test_coordinates_that_do_not_fit_are_refused_naming_the_scan(tmp_path, row):
    with pytest.raises(CoordinateError, match=r"reference scan reference\.nii \(100×96×90 mm\): discovery\.num_coord"):
        coordinates(tmp_path, row, 0, settings(num_coordinates=3000))


def test_the_reference_corresponds_to_itself_exactly(tmp_path, row):
    for chosen in (settings(), settings(correspondence="physical"), settings(alignment="rigid")):
        one = coordinates(tmp_path, row, 0, chosen)
        assert correspondence_of(tmp_path, row, chosen).centres_mm(one) is one.centres_mm


def test_relative_places_need_no_voxels_of_the_other_scan(tmp_path, row, monkeypatch):
    one = coordinates(tmp_path, row, 0, settings())
    other = head(tmp_path, "other", (60, 40, 50), (40, 80, 60))
    monkeypatch.setattr(module, "read_coarse", lambda *_: pytest.fail("read"))
    found = correspondence_of(tmp_path, other, settings()).centres_mm(one)
    np.testing.assert_allclose(found, one.centres_mm / (100, 96, 90) * (80, 120, 90))


@pytest.mark.parametrize("shape", [(50, 64, 60), (60, 70, 76)])
@pytest.mark.parametrize("moved", [(10.0, -6.0, 9.0), (-8.0, 12.0, 0.0)])
def test_physical_places_follow_the_body_in_the_field_of_view(tmp_path, row, moved, shape):
    chosen = settings(correspondence="physical")
    one = coordinates(tmp_path, row, 0, chosen)
    other = head(tmp_path, "other", tuple(np.array((50, 48, 45)) + moved), shape)
    found = correspondence_of(tmp_path, other, chosen).centres_mm(one)
    np.testing.assert_allclose(found - one.centres_mm, np.tile(moved, (4, 1)), atol=2.5)  # within a coarse voxel
    by_side = correspondence_of(tmp_path, other, settings()).centres_mm(one)
    assert np.abs(by_side - one.centres_mm - moved).max() > 5


def test_one_scan_is_read_once_for_all_its_references(tmp_path, row, monkeypatch):
    chosen = settings(correspondence="physical")
    references = [coordinates(tmp_path, row, number, chosen) for number in range(3)]
    other = head(tmp_path, "other", (55, 48, 45))
    plain, times = module.read_coarse, []
    monkeypatch.setattr(module, "read_coarse", lambda *given: times.append(1) or plain(*given))
    correspondence = correspondence_of(tmp_path, other, chosen)
    assert len({tuple(correspondence.centres_mm(one)[0]) for one in references}) > 1
    assert len(times) == 1


def test_registered_places_follow_the_body_in_the_field_of_view(tmp_path, row):
    chosen = settings(alignment="rigid")
    one = coordinates(tmp_path, row, 0, chosen)
    assert one.scan is not None and coordinates(tmp_path, row, 0, settings()).scan is None
    other = head(tmp_path, "other", (58, 43, 50))
    found = correspondence_of(tmp_path, other, chosen).centres_mm(one)
    np.testing.assert_allclose(found - one.centres_mm, np.tile([8.0, -5, 5], (4, 1)), atol=2)


def test_pictures_correspond_too(tmp_path):
    blobs = ndimage.gaussian_filter(np.random.default_rng(3).random((80, 90)), 3).astype(np.float32)
    blobs = (blobs - blobs.min()) / np.ptp(blobs)
    row = archived(tmp_path, "flat", blobs, (1.0, 1.0), coarse_size=24)
    discovery = DiscoverySettings(
        cube_shape=(8, 8), num_coordinates=3, min_distance_mm=4, scales=(Scale(extent_mm=(16, 16)),), min_content=0.2
    )
    chosen = Settings(autoencoder=AutoencoderSettings(input_shape=(8, 8)), discovery=discovery)
    one = coordinates(tmp_path, row, 0, chosen)
    other = archived(tmp_path, "other", blobs[:40], (1.0, 2.0), coarse_size=24)
    found = correspondence_of(tmp_path, other, chosen).centres_mm(one)
    np.testing.assert_allclose(found, one.centres_mm * (0.5, 2.0))


# --- who is a reference ---------------------------------------------------------------------------


def test_references_are_training_subjects_of_their_own_large_enough_and_the_same_as_more_are_asked_for(tmp_path):
    known, table = patients(), on_a_line(tmp_path)
    five = choose_references(known, table, 0.0, discovery_settings(references=5), 0)
    assert {SUBJECTS[number] for number in five} == set("abcef")
    assert TOO_SMALL not in five
    for fewer in range(1, 5):
        assert choose_references(known, table, 0.0, discovery_settings(references=fewer), 0) == five[:fewer]
    seeds = {choose_references(known, table, 0.0, discovery_settings(), seed)[0] for seed in range(20)}
    assert len(seeds) > 3


def farthest_first(vectors: np.ndarray, first: int, among: list[int], count: int) -> list[int]:
    """By a plain loop."""
    chosen = [first]
    while len(chosen) < count:
        gaps = {n: min(np.linalg.norm(vectors[n] - vectors[one]) for one in chosen) for n in among if n not in chosen}
        chosen.append(max(gaps, key=gaps.get))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_spread_references_are_each_the_farthest_from_those_before(tmp_path, seed):
    vectors = np.random.default_rng(seed).standard_normal((40, 6)).astype(np.float32)
    everyone = np.ones(40, bool)
    held_out = np.arange(40) % 4 == 0
    known = Patients([f"{n:02d}" for n in range(40)], np.arange(40), held_out, everyone, everyone)
    table = embedded(tmp_path, known.ids, vectors)
    chosen = discovery_settings(references=8, reference_choice="spread")
    eight = choose_references(known, table, 0.0, chosen, seed)
    assert eight == farthest_first(vectors, eight[0], np.flatnonzero(~held_out).tolist(), 8)
    drawn = choose_references(known, table, 0.0, discovery_settings(references=8), seed)
    assert eight[0] == drawn[0] and eight != drawn
    gaps = [
        min(np.linalg.norm(vectors[a] - vectors[b]) for a in some for b in some if a != b) for some in (eight, drawn)
    ]
    assert gaps[0] > gaps[1]
    for fewer in range(1, 8):
        asked = discovery_settings(references=fewer, reference_choice="spread")
        assert choose_references(known, table, 0.0, asked, seed) == eight[:fewer]


@pytest.mark.parametrize("choice", ["spread", "random"])
def test_copies_of_a_reference_are_no_further_references(tmp_path, choice):
    vectors = np.ones((len(SUBJECTS), 3), np.float32)
    vectors[[SUBJECTS.index("a"), SUBJECTS.index("b")]] = 4
    table = embedded(tmp_path, patients().ids, vectors)
    chosen = choose_references(patients(), table, 0.5, discovery_settings(references=5, reference_choice=choice), 0)
    assert len(chosen) == 2 and len({SUBJECTS[number] in "ab" for number in chosen}) == 2


def test_a_copy_of_a_reference_is_no_second_reference(tmp_path):
    known = patients()
    table = on_a_line(tmp_path)
    first, second, _ = choose_references(known, table, 0.0, discovery_settings(references=3), 0)
    far = float(np.linalg.norm(table.take(np.array([first])) - table.take(np.array([second]))))
    chosen = choose_references(known, table, far, discovery_settings(references=3), 0)
    assert chosen[0] == first and second not in chosen
