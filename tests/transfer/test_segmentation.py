"""Learning to segment: patches, whole scans, and real hippocampi from five of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import UNet
from raygenesis.settings import FinetuneSettings, IntensitySettings
from raygenesis.transfer.cases import Case, Form, read_cases
from raygenesis.transfer.initialisations import Initialisation, segmentation_network
from raygenesis.transfer.metrics import overlap
from raygenesis.transfer.segmentation import (
    MAX_CENTRES,
    cross_entropy,
    draw_patches,
    find_centres,
    overlap_of,
    segment,
    train_segmenter,
)
from raygenesis.transfer.setup import TrialSetup
from raygenesis.transfer.split import split_examples
from raygenesis.transfer.targets.own_files import OwnFiles, read_label_maps
from tests.support import cases as support
from tests.support.cases import box_case, flat
from tests.support.data import HIPPOCAMPI, needs_hippocampi

SHAPE = (16, 16, 16)
QUICK = FinetuneSettings(
    num_steps=60, batch_size=4, learning_rate=3e-2, schedule="constant", augmentation="none", weight_decay=0
)


def setup_of(settings: FinetuneSettings, shape: tuple[int, ...] = SHAPE, num_classes: int = 3) -> TrialSetup:
    return support.setup_of("segmentation", settings, num_classes, input_shape=shape, spacing_mm=(1.0,) * len(shape))


def new_unet(ndim: int = 3) -> UNet:
    torch.manual_seed(0)
    return UNet(3, Architecture(ndim=ndim, base_width=2))


@pytest.mark.parametrize("ndim", [2, 3])
def test_training_learns_and_repeats_itself(ndim: int) -> None:
    shape = (24, 20, 18)[:ndim]
    cases = [box_case(seed, shape) for seed in range(3)]
    losses = []
    for num_steps in (5, QUICK.num_steps):
        unet = new_unet(ndim)
        few = QUICK.model_copy(update={"num_steps": num_steps})
        losses.append(train_segmenter(unet, cases, setup_of(few, SHAPE[:ndim]), seed=5).losses)
    assert losses[0] == losses[1][:5]
    assert np.mean(losses[1][-5:]) < 0.6 * losses[1][0]
    unseen = box_case(99, shape)
    predicted = segment(unet, unseen.image, SHAPE[:ndim], 4)
    assert predicted.shape == unseen.label.shape and predicted.dtype == np.uint8
    assert overlap(predicted, unseen.label, 3).dice > 0.5


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_is_augmented_is_learnt_too_and_repeats_itself(ndim: int) -> None:
    cases = [box_case(seed, (24, 20, 18)[:ndim]) for seed in range(3)]
    changed = QUICK.model_copy(update={"augmentation": "standard", "precision": "bf16"})
    losses = []
    for num_steps in (5, QUICK.num_steps):
        unet, few = new_unet(ndim), changed.model_copy(update={"num_steps": num_steps})
        losses.append(train_segmenter(unet, cases, setup_of(few, SHAPE[:ndim]), seed=5).losses)
    assert losses[0] == losses[1][:5] and np.mean(losses[1][-5:]) < 0.8 * losses[1][0]
    plain = train_segmenter(new_unet(ndim), cases, setup_of(QUICK, SHAPE[:ndim]), seed=5).losses
    assert plain[0] != losses[0][0]


@pytest.mark.parametrize(("loss", "balance"), [
    ("dice", "weights"), ("dice+cross-entropy", "weights"), ("dice+cross-entropy", "none"),
])  # fmt: skip
def test_the_loss_is_soft_dice_of_the_foreground_with_cross_entropy_of_all(loss: str, balance: str) -> None:
    case = box_case(0, SHAPE)
    unet = new_unet()
    once = QUICK.model_copy(update={"num_steps": 1, "loss": loss, "class_balance": balance})
    with torch.no_grad():
        image = torch.from_numpy(case.image[None, None].astype(np.float32)).repeat(4, 1, 1, 1, 1)
        answers = unet.train()(image).softmax(1).numpy()
    wanted = np.stack([case.label == number for number in (1, 2)])[None].repeat(4, 0)
    both, either = ((answers[:, 1:] * wanted).sum((0, 2, 3, 4)), (answers[:, 1:] + wanted).sum((0, 2, 3, 4)))
    expected = (1 - 2 * both / either).mean()
    if loss == "dice+cross-entropy":
        labels = case.label[None].repeat(4, 0).astype(int)
        entropy = -np.log(np.take_along_axis(answers, labels[:, None], 1)[:, 0])
        counts = np.bincount(labels.ravel()) if balance == "weights" else np.ones(3)
        expected += np.average(entropy, weights=counts[labels] ** -0.5)
    losses = train_segmenter(new_unet(), [case], setup_of(once), seed=5).losses  # the patch is the whole case
    assert losses[0] == pytest.approx(expected, abs=1e-4)


def test_a_class_that_no_voxel_of_a_batch_has_counts_nothing() -> None:
    logits = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 1, 6, 6, dtype=torch.uint8)
    plain = torch.nn.functional.cross_entropy(logits, labels[:, 0].long())
    assert cross_entropy(logits, labels, balanced=True) == pytest.approx(float(plain), abs=1e-6)


def test_validation_keeps_the_best_weights_by_dice() -> None:
    cases, unseen = [box_case(0)], [box_case(9), box_case(10)]

    def dice_after(num_steps: int, validation: list[Case]) -> float:
        unet, few = new_unet(), QUICK.model_copy(update={"num_steps": num_steps})
        train_segmenter(unet, cases, setup_of(few), 5, validation)
        whole = [segment(unet, case.image, SHAPE, 4, overlap=0) for case in unseen]  # validations are quick
        return np.mean([overlap(found, case.label, 3).dice for found, case in zip(whole, unseen, strict=True)])

    assert dice_after(6, unseen) == pytest.approx(max(dice_after(steps, []) for steps in range(1, 7)))


def padded_case() -> Case:
    """A scan of which all is class 1 and half is bright, in four times as much padding."""
    inner = (slice(4, 12), slice(0, 16), slice(4, 12))
    image, label = np.zeros(SHAPE, np.float16), np.zeros(SHAPE, np.uint8)
    image[4:8, :, 4:12] = 1
    label[inner] = 1
    case = box_case(0, SHAPE)
    return replace(case, image=image, label=label, grid=replace(case.grid, within=inner))


def test_padding_is_no_part_of_what_overlaps() -> None:
    case = padded_case()
    everywhere = np.ones(SHAPE, np.uint8)
    assert overlap_of(case, everywhere, 2).dice == 1 and overlap_of(case, case.label ^ 1, 2).dice == 0
    assert overlap_of(case, case.image.astype(np.uint8), 2).dice == pytest.approx(2 / 3)


def test_validation_leaves_padding_out_as_testing_does() -> None:
    class Brighter(nn.Module):
        """Class 1 where a voxel and the bias are more than 0: of the bright voxels first, and then everywhere."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor(-0.5))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(images), images + self.bias], 1)

    network, few = Brighter(), QUICK.model_copy(update={"num_steps": 20, "learning_rate": 0.1})
    full = replace(padded_case(), label=np.ones(SHAPE, np.uint8))
    train_segmenter(network, [full], setup_of(few, num_classes=2), 0, [padded_case()])
    assert network.bias > 0  # with the padding, finding all of the scan would count less than finding half of it


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_frozen_encoder_stays_as_it_is_while_the_decoder_learns(ndim: int) -> None:
    """Also where a 2D network works slice by slice."""
    start = Initialisation("random", None, Architecture(ndim=ndim, base_width=2), "")
    unet = segmentation_network(start, 3, "frozen", 1, 3)
    unet.encoder.requires_grad_(False)
    encoder, decoder = flat(unet.encoder), flat(unet.decoder)
    few = QUICK.model_copy(update={"num_steps": 3})
    train_segmenter(unet, [box_case(0)], setup_of(few), 1, [box_case(1)])
    assert torch.equal(flat(unet.encoder), encoder) and not torch.equal(flat(unet.decoder), decoder)


def places_in(case: Case) -> Case:
    """Each voxel of the image tells its own place, so that a patch tells where it was cut."""
    return replace(case, image=np.arange(case.image.size, dtype=np.float32).reshape(case.image.shape))


def test_two_patches_of_three_are_centred_on_foreground_and_image_and_label_fit() -> None:
    case = places_in(box_case(0, (64, 64, 64)))
    images, labels = draw_patches([case], find_centres([case]), (8, 8, 8), 600, np.random.default_rng(0))
    assert images.shape == labels.shape == (600, 1, 8, 8, 8)
    assert np.array_equal(labels, case.label.ravel()[images.astype(int)])
    corners = np.array(np.unravel_index(images[:, 0, 0, 0, 0].astype(int), (64, 64, 64))).T
    inside = (corners > 0).all(1) & (corners < 56).all(1)
    centred = np.arange(600) % 3 < 2
    assert inside[centred].sum() > 200 and (labels[centred & inside, 0, 4, 4, 4] > 0).all()
    assert (labels[~centred, 0, 4, 4, 4] > 0).mean() < 0.05
    assert corners[~centred].min() == 0 and corners[~centred].max() == 56  # up to the edges


def test_classes_are_drawn_evenly_however_small_and_rare() -> None:
    """Class 1 is large and everywhere, class 2 one voxel of one case, class 3 nowhere, and class 4 in two cases."""
    cases = [box_case(0, (24, 24, 24)) for _ in range(4)]
    for number, case in enumerate(cases):
        label = np.ones((24, 24, 24), np.uint8)
        label[:4] = 0
        if number == 2:
            label[12, 12, 12] = 2
        if number > 1:
            label[20, 20, 18:20] = 4
        cases[number] = replace(case, label=label)
    _, labels = draw_patches(cases, find_centres(cases), (4, 4, 4), 900, np.random.default_rng(0))
    at_centre = np.bincount(labels[np.arange(900) % 3 < 2, 0, 2, 2, 2], minlength=5)
    assert at_centre[[0, 3]].sum() == 0 and at_centre[[1, 2, 4]].min() > 160 and at_centre.sum() == 600


def test_centres_are_the_voxels_of_each_class() -> None:
    cases = [box_case(seed, (20, 18, 16)) for seed in range(3)]
    cases[1] = replace(cases[1], label=(cases[1].label == 2).astype(np.uint8) * 2)
    centres = find_centres(cases)
    assert [each.cases for each in centres] == [(0, 2), (0, 1, 2)]
    for value, of_class in zip((1, 2), centres, strict=True):
        for number, voxels in zip(of_class.cases, of_class.voxels, strict=True):
            assert voxels.dtype == np.int32 and voxels.base is None
            assert sorted(voxels) == [n for n, label in enumerate(cases[number].label.flat) if label == value]


def test_of_a_large_class_an_even_sample_is_kept() -> None:
    large = replace(box_case(0, (40, 40, 40)), label=np.ones((40, 40, 40), np.uint8))
    (centres,) = find_centres([large])
    (voxels,) = centres.voxels
    assert MAX_CENTRES / 2 < len(voxels) <= MAX_CENTRES
    assert np.bincount(voxels // 40**2, minlength=40).min() > 0 and np.bincount(voxels % 40, minlength=40).min() > 0


def test_a_case_without_foreground_still_gives_patches() -> None:
    empty = Case("empty", "empty", np.zeros((8, 8, 8), np.float16), np.zeros((8, 8, 8), np.uint8))
    assert find_centres([empty]) == []
    _, labels = draw_patches([empty], [], (8, 8, 8), 4, np.random.default_rng(0))
    assert labels.shape == (4, 1, 8, 8, 8) and labels.max() == 0


@pytest.mark.parametrize(("overlap_of_windows", "num"), [(0.0, 2 * 2 * 1), (0.25, 3 * 2 * 1), (0.5, 3 * 3 * 1)])
def test_windows_overlap_as_they_are_asked_to(overlap_of_windows: float, num: int) -> None:
    seen: list[torch.dtype] = []

    class Counting(nn.Conv3d):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = super().forward(images)
            seen.extend([out.dtype] * len(out))
            return out

    image = np.zeros((32 + 8, 32, 16), np.float32)
    segment(Counting(1, 2, 1), image[:, :], SHAPE, 3, "bf16", overlap_of_windows)
    assert seen == [torch.bfloat16] * len(seen) and len(seen) >= num


@pytest.mark.parametrize("shape", [(37, 21, 16), (16, 16, 16), (40, 19)])
def test_a_scan_larger_than_a_patch_is_segmented_as_if_seen_whole(shape: tuple[int, ...]) -> None:
    class Threshold(nn.Module):
        """Class 1 where a voxel is bright: needs no context, so windows must not matter."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full_like(images, 0.7), images * self.weight], 1)

    case = box_case(3, shape)
    predicted = segment(Threshold(), case.image, SHAPE[: len(shape)], 3)
    assert np.array_equal(predicted, case.image.astype(np.float32) > 0.7)


@needs_hippocampi
def test_random_weights_learn_the_real_hippocampus_from_five_scans() -> None:
    few = FinetuneSettings(num_labelled=5, num_test=3, num_trials=2, num_steps=70, batch_size=4, learning_rate=1e-2)
    target = read_label_maps(OwnFiles("segmentation", HIPPOCAMPI / "images", HIPPOCAMPI / "labels"))
    split = split_examples(target, set(), few, seed=2)
    shape, trial = (24, 24, 24), split.trials[0]
    form = Form(True, shape, (1.0, 1.0, 1.0), IntensitySettings())
    learnt, tested = ([read_cases([each], form)[0] for each in part] for part in (trial.examples, split.test))
    torch.manual_seed(0)
    unet = UNet(3, Architecture(base_width=4))
    train_segmenter(unet, learnt, TrialSetup("segmentation", 3, form, few), trial.seed)
    dice = [overlap(segment(unet, case.image, shape, 8), case.label, 3).dice for case in tested]
    assert np.mean(dice) > 0.3, dice


def test_with_a_margin_the_same_patches_are_cut_larger_and_every_voxel_is_still_learnt_from() -> None:
    case = box_case(0, (10, 9, 8))
    middle = (slice(None), slice(None), *[slice(2, -2)] * 3)
    plain = draw_patches([case], find_centres([case]), (8, 8, 8), 60, np.random.default_rng(0))
    larger = draw_patches([case], find_centres([case]), (8, 8, 8), 60, np.random.default_rng(0), (2, 2, 2))
    for inner, outer in zip(plain, larger, strict=True):
        assert outer.shape == (60, 1, 12, 12, 12) and np.array_equal(outer[middle], inner)
    corners = [larger[0][n, 0, 2, 2, 2] for n in range(60)]
    assert float(case.image[0, 0, 0]) in corners  # a patch in the corner of the scan
    at_corner = larger[0][corners.index(float(case.image[0, 0, 0])), 0]
    assert (at_corner[:3, :3, :3] == at_corner[2, 2, 2]).all()  # beyond the edge there is what lies on it
