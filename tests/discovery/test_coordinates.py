"""Coordinates: they fit, show anatomy, keep their distance and cover the scan; and what corresponds to them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.discovery.coordinates import (
    CoordinateError,
    Frame,
    candidates,
    content,
    corresponding,
    frame_of,
    largest_extent,
    spread,
)
from raygenesis.settings import DiscoverySettings, Scale


def generator(seed=0):
    return np.random.default_rng(seed)


def nearest_pair(places):
    return min((float(np.linalg.norm(a - b)) for a, b in itertools.combinations(places, 2)), default=np.inf)


# --- where a crop fits ----------------------------------------------------------------------------


def test_the_largest_extent_holds_every_scale_with_its_jitter_in_plane():
    scales = [Scale(extent_mm=(40, 30, 20)), Scale(extent_mm=(30, 40, 50), extent_jitter=0.2, shift_mm=6)]
    assert largest_extent(scales) == pytest.approx((40, 40 * 1.2 + 12, 50 * 1.2 + 12))
    flat = [Scale(extent_mm=(30, 40), extent_jitter=0.5, shift_mm=2)]
    assert largest_extent(flat) == pytest.approx((49, 64))


def test_every_candidate_leaves_room_for_the_largest_crop():
    chosen = DiscoverySettings(scales=(Scale(extent_mm=(20, 16, 12), extent_jitter=0.25, shift_mm=2),), min_content=0)
    scan = generator().random((10, 20, 30)).astype(np.float32)
    spacing, size = (6.0, 3.0, 2.0), np.array([58.0, 59.0, 60.0])  # the last coarse voxels reach beyond the scan
    places = candidates(scan, spacing, size, chosen)
    reach = np.array([20, 16 * 1.25 + 4, 12 * 1.25 + 4])
    assert len(places)
    assert (places - reach / 2 >= 0).all() and (places + reach / 2 <= size).all()
    fitting = [
        sum(reach[axis] / 2 <= (n + 0.5) * step <= size[axis] - reach[axis] / 2 for n in range(scan.shape[axis]))
        for axis, step in enumerate(spacing)
    ]
    assert len(places) == np.prod(fitting)


def test_a_scan_that_just_fits_has_its_centre_as_the_only_candidate():
    chosen = DiscoverySettings(scales=(Scale(extent_mm=(30, 30, 30)),), min_content=0)
    scan = generator().random((3, 3, 3)).astype(np.float32)
    assert candidates(scan, (10, 10, 10), (30, 30, 30), chosen).tolist() == [[15, 15, 15]]


# --- the box ------------------------------------------------------------------------------------


def test_candidates_lie_in_the_box_of_the_settings():
    """Fractions of the scan's own sides, not of the coarse level's, whose last voxels reach beyond the scan."""
    scan = generator().random((10, 20, 30)).astype(np.float32)
    spacing, size = (6.0, 3.0, 2.0), np.array([57.0, 60.0, 59.0])
    chosen = DiscoverySettings(scales=(Scale(extent_mm=(2, 2, 2)),), min_content=0)
    anywhere = candidates(scan, spacing, size, chosen)
    for box in (((0.2, 0.8), (0, 0.5), (0, 1)), ((0, 1), (0.5, 1), (0.9, 1)), ((0, 1), (0, 1), (0, 1))):
        low, high = np.array(box).T * size
        inside = candidates(scan, spacing, size, chosen.model_copy(update={"box": box}))
        expected = [place for place in anywhere if (place >= low).all() and (place <= high).all()]
        assert len(inside) and inside.tolist() == np.array(expected).tolist()


def test_a_box_of_a_picture_has_two_sides_and_an_empty_one_is_refused_naming_it():
    scan = generator().random((40, 40)).astype(np.float32)
    chosen = DiscoverySettings(
        cube_shape=(8, 8), scales=(Scale(extent_mm=(10, 10)),), min_content=0, box=((0, 0.3), (0.4, 0.6))
    )
    places = candidates(scan, (1, 1), (40, 40), chosen)
    assert places[:, 0].min() == 5.5 and places[:, 0].max() == 11.5
    assert places[:, 1].min() == 16.5 and places[:, 1].max() == 23.5
    edge = chosen.model_copy(update={"box": ((0, 0.1), (0, 1))})  # where no crop fits
    with pytest.raises(CoordinateError, match=r"widen discovery\.box"):
        spread(candidates(scan, (1, 1), (40, 40), edge), 1, 0, generator())


# --- the content rule -----------------------------------------------------------------------------


def test_content_is_the_share_of_voxels_whose_neighbourhood_varies():
    scan = generator().random((9, 11, 13)).astype(np.float32)
    scan[:, :, 7:] = 0.5
    found = content(scan, (3, 5, 5))
    shows = np.zeros(scan.shape)
    for z, y, x in np.ndindex(scan.shape):
        around = np.pad(scan, 1, mode="edge")[z : z + 3, y : y + 3, x : x + 3]
        shows[z, y, x] = around.astype(np.float64).std() >= 0.1 * scan.std()
    assert shows[:, :, :7].all() and not shows[:, :, 9:].any()
    for z, y, x in ((1, 2, 3), (4, 5, 6), (7, 8, 9), (4, 5, 10)):
        window = shows[z - 1 : z + 2, y - 2 : y + 3, x - 2 : x + 3]
        assert found[z, y, x] == pytest.approx(window.mean(), abs=1e-5)


def test_air_and_flat_tissue_are_no_anatomy_in_any_modality():
    head = np.zeros((12, 24, 36), np.float32)  # air
    head[:, :, 12:24] = 0.8  # flat tissue
    head[:, :, 24:] = generator().random((12, 24, 12))  # anatomy
    chosen = DiscoverySettings(scales=(Scale(extent_mm=(4, 4, 4)),), min_content=0.6)
    for scan in (head, 1 - head, 0.1 + head / 100):  # as bright, inverted, and faint as may be
        x = candidates(scan, (1, 1, 1), scan.shape, chosen)[:, 2]
        assert not (x < 23).any()  # the edge of a tissue alone is not enough
        assert (x > 26).sum() == 8 * 20 * 8  # all anatomy where a crop fits


@pytest.mark.parametrize("value", [0, 1e-3, 0.1, 0.3, 0.5, 0.77, 0.999, 1])  # whatever their squares are rounded to
def test_a_scan_without_content_has_no_candidates(value):
    flat = np.full((8, 8, 8), value, np.float32)
    chosen = DiscoverySettings(scales=(Scale(extent_mm=(2, 2, 2)),))
    places = candidates(flat, (1, 1, 1), (8, 8, 8), chosen)
    assert len(places) == 0
    with pytest.raises(CoordinateError, match=r"discovery\.scales.*discovery\.min_content"):
        spread(places, 1, 0, generator())


# --- spreading ------------------------------------------------------------------------------------


def one_after_another(places, count, first):
    """Farthest-point choice, as a plain loop."""
    chosen = [first]
    while len(chosen) < count:
        gaps = [min(np.linalg.norm(place - places[other]) for other in chosen) for place in places]
        chosen.append(int(np.argmax(gaps)))
    return places[chosen]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0, 25), st.sampled_from([2, 3]))
def test_coordinates_keep_their_distance_or_are_refused(seed, count, distance, ndim):
    places = generator(seed).uniform(0, 50, (60, ndim))
    try:
        chosen = spread(places, count, distance, generator(seed))
    except CoordinateError as error:
        assert "discovery.num_coordinates" in str(error) and "discovery.min_distance_mm" in str(error)
        return
    assert chosen.shape == (count, ndim)
    assert nearest_pair(chosen) >= max(distance, 1e-9)
    assert {tuple(place) for place in chosen} <= {tuple(place) for place in places}
    for fewer in range(1, count):
        np.testing.assert_array_equal(spread(places, fewer, distance, generator(seed)), chosen[:fewer])


def test_each_is_the_place_farthest_from_all_before_it():
    places = generator(4).uniform(0, 50, (200, 3))
    chosen = spread(places, 20, 0, generator(1))
    first = int(generator(1).integers(len(places)))
    np.testing.assert_array_equal(chosen, one_after_another(places, 20, first))


def test_coordinates_cover_the_scan():
    grid = np.argwhere(np.ones((11, 11, 11))) * 10.0
    chosen = spread(grid, 44, 10, generator())
    gaps = np.linalg.norm(grid[:, None] - chosen, axis=2).min(1)
    assert gaps.max() < 40  # of a cube 100 mm wide, whose diagonal is 173


def test_the_first_coordinate_is_drawn_and_differs_by_seed():
    places = generator().uniform(0, 50, (100, 3))
    assert len({tuple(spread(places, 1, 0, generator(seed))[0]) for seed in range(20)}) > 10


def test_a_candidate_too_near_rules_out_itself_alone():
    """The published code kept its collision flag, so that one collision ended the search."""
    crowd = np.array([[0.0, 0, n / 10] for n in range(10)])
    places = np.concatenate([crowd, [[100, 0, 0], [0, 100, 0], [0, 0, 100]]])
    chosen = spread(places, 4, 50, generator())
    assert nearest_pair(chosen) >= 50
    assert sum(place.max() < 1 for place in chosen) == 1


def test_too_many_coordinates_are_refused_naming_the_keys_and_how_many_fit():
    places = np.array([[0.0, 0], [1, 0], [10, 0], [20, 0]])
    with pytest.raises(CoordinateError) as refused:
        spread(places, 4, 5, generator())
    for part in ("discovery.num_coordinates=4", "only 3 places", "discovery.min_distance_mm=5"):
        assert part in str(refused.value)
    with pytest.raises(CoordinateError, match="only 4 places"):  # the same place is never chosen twice
        spread(places, 5, 0, generator())


# --- correspondence -------------------------------------------------------------------------------

HERE = Frame(np.array([100.0, 200, 160]), np.array([50.0, 100, 80]))
THERE = Frame(np.array([150.0, 180, 160]), np.array([60.0, 95, 80]))


def test_relative_is_the_same_fraction_of_each_side():
    places = np.array([[50.0, 100, 80], [10, 20, 40]])
    assert corresponding(places, HERE, THERE, "relative").tolist() == [[75, 90, 80], [15, 18, 40]]


def test_physical_is_the_same_offset_from_the_centre_of_the_body():
    places = np.array([[50.0, 100, 80], [10, 20, 40]])
    assert corresponding(places, HERE, THERE, "physical").tolist() == [[60, 95, 80], [20, 15, 40]]


@pytest.mark.parametrize("how", ["relative", "physical"])
def test_correspondence_goes_both_ways_and_leaves_the_reference_where_it_is(how):
    places = generator().uniform(0, 100, (20, 3))
    np.testing.assert_allclose(corresponding(places, HERE, HERE, how), places)
    np.testing.assert_allclose(corresponding(corresponding(places, HERE, THERE, how), THERE, HERE, how), places)


def ball(centre, radius, shape=(24, 30, 36), step=4.0):
    """A noisy ball of tissue in noisy air, [z, y, x], told in mm."""
    places = (np.indices(shape) + 0.5) * step
    inside = np.square(places - np.array(centre).reshape(-1, *[1] * len(shape))).sum(0) <= radius**2
    return (0.7 * inside + 0.1 * generator().random(shape)).astype(np.float32)


@pytest.mark.parametrize("centre", [(48.0, 60.0, 72.0), (40.0, 50.0, 100.0), (60.0, 84.0, 40.0)])
def test_the_frame_follows_the_body_and_not_the_field_of_view(centre):
    size = np.array([96.0, 120.0, 144.0])
    frame = frame_of(ball(centre, 30), size)
    assert frame.size_mm.tolist() == size.tolist()
    np.testing.assert_allclose(frame.body_mm, centre, atol=0.5)
    dusty = ball(centre, 30)
    dusty[:2, :2, :2] = 1  # something in a corner of the table
    np.testing.assert_allclose(frame_of(dusty, size).body_mm, centre, atol=0.5)


def test_the_body_of_a_picture_and_of_a_scan_that_shows_nothing():
    frame = frame_of(ball((40.0, 70.0), 20, (30, 36)), np.array([120.0, 144.0]))
    np.testing.assert_allclose(frame.body_mm, (40, 70), atol=0.5)
    flat = frame_of(np.full((8, 8, 8), 0.5, np.float32), np.array([80.0, 90, 100]))
    assert flat.body_mm.tolist() == [40, 45, 50]  # the middle


def test_places_move_with_the_body():
    """A patient who lies 20 mm lower has every place 20 mm lower, whatever the field of view."""
    size, places = np.array([96.0, 120.0, 144.0]), generator().uniform(30, 80, (6, 3))
    here, there = frame_of(ball((48.0, 60, 72), 30), size), frame_of(ball((48.0, 80, 64), 30), size)
    moved = corresponding(places, here, there, "physical") - places
    np.testing.assert_allclose(moved, np.tile([0.0, 20, -8], (6, 1)), atol=0.5)
    np.testing.assert_allclose(corresponding(places, here, there, "relative"), places)
