"""A 2D network on a 3D image answers what it answers on each slice by itself."""

from __future__ import annotations

import pytest
import torch

from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import UNet, build_encoder
from raygenesis.networks.slice_wise import SliceWiseEncoder, slice_wise, slices_of, volumes_of

NETWORKS = [{"network": "unet", "base_width": 2}, {"network": "resnet18-b"}]


@pytest.fixture(params=NETWORKS, ids=lambda network: network["network"])
def architecture(request):
    torch.manual_seed(0)
    return Architecture(ndim=2, **request.param)


def test_features_and_embedding_are_those_of_the_slices(architecture):
    encoder = build_encoder(architecture).eval()
    whole = SliceWiseEncoder(encoder).eval()
    images = torch.rand(2, 1, 5, 32, 64)
    with torch.no_grad():
        features, embedding = whole(images), whole.embed(images)
        for number, image in enumerate(images):
            alone = [encoder(image[None, :, z]) for z in range(5)]
            for level, slices in zip(features, zip(*alone, strict=True), strict=True):
                torch.testing.assert_close(level[number], torch.stack([each[0] for each in slices], 1))
            means = torch.stack([encoder.embed(image[None, :, z])[0] for z in range(5)]).mean(0)
            torch.testing.assert_close(embedding[number], means)
    assert embedding.shape == (2, whole.num_features)


def test_logits_are_those_of_the_slices_and_train(architecture):
    flat = UNet(3, architecture).eval()
    images = torch.rand(2, 1, 3, 32, 32)
    with torch.no_grad():
        expected = torch.stack([flat(images[:, :, z]) for z in range(3)], 2)
        unet = slice_wise(flat)
        torch.testing.assert_close(unet(images), expected)
    assert expected.shape == (2, 3, 3, 32, 32)
    assert any(name.startswith(f"{unet.decoder.output_layer}.") for name in unet.decoder.state_dict())
    gradients = []
    for again in (False, True):
        unet.encoder.gradient_checkpointing = unet.decoder.gradient_checkpointing = again
        unet.zero_grad()
        unet(images).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in unet.parameters()])
    torch.testing.assert_close(*gradients)


def test_slices_come_back_where_they_were():
    volumes = torch.arange(2 * 3 * 4 * 5 * 6).view(2, 3, 4, 5, 6)
    slices = slices_of(volumes)
    assert slices.shape == (8, 3, 5, 6) and torch.equal(slices[4 + 1], volumes[1, :, 1])
    assert torch.equal(volumes_of(slices, 2), volumes)
