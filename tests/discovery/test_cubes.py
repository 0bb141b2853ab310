"""Crops: the values of the scan at known places in mm, whatever its voxels, its pyramid and its edges."""

import numpy as np
import pytest
from scipy import ndimage

from raygenesis.archive.geometry import best_level
from raygenesis.discovery import cubes as module
from raygenesis.discovery.cubes import crop_cubes, origin_of, size_mm
from raygenesis.settings import IntensitySettings
from tests.support.synthetic import archived, imaged

AS_IT_IS = IntensitySettings()


def crop_cube(volumes, row, origin, extent, shape, intensity):
    """One box alone."""
    (cube,) = crop_cubes(volumes, row, [(origin, extent)], shape, intensity)
    return cube


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def interpolated(voxels, spacing, origin, extent, shape):
    """Linear interpolation at the centres of the output's voxels, on the full level-0 array, by SciPy."""
    places = [
        (start + (np.arange(num) + 0.5) * length / num) / step - 0.5
        for start, length, num, step in zip(origin, extent, shape, spacing, strict=True)
    ]
    return ndimage.map_coordinates(voxels, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")


def scene(z, y, x):
    """A smooth object, told in mm."""
    bump = np.exp(-((z - 30) ** 2 + (y - 34) ** 2 + (x - 28) ** 2) / (2 * 9**2))
    return 0.1 + 0.6 * bump + 0.3 * np.exp(-((z - 36) ** 2 + (y - 22) ** 2 + (x - 40) ** 2) / (2 * 7**2))


@pytest.mark.parametrize(
    ("origin", "extent"),
    [
        ((10.3, 7.7, 6.1), (30.0, 20.0, 14.0)),
        ((0.0, 0.0, 0.0), (30.0, 20.0, 14.0)),  # touching the first corner
        ((50.0, 30.0, 28.0), (30.0, 20.0, 14.0)),  # and the last
        ((0.0, 0.0, 0.0), (80.0, 50.0, 42.0)),  # the whole scan
    ],
)
def test_a_crop_is_linear_interpolation_of_the_scan(tmp_path, origin, extent):
    voxels, spacing, shape = noise((40, 50, 60)), (2.0, 1.0, 0.7), (64, 56, 72)
    row = archived(tmp_path, "a", voxels, spacing, coarse_size=16)
    assert size_mm(row).tolist() == pytest.approx([80, 50, 42])
    cube = crop_cube(tmp_path, row, origin, extent, shape, AS_IT_IS)
    assert cube.shape == shape and cube.dtype == np.float32
    np.testing.assert_allclose(cube, interpolated(voxels, spacing, origin, extent, shape), atol=2e-5)


def test_a_flat_image_is_cropped_alike(tmp_path):
    voxels = noise((90, 70))
    row = archived(tmp_path, "a", voxels, (0.5, 0.8), coarse_size=16)
    cube = crop_cube(tmp_path, row, (3.1, 5.2), (12.0, 16.0), (32, 24), AS_IT_IS)
    np.testing.assert_allclose(cube, interpolated(voxels, (0.5, 0.8), (3.1, 5.2), (12, 16), (32, 24)), atol=2e-5)


def test_a_coarse_crop_is_read_from_a_coarse_level_and_shows_the_same(tmp_path):
    spacing, origin, extent, shape = (0.5, 0.5, 0.5), (8.0, 9.0, 5.0), (48.0, 44.0, 50.0), (16, 16, 16)
    voxels = imaged(scene, (128, 128, 128), spacing)
    row = archived(tmp_path, "a", voxels, spacing, coarse_size=16)
    assert best_level(row["levels"], spacing, np.array(extent) / shape) == 2
    cube = crop_cube(tmp_path, row, origin, extent, shape, AS_IT_IS)
    np.testing.assert_allclose(cube, interpolated(voxels, spacing, origin, extent, shape), atol=0.03)


def test_detail_finer_than_the_crops_voxels_becomes_its_mean(tmp_path):
    voxels = (np.indices((64, 64, 64)).sum(0) % 2).astype(np.float32)
    for coarse_size in (64, 16):  # without a pyramid, and with
        row = archived(tmp_path, f"a{coarse_size}", voxels, (1, 1, 1), coarse_size)
        cube = crop_cube(tmp_path, row, (8, 8, 8), (48, 48, 48), (12, 12, 12), AS_IT_IS)
        np.testing.assert_allclose(cube, 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((30, 60, 120), (2.0, 1.0, 0.5)), ((80, 60, 50), (0.75, 1.0, 1.2)), ((24, 24, 24), (2.5, 2.5, 2.5))],
)
def test_scanners_of_other_voxel_sizes_give_the_same_cube_of_the_same_object(tmp_path, shape, spacing):
    box = ((14.0, 12.0, 16.0), (32.0, 36.0, 30.0), (16, 16, 16))
    fine = archived(tmp_path, "fine", imaged(scene, (120, 120, 120), (0.5, 0.5, 0.5)), (0.5, 0.5, 0.5))
    other = archived(tmp_path, "other", imaged(scene, shape, spacing), spacing)
    expected, found = (crop_cube(tmp_path, row, *box, AS_IT_IS) for row in (fine, other))
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=0.03)
    moved = crop_cube(tmp_path, other, (17.0, 12.0, 16.0), *box[1:], AS_IT_IS)
    assert np.abs(moved - expected).max() > 0.1  # 3 mm off would be noticed


def test_an_edge_lies_at_its_place_in_mm(tmp_path):
    voxels = np.zeros((20, 40, 40), np.float32)
    voxels[12:] = 1  # from 36 mm on, of 60
    row = archived(tmp_path, "a", voxels, (3.0, 1.0, 1.0))
    cube = crop_cube(tmp_path, row, (26.0, 5, 5), (20.0, 30, 30), (40, 8, 8), AS_IT_IS)
    profile = cube.mean((1, 2))
    centres = 26 + (np.arange(40) + 0.5) * 0.5
    assert np.interp(0.5, profile, centres) == pytest.approx(36, abs=0.01)


def test_the_saved_cube_is_normalised_as_the_settings_say(tmp_path):
    """The published code normalised the volume it looked at, and saved cubes of the other."""
    hounsfield = np.linspace(-2000, 2000, 16**3).reshape(16, 16, 16)
    stored = np.rint((hounsfield + 1024) / 2).astype(np.int16)
    row = archived(tmp_path, "a", stored, (1, 1, 1), slope=2.0, intercept=-1024.0, low=[-400.0], high=[900.0])
    box = ((0, 0, 0), (16, 16, 16), (16, 16, 16))
    windowed = crop_cube(tmp_path, row, *box, IntensitySettings(window=(-1000, 1000)))
    values = stored.astype(np.float64) * 2 - 1024
    np.testing.assert_allclose(windowed, np.clip((values + 1000) / 2000, 0, 1), atol=1e-5)
    scaled = crop_cube(tmp_path, row, *box, AS_IT_IS)
    np.testing.assert_allclose(scaled, np.clip((stored.astype(np.float64) + 400) / 1300, 0, 1), atol=1e-5)
    assert windowed.min() == scaled.min() == 0 and windowed.max() == scaled.max() == 1


# --- the edge of the scan -------------------------------------------------------------------------


def test_boxes_are_moved_inside_and_never_cut():
    size, extent = np.array([60.0, 50.0, 40.0]), np.array([20.0, 20.0, 20.0])
    centres = np.array([[30.0, 25, 20], [1, 49, 20], [-30, 300, 39], [10, 40, 30]])
    expected = [[20, 15, 10], [0, 30, 10], [0, 30, 20], [0, 30, 20]]
    assert origin_of(centres, extent, size).tolist() == expected


def test_a_box_as_large_as_the_scan_is_the_scan():
    assert origin_of(np.array([12.0, 99.0]), np.array([50.0, 40.0]), np.array([50.0, 40.0])).tolist() == [0, 0]


def test_crops_at_the_edges_of_a_small_scan_are_whole(tmp_path):
    """The published code gave short crops where a neighbour was smaller than the reference."""
    voxels = noise((17, 13, 19))
    row = archived(tmp_path, "small", voxels, (1.5, 1.5, 1.5), coarse_size=8)
    extent = np.array([12.0, 12.0, 12.0])
    for centre in ([0, 0, 0], [100, 100, 100], [0, 100, 14]):
        origin = origin_of(np.array(centre, float), extent, size_mm(row))
        cube = crop_cube(tmp_path, row, origin, extent, (8, 16, 8), AS_IT_IS)
        assert cube.shape == (8, 16, 8)
        np.testing.assert_allclose(cube, interpolated(voxels, (1.5,) * 3, origin, extent, (8, 16, 8)), atol=2e-5)


# --- several boxes at once ------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(), (2,)])
def test_boxes_cropped_together_are_those_cropped_alone(tmp_path, channels):
    row = archived(tmp_path, "a", noise((*channels, 64, 60, 66)), (1.0, 1.1, 0.9), coarse_size=16)
    generator = np.random.default_rng(0)
    boxes = []
    for extent in generator.uniform(6, 50, (12, 3)):  # of several levels
        boxes.append((origin_of(generator.uniform(0, 60, 3), extent, size_mm(row)), extent))
    levels = {best_level(row["levels"], row["spacing_mm"], extent / 8) for _, extent in boxes}
    assert len(levels) > 1
    chosen = IntensitySettings(channel=len(channels))
    cubes = crop_cubes(tmp_path, row, boxes, (8, 8, 8), chosen)
    for cube, box in zip(cubes, boxes, strict=True):
        np.testing.assert_array_equal(cube, crop_cube(tmp_path, row, *box, (8, 8, 8), chosen))


def test_each_level_is_read_once_however_many_boxes(tmp_path, monkeypatch):
    row = archived(tmp_path, "a", noise((64, 60, 66)), (1.0, 1.0, 1.0), coarse_size=16)
    asked = []
    plain = module.read_regions
    monkeypatch.setattr(
        module, "read_regions", lambda folder, level, *rest: asked.append(level) or plain(folder, level, *rest)
    )
    boxes = [((n, n, n), (extent,) * 3) for n in range(8) for extent in (6, 20, 40)]
    crop_cubes(tmp_path, row, boxes, (8, 8, 8), AS_IT_IS)
    assert asked == sorted(set(asked)) and len(asked) > 1
    assert crop_cubes(tmp_path, row, [], (8, 8, 8), AS_IT_IS) == []
