"""Corruptions: their laws against slow replays, their strengths against METHOD.md's table."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raygenesis.pretraining import corruptions
from raygenesis.pretraining.corruptions import CORRUPTIONS, CubeTooSmallError, choose, corrupt
from raygenesis.pretraining.draws import Draws

CUBE = (64, 64, 32)
GENESIS, RELEASED = CORRUPTIONS["models-genesis"], CORRUPTIONS["semantic-genesis-released"]
ALWAYS_SHUFFLED = replace(CORRUPTIONS["none"], shuffle_probability=1.0)


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


def hidden_fractions(paint, corruption, shape=CUBE, n=256, batch=16):
    marked = torch.full((batch, 1, *shape), 2.0)  # noise stays below 1
    parts = (paint(marked, streams(batch, first), corruption) != 2 for first in range(0, n, batch))
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
def test_shuffling_follows_the_law_of_the_block_process(shape, blocks, replays):
    rng = np.random.default_rng(0)
    replayed = np.stack([replayed_sources(shape, blocks, rng) for _ in range(replays)])
    corruption = replace(ALWAYS_SHUFFLED, shuffle_blocks=blocks)
    drawn = corruptions.shuffle(voxel_numbers(replays, shape), streams(replays), corruption)
    drawn = drawn[:, 0].numpy().astype(np.int64)
    here = np.arange(np.prod(shape)).reshape(shape)
    changed = [(cubes != here).reshape(replays, -1).mean(1) for cubes in (drawn, replayed)]
    assert_same_means(*changed)
    for axis, dim in enumerate(shape):
        for positions in (range(dim), [0], [1], [dim - 1]):  # the law is another near the edges
            assert_same_means(*(step_shares(cubes, axis, positions) for cubes in (drawn, replayed)))


def test_shuffling_strengths_of_the_table():
    for corruption, fraction, tolerance in ((GENESIS, 0.79, 0.01), (RELEASED, 0.0008, 0.0001)):
        numbers = voxel_numbers(16, CUBE)
        changed = corruptions.shuffle(numbers, streams(16), corruption) != numbers
        assert changed.double().mean().item() == pytest.approx(fraction, abs=tolerance)


def test_channels_are_shuffled_together():
    two = voxel_numbers(3, (32, 32, 32)).repeat(1, 2, 1, 1, 1)
    two[:, 1] += 0.5
    shuffled = corruptions.shuffle(two, streams(3), ALWAYS_SHUFFLED)
    assert torch.equal(shuffled[:, 0] + 0.5, shuffled[:, 1])
    assert (shuffled != two).any()


# --- intensity curves against a fine NumPy evaluation --------------------------------------------


def test_curves_lie_on_their_beziers():
    draws = streams(100)
    tables = corruptions.intensity_curves(draws).double().numpy()
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
    tables = corruptions.intensity_curves(streams(2000))
    steps = tables.diff(dim=1)
    rising, falling = (steps >= -1e-6).all(1), (steps <= 1e-6).all(1)
    assert (rising ^ falling).all()
    assert torch.equal(tables[:, 0], falling.float()) and torch.equal(tables[:, -1], rising.float())
    assert falling.double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_nonlinear_interpolates_the_curves():
    draws, values = streams(4), torch.linspace(0, 1, 20 * 17 * 18).view(1, 1, 20, 17, 18)
    changed = corruptions.nonlinear(values.repeat(4, 1, 1, 1, 1), draws, GENESIS)
    for table, cube in zip(corruptions.intensity_curves(draws), changed, strict=True):
        expected = np.interp(values.flatten(), np.linspace(0, 1, len(table)), table)
        np.testing.assert_allclose(cube.flatten(), expected, atol=1e-5)


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
    inside = hidden_fractions(corruptions.inpaint, GENESIS, shape)
    outside = hidden_fractions(corruptions.outpaint, GENESIS, shape)
    for found, expected in (
        (inside, replayed_hidden(shape, blocks, (0, 5), 1000, rng)),
        (1 - outside, replayed_hidden(shape, windows, (1, 5), 1000, rng)),
    ):
        error = found.std().item() * np.sqrt(1 / len(found) + 1 / 1000)
        assert found.mean().item() == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize(
    ("corruption", "inside", "outside"), [(GENESIS, 0.058, 0.69), (RELEASED, 0.014, 0.87)]
)
def test_painting_strengths_of_the_table(corruption, inside, outside):
    hidden = hidden_fractions(corruptions.inpaint, corruption).mean().item()
    assert hidden == pytest.approx(inside, abs=0.005 if corruption is GENESIS else 0.001)
    hidden = hidden_fractions(corruptions.outpaint, corruption).mean().item()
    assert hidden == pytest.approx(outside, abs=0.015)


def test_painted_boxes_keep_off_the_edge():
    marked = torch.full((64, 1, *CUBE), 2.0)
    holes = (corruptions.inpaint(marked, streams(64), GENESIS) != 2).any(0)[0]
    windows = (corruptions.outpaint(marked, streams(64), GENESIS) == 2).any(0)[0]
    for touched in (holes, windows):
        inner = touched[3:-3, 3:-3, 3:-3]
        assert touched.sum() == inner.sum()
        assert inner[0].any() and inner[-1].any() and inner[..., 0].any() and inner[..., -1].any()


def test_painting_is_uniform_noise_per_voxel_and_channel():
    painted = corruptions.outpaint(torch.full((4, 2, *CUBE), 2.0), streams(4), RELEASED)
    noise = painted[painted != 2].double()
    assert noise.mean().item() == pytest.approx(0.5, abs=0.002)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.001)
    first, second = painted.unbind(1)
    assert torch.equal(first == 2, second == 2)
    both = torch.stack((first[first != 2], second[first != 2]))
    assert abs(torch.corrcoef(both)[0, 1]) < 0.01


# --- which sample gets what ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("models-genesis", (0.5, 0.9, 0.18, 0.72)),
        ("semantic-genesis-paper", (0.5, 0.9, 0.18, 0.72)),
        ("semantic-genesis-released", (0.25, 0.25, 0.25, 0.25)),
        ("in-painting", (0, 0, 1, 0)),
        ("none", (0, 0, 0, 0)),
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
    assert all(name == preset.name for name, preset in CORRUPTIONS.items())
    assert replace(CORRUPTIONS["semantic-genesis-paper"], name="models-genesis") == GENESIS


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
    return [
        (item, *rest) for i, item in enumerate(items) for rest in _subsets(items[i + 1 :], size - 1)
    ]


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


@pytest.mark.parametrize("name", ["models-genesis", "semantic-genesis-released"])
@pytest.mark.parametrize("shape", [(20, 17, 18), (64, 64, 32), (37, 41)])
def test_batching_and_order_do_not_matter(name, shape):
    original, corruption = cubes(8, shape), CORRUPTIONS[name]
    corrupted, target = corrupt(original, streams(8), corruption)
    for i in range(8):
        one, one_target = corrupt(original[i : i + 1], streams(1, first=i), corruption)
        assert torch.equal(one[0], corrupted[i]) and torch.equal(one_target[0], target[i])
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    permuted, _ = corrupt(original[order], streams(8).select(order), corruption)
    assert torch.equal(permuted, corrupted[order])


def test_an_epoch_repeats_itself_and_differs_from_the_next():
    original = cubes(4)
    first, again, following = (
        corrupt(original, streams(4, epoch=epoch), GENESIS)[0] for epoch in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert all(not torch.equal(one, other) for one, other in zip(first, following, strict=True))


@pytest.mark.parametrize(
    ("name", "shape", "smallest"),
    [("models-genesis", (64, 64, 13), 14), ("in-painting", (7, 64), 8)],
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
    with pytest.raises(ValueError, match="more than 8"):
        replace(GENESIS, outpaint_windows=(1, 9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees():
    original = cubes(16, CUBE)
    draws = Draws.of(1, torch.arange(16, device="cuda"), 0)
    here = corrupt(original, streams(16), GENESIS)
    there = corrupt(original.cuda(), draws, GENESIS)
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(other.cpu(), one, atol=1e-4, rtol=0)
