"""Puzzles: what is shown is put together again by hand, the answers are right, and the laws are those that are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raygenesis.errors import SettingsError
from raygenesis.pretraining.draws import Draws
from raygenesis.pretraining.puzzles import Label, Rotation, RubiksCube, orders

SHAPES = [(64, 64, 32), (48, 40)]


def streams(n, epoch=0):
    return Draws.of(3, torch.arange(n), epoch)


def cubes(n, shape, channels=1):
    return torch.rand(n, channels, *shape, generator=torch.Generator().manual_seed(0))


def test_a_label_is_asked_of_the_cube_as_it_is():
    puzzle, shown, labels = Label((8, 8), 8, 5), cubes(3, (8, 8)), torch.tensor([4, 0, 2])
    images, answers = puzzle.ask(shown, labels, streams(3))
    assert torch.equal(images, shown) and torch.equal(answers, labels) and puzzle.num_classes == 5
    logits = torch.tensor([[0.0, 0, 0, 0, 9], [0, 9, 0, 0, 0], [0, 0, 9, 0, 0]])
    loss, accuracy = puzzle.grade(logits, answers)
    assert accuracy.tolist() == [1, 0, 1]
    expected = -torch.log_softmax(logits, 1)[range(3), answers]
    torch.testing.assert_close(loss, expected)


# --- rotation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 8, 8), (8, 8)])
def test_cubes_are_turned_in_the_slice_plane_by_the_quarter_turns_of_the_answer(shape):
    shown = cubes(40, shape, channels=2)
    images, answers = Rotation(shape, 8, 0).ask(shown, None, streams(40))
    assert set(answers.tolist()) == {0, 1, 2, 3}
    for before, after, turns in zip(shown.numpy(), images.numpy(), answers.tolist(), strict=True):
        np.testing.assert_array_equal(after, np.rot90(before, turns, (-2, -1)))


def test_all_turns_are_as_frequent():
    _, answers = Rotation((1, 1), 1, 0).ask(torch.zeros(8000, 1, 1, 1), None, streams(8000))
    assert np.bincount(answers) / 8000 == pytest.approx(np.full(4, 0.25), abs=0.02)


def test_cubes_that_are_not_square_in_plane_are_refused():
    with pytest.raises(SettingsError, match=r"cube_shape=\[64, 64, 32\].*last two sides must be equal"):
        Rotation((64, 64, 32), 8, 0)


# --- Rubik's cube ---------------------------------------------------------------------------------


def test_orders_are_different_permutations_far_from_each_other():
    for pieces, number in ((8, 100), (4, 24)):
        found = orders(pieces).numpy()
        assert found.shape == (number, pieces) and len({tuple(order) for order in found}) == number
        assert (np.sort(found, 1) == np.arange(pieces)).all()
    first = orders(8).numpy()[:20]
    apart = [(one != other).sum() for i, one in enumerate(first) for other in first[:i]]
    assert min(apart) >= 6  # two random orders of 8 agree in one place; of the first ones hardly any do


def found_at(piece, cube):
    """Where in a cube a piece is, by brute force over all places; None where it is not."""
    windows = np.lib.stride_tricks.sliding_window_view(cube, piece.shape)
    first = np.argwhere(windows[(...,) + (0,) * piece.ndim] == piece.flat[0])
    return next((place for place in first if np.array_equal(windows[tuple(place)], piece)), None)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_piece_is_found_in_its_part_of_the_cube_turned_as_answered(shape):
    puzzle, n, ndim = RubiksCube(shape, 8, 0), 12, len(shape)
    # Every piece spans 0..1 exactly, so that scaling changes nothing and pieces can be compared to the bit.
    numbers = cubes(n, shape)
    numbers[..., ::4], numbers[..., 1::4] = 0.0, 1.0
    images, answers = puzzle.ask(numbers, None, streams(n))
    pieces = images.view(n, 2**ndim, *puzzle.piece).numpy()
    order, horizontal, vertical = answers[:, 0], *answers[:, 1:].view(n, 2, 2**ndim).unbind(1)
    corners = np.array(list(np.ndindex(*(2,) * ndim)))
    turned = 0
    for sample in range(n):
        for place in range(2**ndim):
            piece = pieces[sample, place]
            if horizontal[sample, place]:
                piece = np.flip(piece, [axis for axis in range(ndim) if axis != ndim - 1])
            if vertical[sample, place]:
                piece = np.flip(piece, [axis for axis in range(ndim) if axis != ndim - 2])
            turned += int(horizontal[sample, place] + vertical[sample, place])
            at = found_at(np.ascontiguousarray(piece), numbers[sample, 0].numpy())
            assert at is not None
            corner = corners[orders(2**ndim)[order[sample], place]]
            part = (np.array(shape) - 10) // 2  # ten voxels between the two halves of a side are in neither
            first = corner * (shape - part)
            assert (at >= first).all() and (at + puzzle.piece <= first + part).all()
    assert 0 < turned < n * 2**ndim and not (horizontal & vertical).any()


def test_pieces_keep_ten_voxels_off_each_other_and_take_every_place_that_is_left():
    shape, n = (32, 40), 60
    puzzle = RubiksCube(shape, 8, 0)
    shown = cubes(n, shape)
    shown[..., ::4], shown[..., 1::4] = 0.0, 1.0
    images, answers = puzzle.ask(shown, None, streams(n))
    pieces = images.view(n, 4, *puzzle.piece).numpy()
    starts = np.zeros((n, 2, 2, 2), int)  # of the piece from each corner, along both axes
    for sample, place in np.ndindex(n, 4):
        turned = answers[sample, 1 + place].item(), answers[sample, 5 + place].item()  # horizontal: rows are mirrored
        piece = np.flip(pieces[sample, place], [axis for axis in range(2) if turned[axis]])
        corner = divmod(orders(4)[answers[sample, 0], place].item(), 2)
        starts[(sample, *corner)] = found_at(np.ascontiguousarray(piece), shown[sample, 0].numpy())
    assert (starts[:, 1, :, 0] - starts[:, 0, :, 0]).min() == 10 + puzzle.piece[0]
    assert (starts[:, :, 1, 1] - starts[:, :, 0, 1]).min() == 10 + puzzle.piece[1]
    assert set(starts[:, 0, :, 0].flat) == {0, 1, 2, 3} and set(starts[:, 1, :, 0].flat) == {21, 22, 23, 24}
    assert set(starts[:, :, 0, 1].flat) == set(range(8)) and set(starts[:, :, 1, 1].flat) == set(range(25, 33))


def test_half_of_the_pieces_are_turned_and_orders_are_as_frequent():
    puzzle = RubiksCube((26, 26), 8, 0)
    _, answers = puzzle.ask(torch.rand(6000, 1, 26, 26), None, streams(6000))
    assert answers[:, 1:].float().mean().item() == pytest.approx(0.25, abs=0.01)  # each axis a quarter
    assert np.bincount(answers[:, 0], minlength=24) / 6000 == pytest.approx(np.full(24, 1 / 24), abs=0.012)


def test_pieces_are_scaled_each_by_itself():
    images, _ = RubiksCube((64, 64, 32), 8, 0).ask(0.2 + 0.1 * cubes(2, (64, 64, 32)), None, streams(2))
    assert images.amin((1, 2, 3, 4)).tolist() == [0] * 16
    torch.testing.assert_close(images.amax((1, 2, 3, 4)), torch.ones(16))
    flat, _ = RubiksCube((64, 64, 32), 8, 0).ask(torch.full((1, 1, 64, 64, 32), 0.5), None, streams(1))
    assert not flat.any()


def test_the_loss_is_half_the_orders_and_half_the_turns():
    puzzle = RubiksCube((48, 40), 8, 0)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 24 + 8, generator=generator)
    parts = torch.randint(24, (5, 1), generator=generator), torch.randint(2, (5, 8), generator=generator)
    answers = torch.cat(parts, 1)
    loss, accuracy = puzzle.grade(logits, answers)
    order = -torch.log_softmax(logits[:, :24].double(), 1)[range(5), answers[:, 0]]
    likely = torch.sigmoid(logits[:, 24:].double())
    turns = -torch.where(answers[:, 1:] == 1, likely, 1 - likely).log().mean(1)
    torch.testing.assert_close(loss.double(), 0.5 * order + 0.5 * turns, rtol=1e-5, atol=1e-6)
    assert torch.equal(accuracy, (logits[:, :24].argmax(1) == answers[:, 0]).float())


@pytest.mark.parametrize(("shape", "divisor", "least"), [((24, 64, 64), 8, 32), ((64, 64), 32, 96)])
def test_cubes_that_are_too_small_are_refused(shape, divisor, least):
    with pytest.raises(SettingsError, match=f"too small .* rubiks-cube .* at least {least} voxels"):
        RubiksCube(shape, divisor, 0)


@pytest.mark.parametrize("puzzle", [Rotation((32, 32, 32), 8, 0), RubiksCube((32, 32, 32), 8, 0)])
def test_what_a_sample_is_asked_does_not_depend_on_its_batch(puzzle):
    shown, ids = cubes(6, (32, 32, 32)), torch.arange(6)
    images, answers = puzzle.ask(shown, None, Draws.of(3, ids, 1))
    each = len(images) // 6
    for number in range(6):
        alone, answer = puzzle.ask(shown[number : number + 1], None, Draws.of(3, ids[number : number + 1], 1))
        assert torch.equal(alone, images[each * number : each * (number + 1)])
        assert torch.equal(answer[0], answers[number])
    other, _ = puzzle.ask(shown, None, Draws.of(3, ids, 2))
    assert not torch.equal(other, images)
