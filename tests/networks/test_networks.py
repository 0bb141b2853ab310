"""The networks: the sizes that METHOD.md tells, and shapes in two and three dimensions."""

import numpy as np
import pytest
import torch
from monai.networks.nets import FlexibleUNet, SegResNet
from torch import nn

from raygenesis.networks.architecture import Architecture
from raygenesis.networks.heads import ClassificationHead, RubiksCubeHead
from raygenesis.networks.layers import norm_layer
from raygenesis.networks.monai_networks import monai_state
from raygenesis.networks.network import PretextNetwork, UNet, num_parameters
from raygenesis.networks.unet import UNetDecoder, UNetEncoder, level_widths

IMAGES = {2: (32, 24), 3: (16, 24, 8)}


def network(num_classes=5, ndim=3, base_width=2, **more):
    chosen = {"head": "classification", "num_classes": num_classes, "ndim": ndim, "base_width": base_width, **more}
    return PretextNetwork(Architecture(**chosen))


def test_full_width_has_the_published_numbers_of_parameters():
    assert num_parameters(UNet(num_out=1)) == 19_073_665
    assert num_parameters(network(44, base_width=32)) == 33_277_613


def test_full_width_has_the_published_widths():
    assert level_widths(32) == [64, 128, 256, 512]
    convolutions = [layer for layer in UNetEncoder().modules() if isinstance(layer, nn.Conv3d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        (1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512),
    ]  # fmt: skip
    decoder = UNetDecoder()
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
    model = network(ndim=ndim)
    images = torch.rand(3, 1, *size)
    features = model.encoder(images)
    assert [tuple(level.shape) for level in features] == [
        (3, width, *(side // 2**number for side in size)) for number, width in enumerate([4, 8, 16, 32])
    ]
    prediction = model(images)
    assert prediction.logits.shape == (3, 5)
    assert prediction.restored.shape == images.shape
    assert prediction.restored.min() >= 0 and prediction.restored.max() <= 1
    assert UNet(3, Architecture(ndim=ndim, base_width=2))(images).shape == (3, 3, *size)


def test_without_restoring_the_decoder_is_not_run_and_the_logits_are_the_same():
    model = network().eval()
    runs = []
    model.decoder.register_forward_hook(lambda *_: runs.append(1))
    images = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        alone = model(images, restore=False)
        assert alone.restored is None and not runs
        assert torch.equal(alone.logits, model(images).logits) and runs


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_embedding_is_the_bottlenecks_mean_over_space(ndim):
    encoder = UNetEncoder(ndim, base_width=2).eval()
    images = torch.rand(2, 1, *IMAGES[ndim])
    expected = encoder(images)[-1].mean(dim=tuple(range(2, 2 + ndim)))
    assert encoder.num_features == 32
    torch.testing.assert_close(encoder.embed(images), expected)


def test_every_level_reaches_the_restored_image():
    """Skips are used: silence any one level and the image changes."""
    # In training mode, so that batch norm brings every level to the same scale.
    model = UNet(1, Architecture(base_width=2))
    features = model.encoder(torch.rand(2, 1, 16, 16, 16))
    whole = model.decoder(features)
    for number in range(len(features)):
        silenced = [torch.zeros_like(level) if n == number else level for n, level in enumerate(features)]
        assert not torch.allclose(model.decoder(silenced), whole)


@pytest.mark.parametrize(("name", "ndim"), [("unet", 3), ("unet", 2), ("segresnet", 2), ("resnet18", 2)])
def test_without_skips_the_bottleneck_alone_reaches_the_restored_image(name, ndim):
    def restored(skips, level):
        """With noise in place of one level, finest first."""
        torch.manual_seed(0)
        model = PretextNetwork(Architecture(ndim=ndim, network=name, base_width=8, skips=skips)).train()

        def change(_, inputs, features):
            at = None if level is None else level % len(features)
            noise = torch.Generator().manual_seed(1)
            return [
                torch.rand(each.shape, generator=noise) if number == at else each
                for number, each in enumerate(features)
            ]

        model.encoder.register_forward_hook(change)
        with torch.no_grad():
            return model(torch.rand(2, 1, *[32] * ndim, generator=torch.Generator().manual_seed(2))).restored

    levels = range(3)
    assert all(torch.equal(restored(False, level), restored(False, None)) for level in levels)
    assert not torch.allclose(restored(False, -1), restored(False, None))
    assert all(not torch.allclose(restored(True, level), restored(True, None)) for level in levels)
    assert restored(False, None).shape == (2, 1, *[32] * ndim)


def test_without_skips_the_unet_has_no_weights_for_them():
    plain, without = (UNetDecoder(2, 4, skips=skips) for skips in (True, False))
    assert plain.state_dict().keys() == without.state_dict().keys()
    for level, skipless in zip(plain.levels, without.levels, strict=True):
        assert level[0].in_channels == skipless[0].in_channels + level[0].out_channels


def test_what_comes_from_below_is_concatenated_before_the_skip():
    """The order of the published weights: silencing the first channels of a level leaves the skip alone."""
    decoder = UNetDecoder(base_width=2).eval()
    with torch.no_grad():
        for level, up in zip(decoder.levels, decoder.ups, strict=True):
            level[0].weight[:, : up.out_channels] = 0
        features = [torch.rand(1, width, *[16 // 2**n] * 3) for n, width in enumerate(level_widths(2))]
        other = [*features[:-1], torch.rand_like(features[-1])]
        assert torch.equal(decoder(features), decoder(other))


# --- norms ----------------------------------------------------------------------------------------


def independent_norm(kind, values):
    """Zero mean, unit variance: per channel over the batch, per sample and channel, per sample and group of 8."""
    values = values.double().numpy()
    n, channels = values.shape[:2]
    grouped = {
        "batch": values.swapaxes(0, 1).reshape(channels, -1),
        "batch-statistics": values.swapaxes(0, 1).reshape(channels, -1),
        "instance": values.reshape(n * channels, -1),
        "group": values.reshape(n * min(8, channels), -1),
    }[kind]
    normed = (grouped - grouped.mean(1, keepdims=True)) / np.sqrt(grouped.var(1, keepdims=True) + 1e-5)
    if kind.startswith("batch"):
        return normed.reshape(channels, n, *values.shape[2:]).swapaxes(0, 1)
    return normed.reshape(values.shape)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["batch", "batch-statistics", "instance", "group"])
def test_norms_are_those_of_their_names(kind, ndim):
    values = torch.randn(3, 16, *IMAGES[ndim]) * 3 + 1
    found = norm_layer(kind, ndim, 16).train()(values).detach().numpy()
    np.testing.assert_allclose(found, independent_norm(kind, values), atol=1e-4)


def test_only_batch_statistics_depend_on_the_batch_in_evaluation():
    one, other = torch.randn(2, 8, 4, 4, 4), torch.randn(2, 8, 4, 4, 4)
    for kind, depends in (("batch", False), ("batch-statistics", True), ("instance", False), ("group", False)):
        layer = norm_layer(kind, 3, 8).eval()
        alone = layer(one)
        together = layer(torch.cat([one, other]))[:2]
        assert torch.allclose(alone, together, atol=1e-5) != depends, kind


@pytest.mark.parametrize("kind", ["batch", "batch-statistics", "instance", "group"])
def test_an_images_vector_does_not_depend_on_the_others_in_evaluation(kind):
    encoder = UNetEncoder(base_width=2, norm=kind).eval()
    images = torch.rand(3, 1, 16, 16, 16)
    with torch.no_grad():
        together = encoder.embed(images)
        for number in range(3):
            torch.testing.assert_close(together[number], encoder(images[number : number + 1])[-1][0].mean((1, 2, 3)))
        in_training = encoder.train().embed(images)
        torch.testing.assert_close(in_training, encoder(images)[-1].mean((2, 3, 4)))


@pytest.mark.parametrize("kind", ["instance", "group", "batch-statistics"])
def test_a_network_has_one_kind_of_norm_throughout(kind):
    kinds = {type(layer) for layer in network(norm=kind).modules() if "Norm" in type(layer).__name__}
    assert len(kinds) == 1
    assert not any("running" in name for name in network(norm=kind).state_dict())


# --- other networks and heads ---------------------------------------------------------------------

READY = [("segresnet", 8, 2, (32, 24)), ("segresnet", 8, 3, (16, 16, 8)), ("resnet18", 32, 2, (64, 32))]


@pytest.mark.parametrize(("name", "base_width", "ndim", "size"), READY)
def test_a_ready_network_is_monais_own_taken_apart(name, base_width, ndim, size):
    """MONAI's class, built here and given the weights under MONAI's own names, gives the same images."""
    whole = {
        "segresnet": lambda: SegResNet(ndim, base_width, in_channels=1, out_channels=1),
        "resnet18": lambda: FlexibleUNet(1, 1, "resnet18", spatial_dims=ndim),
    }[name]()
    ours = network(ndim=ndim, network=name, base_width=base_width).eval()
    whole.load_state_dict(monai_state(ours.state_dict()))
    images = torch.rand(2, 1, *size)
    with torch.no_grad():
        prediction = ours(images)
        torch.testing.assert_close(prediction.restored, torch.sigmoid(whole.eval()(images)))
    assert prediction.logits.shape == (2, 5)
    assert prediction.embedding.shape == (2, ours.encoder.num_features)
    assert len(ours.encoder(images)) >= 4


def test_the_resnet_encoder_has_torchvisions_names():
    names = set(network(ndim=2, network="resnet18").encoder.encoder.state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.1.bn2.bias"} <= names
    deeper = set(network(ndim=2, network="resnet50").encoder.encoder.state_dict())
    assert {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.weight", "layer4.2.conv3.weight"} <= deeper


def test_a_network_has_only_the_parts_of_its_task():
    alone = network(head=None)
    prediction = alone(torch.rand(2, 1, 16, 16, 16))
    assert prediction.logits is None and prediction.restored is not None
    blind = network(restores=False)
    prediction = blind(torch.rand(2, 1, 16, 16, 16))
    assert prediction.logits is not None and prediction.restored is None
    assert {name.partition(".")[0] for name in blind.state_dict()} == {"encoder", "head"}


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_rubiks_cube_head_reads_all_pieces_of_a_cube_and_of_no_other(ndim):
    head = RubiksCubeHead(ndim, 6, 24)
    bottleneck = torch.rand(3 * 2**ndim, 6, *[2] * ndim)
    logits = head(bottleneck)
    assert logits.shape == (3, 24 + 2 * 2**ndim)
    changed = bottleneck.clone()
    changed[2**ndim + 1] += 1
    moved = (head(changed) != logits).any(1)
    assert moved.tolist() == [False, True, False]
