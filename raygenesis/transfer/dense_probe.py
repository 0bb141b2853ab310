"""A dense linear probe: what a segmentation can read, by one linear map, from the frozen features of all levels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from raygenesis.networks.layers import has_batch_statistics
from raygenesis.networks.network import UNet
from raygenesis.settings.streams import PROBED_VOXELS
from raygenesis.training.precision import autocast
from raygenesis.transfer.cases import Case
from raygenesis.transfer.learning import MEMORY_FORMAT, to_device
from raygenesis.transfer.setup import TrialSetup

NUM_VOXELS = 20_000  # that the linear map is fitted to, over all labelled cases
BACKGROUND_SHARE = 0.5  # of them; the rest is drawn evenly over the foreground classes, or small ones would be lost
MAX_ITERATIONS = 500  # of the solver; standardised features need about a hundred
NEVER = -1e4  # a logit far below all others, and finite: infinities would not survive averaging over windows
INTERPOLATIONS = {2: "bilinear", 3: "trilinear"}


class FeatureLevels(nn.Module):
    """The frozen levels of a network: images [n, 1, z, y, x] → features of each level, [n, channels, …].

    with_decoder: the decoder's levels follow the encoder's.
    """

    def __init__(self, unet: UNet, with_decoder: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = unet.encoder, unet.decoder if with_decoder else None

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features: list[torch.Tensor] = self.encoder(images)
        return features if self.decoder is None else [*features, *self.decoder.levels_of(features)]


class DenseProbe(nn.Module):
    """A linear map of frozen features at each voxel: images [n, 1, z, y, x] → logits [n, num_classes, z, y, x].

    A linear map and an interpolation commute: each level is mapped at its own resolution, where it has few voxels, and
    what is interpolated are logits. weights: float32 [num_classes, channels of all levels]; intercepts: [num_classes].
    """

    weights: torch.Tensor
    intercepts: torch.Tensor

    def __init__(self, levels: FeatureLevels, weights: torch.Tensor, intercepts: torch.Tensor) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("weights", weights)
        self.register_buffer("intercepts", intercepts)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shape, first = images.shape[2:], 0
        logits = self.intercepts.view(1, -1, *[1] * len(shape))
        for level in self.levels(images):
            own = self.weights[:, first : first + level.shape[1]]
            with torch.autocast(images.device.type, enabled=False):  # differences of logits drown in 8 bits
                mapped = torch.einsum("kc,nc...->nk...", own, level.float())
            if mapped.shape[2:] != shape:
                # Over twice as fast with the classes beside each other in memory.
                mapped = mapped.contiguous(memory_format=MEMORY_FORMAT[mapped.ndim])
                mapped = functional.interpolate(mapped, shape, mode=INTERPOLATIONS[len(shape)])
            logits = logits + mapped
            first += level.shape[1]
        return logits


def fit_dense_probe(levels: FeatureLevels, cases: Sequence[Case], setup: TrialSetup, seed: int) -> DenseProbe:
    """Fit a multinomial logistic regression to the features at some labelled voxels.

    Voxels are drawn evenly over classes; the intercepts are then corrected to the classes' shares of all voxels (King
    and Zeng 2001), without which small classes would be found everywhere. A class that no case has is never answered.

    Args:
        levels: Whose features are probed; its weights do not change.
        cases: Labelled cases.
        setup: Of the trial. A network sees windows of its form's `input_shape`; each voxel's features are those of the
            window whose centre is nearest to it, of those that overlap by half.
        seed: Seed of the voxels.
    """
    to_device(levels, setup.device)
    levels.eval().requires_grad_(False)
    generator, shape = PROBED_VOXELS.generator(seed), setup.form.input_shape
    features, classes, counts = [], [], np.zeros(setup.num_classes)
    for case in cases:
        assert case.label is not None
        counts += np.bincount(case.label.ravel(), minlength=setup.num_classes)
        chosen = draw_voxels(case.label, setup.num_classes, NUM_VOXELS // len(cases), generator)
        with autocast(setup.device, setup.settings.precision):
            features.append(features_at(levels, case.image, chosen, shape, setup.device))
        classes.append(case.label[tuple(chosen.T)])
    weights, intercepts = _fit(np.concatenate(features), np.concatenate(classes), counts)
    return DenseProbe(levels, torch.from_numpy(weights), torch.from_numpy(intercepts)).to(setup.device)


def draw_voxels(
    label: NDArray[np.uint8], num_classes: int, most: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw places [m, ndim] of at most about `most` voxels, half of background and half evenly over the other classes.

    Of a class that has fewer voxels all are drawn.
    """
    flat, chosen = label.ravel(), []
    for number in range(num_classes):
        share = BACKGROUND_SHARE if number == 0 else (1 - BACKGROUND_SHARE) / max(1, num_classes - 1)
        members = np.flatnonzero(flat == number)
        chosen.append(generator.permutation(members)[: max(1, round(share * most))])
    return np.stack(np.unravel_index(np.concatenate(chosen), label.shape), 1)


@torch.inference_mode()
def features_at(
    levels: FeatureLevels, image: NDArray[np.floating], voxels: NDArray[np.int64], patch_shape: Sequence[int],
    device: str,
) -> NDArray[np.float32]:  # fmt: skip
    """The features of all levels at some voxels [m, ndim] of an image: float32 [m, channels of all levels].

    Coarse levels are interpolated as `DenseProbe` interpolates their logits.
    """
    sides = np.array(patch_shape)
    # Windows are a product of axes, so the nearest along each is the nearest.
    begins = [
        np.array([window[0].start for window in dense_patch_slices([whole], [side], [max(1, side // 2)])])
        for whole, side in zip(image.shape, patch_shape, strict=True)
    ]
    corners = np.stack([
        own[np.abs(places[:, None] + 0.5 - own - side / 2).argmin(1)]
        for own, places, side in zip(begins, voxels.T, sides, strict=True)
    ], 1)  # fmt: skip
    corners_used, window_of = np.unique(corners, axis=0, return_inverse=True)
    order, found = [], []
    for number, corner in enumerate(corners_used):
        rows = np.flatnonzero(window_of == number)
        window = tuple(slice(begin, begin + side) for begin, side in zip(corner, sides, strict=True))
        patch = torch.tensor(image[window], dtype=torch.float32, device=device)[None, None]
        # Voxels' centres in the window from -1 to 1, x first: what `grid_sample` takes.
        places = 2 * (voxels[rows] - corner + 0.5) / sides - 1
        grid = torch.tensor(places[:, ::-1].copy(), dtype=torch.float32, device=device)
        grid = grid.view(1, *[1] * (len(sides) - 1), len(rows), len(sides))
        sampled = [
            functional.grid_sample(level.float(), grid, padding_mode="border", align_corners=False).flatten(2)[0]
            for level in levels(patch)
        ]
        order.append(rows)
        found.append(torch.cat(sampled).T.cpu().numpy())
    return np.concatenate(found)[np.argsort(np.concatenate(order))]


def probe_batch_size(levels: FeatureLevels, batch_size: int) -> int:
    """Windows to look at together: one alone where they would change each other by a batch's own statistics."""
    return 1 if has_batch_statistics(levels) else batch_size


def _fit(
    features: NDArray[np.float32], classes: NDArray[np.uint8], counts: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [num_classes, channels] and intercepts [num_classes] for features as they are; counts: of all voxels."""
    if len(there := np.unique(classes)) == 1:  # nothing to tell apart: the answer everywhere
        alone = np.full(len(counts), NEVER, np.float32)
        alone[there] = 0.0
        return np.zeros((len(counts), features.shape[1]), np.float32), alone
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(max_iter=MAX_ITERATIONS).fit(scaler.transform(features), classes)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(there) == 2:  # scikit-learn then has one row, of the second class
        coefficients, intercepts = np.stack([-coefficients[0], coefficients[0]]) / 2, np.array([-1, 1]) * intercepts / 2
    drawn = np.bincount(classes, minlength=len(counts))[there]
    weights = np.zeros((len(counts), features.shape[1]))
    weights[there] = coefficients / scaler.scale_
    shifted = np.full(len(counts), -np.inf)
    shifted[there] = intercepts - weights[there] @ scaler.mean_ + np.log(counts[there] / drawn)
    return weights.astype(np.float32), np.maximum(shifted, NEVER).astype(np.float32)
