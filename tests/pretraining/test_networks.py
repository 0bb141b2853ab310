"""The networks: the sizes that METHOD.md tells, and shapes in two and three dimensions."""

import pytest
import torch
from torch import nn

from raygenesis.pretraining.networks import (
    ClassificationHead,
    Decoder,
    Encoder,
    SemanticGenesis,
    UNet,
    widths_of,
)
from raygenesis.pretraining.weights import num_parameters

IMAGES = {2: (32, 24), 3: (16, 24, 8)}


def test_full_width_has_the_published_numbers_of_parameters():
    assert num_parameters(UNet(num_out=1)) == 19_073_665
    assert num_parameters(SemanticGenesis(num_classes=44)) == 33_277_613


def test_full_width_has_the_published_widths():
    assert widths_of(32) == [64, 128, 256, 512]
    convolutions = [layer for layer in Encoder().modules() if isinstance(layer, nn.Conv3d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        (1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512),
    ]  # fmt: skip
    decoder = Decoder()
    assert [(up.in_channels, up.out_channels) for up in decoder.ups] == [(512, 512), (256, 256), (128, 128)]
    assert [[(layer.in_channels, layer.out_channels) for layer in level if isinstance(layer, nn.Conv3d)]
            for level in decoder.levels] == [
        [(768, 256), (256, 256)], [(384, 128), (128, 128)], [(192, 64), (64, 64)],
    ]  # fmt: skip
    head = ClassificationHead(3, 512, 44)
    assert (head.conv[0].in_channels, head.conv[0].out_channels, head.linear.in_features) == (512, 1024, 1024)


@pytest.mark.parametrize("ndim", [2, 3])
def test_features_halve_and_restored_images_have_the_shape_that_came_in(ndim):
    size = IMAGES[ndim]
    model = SemanticGenesis(num_classes=5, ndim=ndim, base_width=2)
    images = torch.rand(3, 1, *size)
    features = model.encoder(images)
    assert [tuple(level.shape) for level in features] == [
        (3, width, *(side // 2**number for side in size)) for number, width in enumerate([4, 8, 16, 32])
    ]
    prediction = model(images)
    assert prediction.logits.shape == (3, 5)
    assert prediction.restored.shape == images.shape
    assert prediction.restored.min() >= 0 and prediction.restored.max() <= 1
    assert UNet(3, ndim, base_width=2)(images).shape == (3, 3, *size)


def test_without_restoring_the_decoder_is_not_run_and_the_logits_are_the_same():
    model = SemanticGenesis(num_classes=5, base_width=2).eval()
    runs = []
    model.decoder.register_forward_hook(lambda *_: runs.append(1))
    images = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        alone = model(images, restore=False)
        assert alone.restored is None and not runs
        assert torch.equal(alone.logits, model(images).logits) and runs


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_embedding_is_the_bottlenecks_mean_over_space(ndim):
    encoder = Encoder(ndim, base_width=2).eval()
    images = torch.rand(2, 1, *IMAGES[ndim])
    expected = encoder(images)[-1].mean(dim=tuple(range(2, 2 + ndim)))
    assert encoder.num_features == 32
    torch.testing.assert_close(encoder.embed(images), expected)


def test_further_input_channels_widen_the_first_convolution_alone():
    one, four = Encoder(base_width=4), Encoder(base_width=4, num_channels=4).eval()
    assert four(torch.rand(1, 4, 8, 8, 8))[-1].shape == (1, 64, 1, 1, 1)
    assert num_parameters(four) - num_parameters(one) == 3 * 27 * 4


def test_every_level_reaches_the_restored_image():
    """Skips are used: silence any one level and the image changes."""
    model = UNet(1, base_width=2)  # in training mode, so that batch norm brings every level to the same scale
    features = model.encoder(torch.rand(2, 1, 16, 16, 16))
    whole = model.decoder(features)
    for number in range(len(features)):
        silenced = [torch.zeros_like(level) if n == number else level for n, level in enumerate(features)]
        assert not torch.allclose(model.decoder(silenced), whole)
