"""Corruptions: their laws against slow replays, their strengths against METHOD.md's table."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from raygenesis.patterns.cells import STEPS
from raygenesis.pretraining import corruption_steps, corruptions
from raygenesis.pretraining.corruption_sets import CORRUPTIONS
from raygenesis.pretraining.corruptions import CubeTooSmallError, choose, corrupt
from raygenesis.pretraining.draws import Draws

CUBE = (64, 64, 32)
GENESIS, RELEASED = CORRUPTIONS["models-genesis"], CORRUPTIONS["semantic-genesis-released"]
SWAPPED = CORRUPTIONS["patch-shuffling"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Where others use the same cores, torch's threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def streams(n, first=0, seed=1, epoch=0):
    return Draws.of(seed, torch.arange(first, first + n), epoch)


def cubes(n, shape=(20, 17, 18), channels=1):
    return torch.rand(n, channels, *shape, generator=torch.Generator().manual_seed(0))


def voxel_numbers(n, shape):
    """Cubes whose values are their own voxel numbers (exact in float32 up to 2**24)."""
    return torch.arange(np.prod(shape)).float().view(1, 1, *shape).repeat(n, 1, *[1] * len(shape))


def shuffled(cubes, draws, corruption=GENESIS):
    bank = bank_of(cubes.shape[2:], corruption)
    cubes = cubes.clone()
    corruption_steps.shuffle(cubes, corruption_steps.shuffle_planes(draws, bank), bank)
    return cubes


def bank_of(shape, corruption=GENESIS):
    settings = corruption.shuffle_blocks, corruption.shuffle_max_fraction
    return corruption_steps.shuffle_bank(tuple(shape), *settings, torch.device("cpu"))


def painted(cubes, draws, corruption=GENESIS, outside=False):
    cubes, where = cubes.clone(), torch.full((len(cubes),), outside)
    corruption_steps.paint(cubes, *corruption_steps.painting(draws, cubes.shape[1:], where, corruption))
    return cubes


def swapped(cubes, draws):
    cubes, blocks = cubes.clone(), corruption_steps.swapped_blocks(draws, cubes.shape[2:], SWAPPED)
    _, longest = corruption_steps.swap_sides(cubes.shape[2:], SWAPPED)
    corruption_steps.swap(cubes, *blocks, longest)
    return cubes, [part.numpy() for part in blocks]


def hidden_fractions(outside, corruption, shape=CUBE, n=256, batch=16):
    marked = torch.full((batch, 1, *shape), 2.0)  # noise stays below 1
    parts = (painted(marked, streams(batch, first), corruption, outside) != 2 for first in range(0, n, batch))
    return torch.cat([part.flatten(1).double().mean(1) for part in parts])


# --- local shuffling against a replay of the block process ---------------------------------------


def replayed_sources(shape, blocks, rng):
    """Voxel number shown at each voxel after the blocks were laid one by one."""
    original = np.arange(np.prod(shape)).reshape(shape)
    shown = original.copy()
    for _ in range(blocks):
        sides = [rng.integers(1, max(1, dim // 10) + 1) for dim in shape]
        starts = [rng.integers(0, dim - side + 1) for dim, side in zip(shape, sides, strict=True)]
        block = tuple(slice(at, at + side) for at, side in zip(starts, sides, strict=True))
        shown[block] = rng.permutation(original[block].ravel()).reshape(sides)
    return shown


def step_shares(sources, axis, positions):
    """Share of each step between voxel and source along an axis; float64 [cubes, steps]."""
    shape = sources.shape[1:]
    longest = max(1, shape[axis] // 10)
    steps = np.unravel_index(sources, shape)[axis] - np.indices(shape)[axis]
    steps = np.take(steps, positions, axis + 1).reshape(len(sources), -1) + longest
    return np.stack([np.bincount(one, minlength=2 * longest + 1) / one.size for one in steps])


def assert_same_means(found, expected):
    """Means over cubes (axis 0) within six standard errors, and 0.002 where those are tiny."""
    error = np.sqrt(found.var(0) / len(found) + expected.var(0) / len(expected))
    assert (np.abs(found.mean(0) - expected.mean(0)) < 6 * error + 0.002).all()


@pytest.mark.parametrize(
    ("shape", "blocks", "replays"),
    [(CUBE, 10_000, 12), ((32, 32, 32), 10_000, 12), ((48, 40), 200, 100)],
)
def test_the_bank_follows_the_law_of_the_block_process(shape, blocks, replays):
    rng = np.random.default_rng(0)
    replayed = np.stack([replayed_sources(shape, blocks, rng) for _ in range(replays)])
    drawn = bank_of(shape, replace(GENESIS, shuffle_blocks=blocks)).numpy().reshape(-1, *shape)
    here = np.arange(np.prod(shape)).reshape(shape)
    changed = [(cubes != here).reshape(len(cubes), -1).mean(1) for cubes in (drawn, replayed)]
    assert_same_means(*changed)
    # Sources shown more than once, as later blocks leave only parts of earlier ones.
    assert_same_means(*(np.array([len(np.unique(one)) / one.size for one in cubes]) for cubes in (drawn, replayed)))
    for axis, dim in enumerate(shape):
        for positions in (range(dim), [0], [1], [dim - 1]):  # the law is another near the edges
            assert_same_means(*(step_shares(cubes, axis, positions) for cubes in (drawn, replayed)))


def test_a_single_block_holds_a_permutation_of_itself():
    one_block = replace(GENESIS, shuffle_blocks=1)
    here = np.arange(24 * 30 * 40)
    for replay in bank_of((24, 30, 40), one_block).numpy().reshape(-1, here.size):
        moved = replay != here
        assert (np.sort(replay) == here).all()
        if moved.any():
            places = np.unravel_index(np.flatnonzero(moved), (24, 30, 40))
            assert all(np.ptp(at) < side for at, side in zip(places, (2, 3, 4), strict=True))


@pytest.mark.parametrize(("shape", "channels"), [((20, 17, 18), 1), ((20, 17, 18), 3), ((48, 40), 2)])
def test_every_plane_comes_from_its_drawn_replay(shape, channels):
    bank, original = bank_of(shape), cubes(5, shape, channels)
    planes = corruption_steps.shuffle_planes(streams(5), bank)
    found = shuffled(original, streams(5))
    for cube, choice, result in zip(original.numpy(), planes.tolist(), found.numpy(), strict=True):
        source = np.stack([bank[replay, plane].numpy() for plane, replay in enumerate(choice)])
        expected = cube.reshape(channels, -1)[:, source.ravel()]
        assert np.array_equal(result, expected.reshape(cube.shape))


def test_replays_are_drawn_evenly_and_planes_apart():
    bank = bank_of((20, 17, 18))
    assert bank.shape == (32, 20, 17 * 18)
    planes = corruption_steps.shuffle_planes(streams(2000), bank)
    assert stats.chisquare(torch.bincount(planes.flatten(), minlength=32).numpy()).pvalue > 1e-3
    pairs = torch.bincount((planes[:, :-1] * 32 + planes[:, 1:]).flatten(), minlength=32 * 32)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-3


def test_the_bank_of_a_large_cube_is_bounded():
    few = replace(GENESIS, shuffle_blocks=3)
    assert bank_of((128, 128, 128), few).nbytes == 2**26
    assert len(bank_of((256, 256, 128), few)) == 4


def test_shuffling_strengths_of_the_table():
    for corruption, fraction, tolerance in ((GENESIS, 0.79, 0.01), (RELEASED, 0.0008, 0.0001)):
        numbers = voxel_numbers(16, CUBE)
        changed = shuffled(numbers, streams(16), corruption) != numbers
        assert changed.double().mean().item() == pytest.approx(fraction, abs=tolerance)


# --- block swapping against a slow replay --------------------------------------------------------

SWAP_SHAPES = [((20, 17, 18), 2), ((48, 40), 3), (CUBE, 1), ((3, 2, 5), 1)]


@pytest.mark.parametrize(("shape", "channels"), SWAP_SHAPES)
def test_swapping_is_that_of_a_replay(shape, channels):
    original = cubes(6, shape, channels)
    found, (sides, first, second) = swapped(original, streams(6))
    for sample, cube in enumerate(original.numpy().copy()):
        for side, *starts in zip(sides[sample], first[sample], second[sample], strict=True):
            one, other = ((slice(None), *map(slice, start, start + side)) for start in starts)
            cube[one], cube[other] = cube[other].copy(), cube[one].copy()
        assert np.array_equal(found[sample].numpy(), cube)


@pytest.mark.parametrize(("shape", "channels"), SWAP_SHAPES)
def test_swapping_keeps_all_values_and_channels_together(shape, channels):
    numbers = voxel_numbers(6, shape) + torch.arange(channels).view(1, channels, *[1] * len(shape)) / 4
    found, _ = swapped(numbers, streams(6))
    assert torch.equal(found.flatten(2).sort(2).values, numbers.flatten(2))
    assert torch.equal(found - numbers[:, :, *[slice(0, 1)] * len(shape)], (found[:, :1]).expand_as(found))
    assert (found != numbers).flatten(1).any(1).all()


@pytest.mark.parametrize(("shape", "channels"), SWAP_SHAPES)
def test_swapped_blocks_are_apart_and_inside(shape, channels):
    sides, first, second = (part.numpy() for part in corruption_steps.swapped_blocks(streams(500), shape, SWAPPED))
    dims = np.array(shape)
    assert sides.shape == (500, 10, len(shape))
    assert (sides.min((0, 1)) == np.maximum(1, dims // 8)).all()
    assert (sides.max((0, 1)) == np.maximum(1, dims // 4)).all()
    ends = np.maximum(first, second) + sides
    assert (np.minimum(first, second).min((0, 1)) == 0).all() and (ends.max((0, 1)) == dims).all()
    assert (np.abs(first - second) >= sides).any(2).all()


def test_the_strength_of_swapping():
    """Against boxes drawn by NumPy: two starts put in order, the later moved on by a side, along one axis."""
    rng, fractions = np.random.default_rng(0), []
    for _ in range(200):
        cube = original = np.arange(np.prod(CUBE)).reshape(CUBE)
        cube = cube.copy()
        for _ in range(10):
            side = np.array([rng.integers(dim // 8, dim // 4 + 1) for dim in CUBE])
            one, other = (rng.integers(0, np.array(CUBE) - side + 1) for _ in range(2))
            axis = rng.integers(3)
            low, high = sorted(rng.integers(0, CUBE[axis] - 2 * side[axis] + 1, 2))
            one[axis], other[axis] = low, high + side[axis]
            here, there = (tuple(map(slice, start, start + side)) for start in (one, other))
            cube[here], cube[there] = cube[there].copy(), cube[here].copy()
        fractions.append((cube != original).mean())
    numbers = voxel_numbers(200, CUBE)
    changed = (swapped(numbers, streams(200))[0] != numbers).flatten(1).double().mean(1).numpy()
    error = np.hypot(np.std(fractions), changed.std()) / np.sqrt(200)
    assert changed.mean() == pytest.approx(np.mean(fractions), abs=4 * error)
    assert 0.08 < changed.mean() < 0.14


# --- intensity curves against a fine NumPy evaluation --------------------------------------------


def test_curves_lie_on_their_beziers():
    draws = streams(100)
    tables = corruption_steps.intensity_curves(draws).double().numpy()
    t = np.linspace(0, 1, 100_001)
    knots = np.linspace(0, 1, tables.shape[1])
    for table, numbers in zip(tables, draws.uniform("curve", (5,)).double().numpy(), strict=True):
        a, b, c, d, inverts = numbers
        x = 3 * a * t * (1 - t) ** 2 + 3 * c * t**2 * (1 - t) + t**3
        y = 3 * b * t * (1 - t) ** 2 + 3 * d * t**2 * (1 - t) + t**3
        rising = 1 - table if inverts < 0.5 else table
        # A steep curve is pinned down by where it is, not by how high: allow a shift of 1e-4 in x.
        below, above = (np.interp(knots + shift, x, y) for shift in (-1e-4, 1e-4))
        assert (rising >= below - 1e-4).all() and (rising <= above + 1e-4).all()


def test_curves_are_monotone_from_end_to_end_and_half_are_inverted():
    tables = corruption_steps.intensity_curves(streams(2000))
    steps = tables.diff(dim=1)
    rising, falling = (steps >= -1e-6).all(1), (steps <= 1e-6).all(1)
    assert (rising ^ falling).all()
    assert torch.equal(tables[:, 0], falling.float()) and torch.equal(tables[:, -1], rising.float())
    assert falling.double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_tables_hold_the_curves_at_the_stored_steps():
    tables, curves = corruption_steps.intensity_tables(streams(50)), corruption_steps.intensity_curves(streams(50))
    steps = np.linspace(0, 1, STEPS + 1)
    for table, curve in zip(tables, curves, strict=True):
        np.testing.assert_allclose(table, np.interp(steps, np.linspace(0, 1, len(curve)), curve), atol=1e-6)
    assert torch.equal(tables[:, [0, -1]], curves[:, [0, -1]])


def test_stored_values_meet_their_entry_and_others_the_nearest():
    tables = corruption_steps.intensity_tables(streams(4))
    stored = torch.arange(STEPS + 1).float() * np.float32(1 / STEPS)  # as cubes are decoded
    for shift in (0.0, 0.4 / STEPS, -0.4 / STEPS):
        values = (stored + shift).view(1, 1, 64, 64).repeat(4, 2, 1, 1)
        corruption_steps.nonlinear(values, tables)
        assert torch.equal(values, tables.view(4, 1, 64, 64).expand_as(values))
    outside = torch.tensor([-1.0, 2.0, torch.inf, -torch.inf]).view(1, 1, 2, 2)
    corruption_steps.nonlinear(outside, tables[:1])
    assert set(outside.flatten().tolist()) <= {0.0, 1.0}


# --- painting ------------------------------------------------------------------------------------


def replayed_hidden(shape, sides, number, n, rng):
    """Mean fraction of a cube inside the boxes, one box after another."""
    fractions = []
    for _ in range(n):
        inside = np.zeros(shape, dtype=bool)
        for box in range(number[1]):
            if box >= number[0] and rng.random() >= 0.95:
                break
            side = [rng.integers(low, high + 1) for low, high in sides]
            start = [rng.integers(3, d - s - 3 + 1) for d, s in zip(shape, side, strict=True)]
            inside[tuple(slice(at, at + s) for at, s in zip(start, side, strict=True))] = True
        fractions.append(inside.mean())
    return np.mean(fractions)


@pytest.mark.parametrize("shape", [CUBE, (16, 24, 20), (96, 64)])
def test_boxes_follow_the_law_of_a_replay(shape):
    rng = np.random.default_rng(0)
    blocks = [(d // 6, d // 3) for d in shape]
    windows = [(d - 4 * d // 7, d - 3 * d // 7) for d in shape]
    inside = hidden_fractions(False, GENESIS, shape)
    outside = hidden_fractions(True, GENESIS, shape)
    for found, expected in (
        (inside, replayed_hidden(shape, blocks, (0, 5), 1000, rng)),
        (1 - outside, replayed_hidden(shape, windows, (1, 5), 1000, rng)),
    ):
        error = found.std().item() * np.sqrt(1 / len(found) + 1 / 1000)
        assert found.mean().item() == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize(("corruption", "inside", "outside"), [(GENESIS, 0.058, 0.69), (RELEASED, 0.014, 0.87)])
def test_painting_strengths_of_the_table(corruption, inside, outside):
    hidden = hidden_fractions(False, corruption).mean().item()
    assert hidden == pytest.approx(inside, abs=0.005 if corruption is GENESIS else 0.001)
    hidden = hidden_fractions(True, corruption).mean().item()
    assert hidden == pytest.approx(outside, abs=0.015)


@pytest.mark.parametrize(("shape", "share"), [(CUBE, 45 / 64), ((32, 32, 32), 45 / 64), ((224, 224), 137 / 196)])
def test_masks_hide_the_same_share_of_every_cube_and_leave_the_rest(shape, share):
    original = 0.1 + 0.9 * cubes(16, shape, channels=2)
    corrupted, target = corrupt(original, streams(16), CORRUPTIONS["mae"])
    assert torch.equal(target, original)
    hidden = corruptions.masked_places(original, streams(16), CORRUPTIONS["mae"])
    assert hidden.flatten(1).double().mean(1).tolist() == pytest.approx([share] * 16, abs=1e-9)
    assert torch.equal(corrupted, torch.where(hidden, 0.0, original))
    assert corruptions.masked_places(original, streams(16), GENESIS) is None


def test_masks_come_last_and_follow_the_flips_of_what_is_to_be_restored():
    both, original = replace(GENESIS, flip_probability=1.0, mask_ratio=0.5), 0.1 + 0.9 * cubes(6, (32, 32))
    corrupted, target = corrupt(original, streams(6), both)
    hidden = corruptions.masked_places(original, streams(6), both)
    unmasked, same = corrupt(original, streams(6), replace(both, mask_ratio=0.0))
    assert torch.equal(target, same) and not torch.equal(target, original)
    assert torch.equal(corrupted, torch.where(hidden, 0.0, unmasked))


def test_painted_boxes_keep_off_the_edge():
    marked = torch.full((64, 1, *CUBE), 2.0)
    holes = (painted(marked, streams(64)) != 2).any(0)[0]
    windows = (painted(marked, streams(64), outside=True) == 2).any(0)[0]
    for touched in (holes, windows):
        inner = touched[3:-3, 3:-3, 3:-3]
        assert touched.sum() == inner.sum()
        assert inner[0].any() and inner[-1].any() and inner[..., 0].any() and inner[..., -1].any()


def test_painting_is_uniform_noise_per_voxel_and_channel():
    marked = torch.full((8, 2, *CUBE), 2.0)
    found = painted(marked, streams(8), RELEASED, outside=True)
    assert stats.kstest(found[found != 2].double().numpy(), "uniform").statistic < 0.002
    first, second = found.unbind(1)
    assert torch.equal(first == 2, second == 2)
    # On planes that no window leaves anything of, every one of all samples and channels is its own.
    planes = found[:, :, :3].flatten(0, 2).flatten(1).numpy()
    p_values = [stats.kstest(plane, "uniform").pvalue for plane in planes]
    assert min(p_values) > 1e-5
    correlations = np.corrcoef(planes)[np.triu_indices(len(planes), 1)]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(planes.shape[1])


def test_noise_of_a_long_plane_fits_its_table():
    found = painted(torch.full((1, 1, 20, 768, 768), 2.0), streams(1), outside=True)
    noise = found[found != 2]
    assert noise.min() >= 0 and noise.max() < 1
    assert not torch.equal(found[0, 0, 0], found[0, 0, 1])


def test_in_and_outpainting_are_painted_together_as_alone():
    marked, outside = torch.full((8, 1, 32, 32, 32), 2.0), torch.arange(8) % 2 == 1
    both = marked.clone()
    corruption_steps.paint(both, *corruption_steps.painting(streams(8), marked.shape[1:], outside, GENESIS))
    for kind in (False, True):
        alone = painted(marked, streams(8), GENESIS, kind)
        assert torch.equal(both[outside == kind], alone[outside == kind])


# --- which sample gets what ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("models-genesis", (0.5, 0.9, 0.18, 0.72, 0)),
        ("semantic-genesis-paper", (0.5, 0.9, 0.18, 0.72, 0)),
        ("semantic-genesis-released", (0.25, 0.25, 0.25, 0.25, 0)),
        ("in-painting", (0, 0, 1, 0, 0)),
        ("patch-shuffling", (0, 0, 0, 0, 1)),
        ("mae", (0, 0, 0, 0, 0)),
        ("none", (0, 0, 0, 0, 0)),
    ],
)
def test_shares_of_the_presets(name, shares):
    chosen = choose(streams(20_000), CORRUPTIONS[name])
    found = [mask.double().mean().item() for mask in chosen]
    assert found == pytest.approx(shares, abs=0.015)
    assert not (chosen.inpaint & chosen.outpaint).any()
    if CORRUPTIONS[name].exclusive:
        assert (torch.stack(chosen).sum(0) == 1).all()


def test_presets_are_named_as_listed():
    swapping = replace(RELEASED, swap_probability=1.0)  # without effect in an exclusive set
    assert not choose(streams(100), swapping).swap.any()
    assert all(name == preset.name for name, preset in CORRUPTIONS.items())
    # The paper's four corruptions at Models Genesis' strengths; only Models Genesis flips.
    assert replace(CORRUPTIONS["semantic-genesis-paper"], name="models-genesis", flip_probability=0.4) == GENESIS


def test_the_chosen_corruptions_are_the_ones_applied():
    original = cubes(64, (32, 32, 32))
    corrupted, target = corrupt(original, streams(64), RELEASED)
    assert torch.equal(target, original)
    chosen = choose(streams(64), RELEASED)
    changed = (corrupted != target).flatten(1).double().mean(1)
    assert (changed[chosen.shuffle] < 0.02).all()
    assert (changed[chosen.nonlinear] > 0.95).all()
    assert ((changed[chosen.inpaint] > 0) & (changed[chosen.inpaint] < 0.05)).all()
    assert ((changed[chosen.outpaint] > 0.5) & (changed[chosen.outpaint] < 1)).all()


# --- flips and the whole -------------------------------------------------------------------------


def test_target_is_the_flipped_original():
    original = cubes(400)
    _, target = corrupt(original, streams(400), GENESIS)
    axes = [dims for k in range(4) for dims in _subsets((2, 3, 4), k)]
    is_flip = torch.stack([(target == original.flip(dims)).flatten(1).all(1) for dims in axes])
    assert (is_flip.sum(0) == 1).all()
    # One, two and three flips have probability 0.4 * 0.6, 0.16 * 0.6 and 0.064; two of the same
    # axis (1/3) undo each other; three never do.
    unflipped = is_flip[0].double().mean().item()
    assert unflipped == pytest.approx(0.6 + 0.096 / 3, abs=0.1)
    per_axis = is_flip[1:4].double().mean(1)
    assert per_axis.tolist() == pytest.approx([(0.24 + 0.064 * 7 / 9) / 3] * 3, abs=0.06)


def _subsets(items, size):
    if size == 0:
        return [()]
    return [(item, *rest) for i, item in enumerate(items) for rest in _subsets(items[i + 1 :], size - 1)]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(20, 17, 18), (16, 16, 16), (224, 224)])
def test_values_and_shapes(name, shape):
    original = cubes(12, shape, channels=2)
    before = original.clone()
    corrupted, target = corrupt(original, streams(12), CORRUPTIONS[name])
    assert torch.equal(original, before)
    for result in (corrupted, target):
        assert result.shape == original.shape and result.dtype == torch.float32
        assert result.min() >= 0 and result.max() <= 1
    assert torch.equal(corrupted, original) == (name == "none")


@pytest.mark.parametrize("name", ["models-genesis", "semantic-genesis-released", "patch-shuffling", "mae"])
@pytest.mark.parametrize(("shape", "channels"), [((20, 17, 18), 2), ((64, 64, 32), 1), ((37, 41), 3)])
def test_batching_and_order_do_not_matter(name, shape, channels, monkeypatch):
    original, corruption = cubes(8, shape, channels), CORRUPTIONS[name]
    corrupted, target = corrupt(original, streams(8), corruption)
    for i in range(8):
        one, one_target = corrupt(original[i : i + 1], streams(1, first=i), corruption)
        assert torch.equal(one[0], corrupted[i]) and torch.equal(one_target[0], target[i])
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    permuted, _ = corrupt(original[order], streams(8).select(order), corruption)
    assert torch.equal(permuted, corrupted[order])
    for values in (1, 3 * original[0].numel(), 2**30):  # one, three and all samples at once
        monkeypatch.setattr(corruptions, "_CPU_PART", values)
        assert all(map(torch.equal, corrupt(original, streams(8), corruption), (corrupted, target)))


def test_an_epoch_repeats_itself_and_differs_from_the_next():
    original = cubes(4)
    first, again, following = (corrupt(original, streams(4, epoch=epoch), GENESIS)[0] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert all(not torch.equal(one, other) for one, other in zip(first, following, strict=True))


@pytest.mark.parametrize(
    ("name", "shape", "smallest"),
    [("models-genesis", (64, 64, 13), 14), ("in-painting", (7, 64), 8), ("patch-shuffling", (1, 64), 2)],
)
def test_too_small_cubes_are_refused(name, shape, smallest):
    with pytest.raises(CubeTooSmallError, match=rf"{shape[0]}, {shape[1]}.*at least {smallest} "):
        corrupt(cubes(2, shape), streams(2), CORRUPTIONS[name])
    larger = tuple(max(side, smallest) for side in shape)
    corrupt(cubes(2, larger), streams(2), CORRUPTIONS[name])


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="float32"):
        corrupt(cubes(2).double(), streams(2), GENESIS)
    with pytest.raises(ValueError, match="3 samples"):
        corrupt(cubes(2), streams(3), GENESIS)
    with pytest.raises(ValueError, match="on the CPU"):
        corrupt(cubes(2), Draws(torch.zeros(2, dtype=torch.int64, device="meta")), GENESIS)
    with pytest.raises(ValueError, match="more than 8"):
        replace(GENESIS, outpaint_windows=(1, 9))
    with pytest.raises(ValueError, match="swap_fractions"):
        replace(GENESIS, swap_fractions=(8, 1))
    with pytest.raises(ValueError, match="mask_ratio"):
        replace(GENESIS, mask_ratio=1.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees():
    original = cubes(16, CUBE, channels=2)
    curved = replace(CORRUPTIONS["none"], nonlinear_probability=1.0)
    for corruption in (replace(GENESIS, nonlinear_probability=0.0), SWAPPED, curved, CORRUPTIONS["mae"]):
        here = corrupt(original, streams(16), corruption)
        there = corrupt(original.cuda(), streams(16), corruption)
        for one, other in zip(here, there, strict=True):
            assert torch.equal(other.cpu(), one)
