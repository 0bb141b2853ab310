"""Files in the published layouts of supervised networks: what comes in computes what was published."""

from __future__ import annotations

import argparse
import pickle

import pytest
import torch
from monai.networks.nets import resnet18
from safetensors.torch import save_file
from torch.nn import functional

import raygenesis
from raygenesis.errors import WeightsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import PretextNetwork, UNet, build_encoder, enable_gradient_checkpointing
from raygenesis.networks.weights.library_export import export_to_library
from raygenesis.networks.weights.loading import describe, load_network
from raygenesis.networks.weights.native import save_network
from raygenesis.networks.weights.supervised import RESNETS, parse_supervised
from raygenesis.settings import NETWORK_DIVISORS

# --- the published layouts, by hand ---------------------------------------------------------------


def norm_tensors(name, width, counted=True):
    """What a trained batch norm holds."""
    state = {
        f"{name}.weight": 0.5 + torch.rand(width), f"{name}.bias": torch.randn(width) / 10,
        f"{name}.running_mean": torch.randn(width) / 10, f"{name}.running_var": 0.5 + torch.rand(width),
    }  # fmt: skip
    return state | ({f"{name}.num_batches_tracked": torch.tensor(7)} if counted else {})


def conv_tensors(name, num_out, num_in, *kernel):
    fan_in = num_in * torch.Size(kernel).numel()
    return {f"{name}.weight": torch.randn(num_out, num_in, *kernel) * (2 / fan_in) ** 0.5}


def resnet_state(blocks, convolutions=2, ndim=2, channels=3, shortcuts=True, fill=None):
    """A ResNet as torchvision names it; fill: every tensor is this number, which costs no memory."""
    torch.manual_seed(5)
    conv = conv_tensors if fill is None else lambda name, *shape: {f"{name}.weight": torch.tensor(fill).expand(shape)}
    state = conv("conv1", 64, channels, *[7] * ndim) | norm_tensors("bn1", 64)
    num_in, expansion = 64, {2: 1, 3: 4}[convolutions]
    for layer, (number, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        for block in range(number):
            name, num_out = f"layer{layer}.{block}", width * expansion
            plan = {
                2: [(width, num_in, 3), (width, width, 3)],
                3: [(width, num_in, 1), (width, width, 3), (num_out, width, 1)],
            }[convolutions]
            for place, (after, before, side) in enumerate(plan, 1):
                state |= conv(f"{name}.conv{place}", after, before, *[side] * ndim)
                state |= norm_tensors(f"{name}.bn{place}", after)
            if shortcuts and block == 0 and num_in != num_out:
                state |= conv(f"{name}.downsample.0", num_out, num_in, *[1] * ndim)
                state |= norm_tensors(f"{name}.downsample.1", num_out)
            num_in = num_out
    return state


def normed(state, name, images, eps=1e-5):
    tensors = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return functional.batch_norm(images, *tensors, eps=eps)


def resnet_features(state, images):
    """A 2D ResNet of torchvision's layout, computed from its tensors alone: features of each level."""
    now = functional.relu(normed(state, "bn1", functional.conv2d(images, state["conv1.weight"], None, 2, 3)))
    features, now = [now], functional.max_pool2d(now, 3, 2, 1)
    for layer in range(1, 5):
        for block in range(sum(f"layer{layer}.{number}.bn1.bias" in state for number in range(9))):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            strided = 2 if f"{name}.conv3.weight" in state else 1  # the first 3×3 convolution
            shortcut, inner = now, now
            for place in range(1, 4 if strided == 2 else 3):
                weight = state[f"{name}.conv{place}.weight"]
                step = stride if place == strided else 1
                inner = functional.conv2d(inner, weight, None, step, weight.shape[-1] // 2)
                inner = normed(state, f"{name}.bn{place}", inner)
                inner = functional.relu(inner) if place < (3 if strided == 2 else 2) else inner
            if f"{name}.downsample.0.weight" in state:
                shortcut = functional.conv2d(now, state[f"{name}.downsample.0.weight"], None, stride)
                shortcut = normed(state, f"{name}.downsample.1", shortcut)
            now = functional.relu(inner + shortcut)
        features.append(now)
    return features


MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32), "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64), "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64), "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128), "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}  # fmt: skip


def i3d_state(channels=3, counted=True):
    """I3D as its torch port names it."""
    torch.manual_seed(6)
    units = {"Conv3d_1a_7x7": (64, channels, 7), "Conv3d_2b_1x1": (64, 64, 1), "Conv3d_2c_3x3": (192, 64, 3)}
    for name, (before, b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        units |= {
            f"{name}.b0": (b0, before, 1), f"{name}.b1a": (b1a, before, 1), f"{name}.b1b": (b1b, b1a, 3),
            f"{name}.b2a": (b2a, before, 1), f"{name}.b2b": (b2b, b2a, 3), f"{name}.b3b": (b3b, before, 1),
        }  # fmt: skip
    state = {}
    for name, (after, before, side) in units.items():
        state |= conv_tensors(f"{name}.conv3d", after, before, side, side, side)
        state |= norm_tensors(f"{name}.bn", after, counted)
    head = {"logits.conv3d.weight": torch.rand(400, 1024, 1, 1, 1), "logits.conv3d.bias": torch.rand(400)}
    return state | head


def i3d_features(state, images):
    """I3D computed from its tensors alone, with the padding of TensorFlow's SAME."""

    def unit(name, images, stride=1):
        weight = state[f"{name}.conv3d.weight"]
        images = functional.pad(images, {1: (0,) * 6, 3: (1,) * 6, 7: (2, 3) * 3}[weight.shape[-1]])
        return functional.relu(normed(state, f"{name}.bn", functional.conv3d(images, weight, None, stride), 1e-3))

    def mixed(name, images):
        around = functional.max_pool3d(images, 3, 1, 1)
        return torch.cat([
            unit(f"{name}.b0", images), unit(f"{name}.b1b", unit(f"{name}.b1a", images)),
            unit(f"{name}.b2b", unit(f"{name}.b2a", images)), unit(f"{name}.b3b", around),
        ], 1)  # fmt: skip

    def in_plane(images):
        return functional.max_pool3d(functional.pad(images, (0, 1, 0, 1)), (1, 3, 3), (1, 2, 2))

    features = [unit("Conv3d_1a_7x7", images, 2)]
    features.append(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", in_plane(features[-1]))))
    features.append(mixed("Mixed_3c", mixed("Mixed_3b", in_plane(features[-1]))))
    now = functional.max_pool3d(functional.pad(features[-1], (0, 1) * 3), 3, 2)
    for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
        now = mixed(name, now)
    features.append(now)
    features.append(mixed("Mixed_5c", mixed("Mixed_5b", functional.max_pool3d(now, 2))))
    return features


def save(tmp_path, state, prefix="", name="published.pth", wrapped=True):
    state = {prefix + key: value for key, value in state.items()}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / name)
    return tmp_path / name


def assert_computes(encoder, images, expected):
    """To 1e-4 of the largest number of each level, and nothing is constant."""
    with torch.no_grad():
        for found, wanted in zip(encoder(images), expected, strict=True):
            assert found.std() > 0
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


# --- what comes in --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "convolutions", "network"), [((2, 2, 2, 2), 2, "resnet18-b"), ((3, 4, 6, 3), 3, "resnet50")]
)
def test_an_imagenet_resnet_sees_grey_as_it_saw_three_equal_channels(tmp_path, capsys, blocks, convolutions, network):
    state = resnet_state(blocks, convolutions)
    head = {"fc.weight": torch.rand(10, 4), "fc.bias": torch.rand(10)}
    path = save(tmp_path, state | head, wrapped=False)
    model = load_network(path)
    assert model.architecture == Architecture(ndim=2, network=network, restores=False)
    num = sum("num_batches" not in name for name in state)
    said = capsys.readouterr().out
    assert f"ImageNet {network}, taken: encoder {num} tensors" in said and "RGB to grey" in said
    assert "fc.*: 2 tensors, no such head here" in said and "missing: decoder" in said
    images = torch.rand(2, 1, 64, 32)
    assert_computes(model.encoder.eval(), images, resnet_features(state, images.expand(-1, 3, -1, -1)))


def test_the_same_tensors_as_safetensors_or_in_other_precision(tmp_path):
    state = {name: value.half() if value.is_floating_point() else value
             for name, value in resnet_state((1, 1, 1, 1)).items()}  # fmt: skip
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    first, second = load_network(tmp_path / "model.safetensors"), load_network(save(tmp_path, state))
    assert first.architecture.network == "resnet10"
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        assert value.dtype == (torch.int64 if "num_batches" in name else torch.float32)
    expected = state["conv1.weight"].float().sum(1, keepdim=True)
    assert torch.equal(first.encoder.encoder.conv1.weight, expected)


def test_a_grey_2d_resnet_is_taken_as_it_is(tmp_path):
    state = resnet_state((1, 1, 1, 1), channels=1)
    taken = parse_supervised(state, tmp_path)
    assert taken.state.keys() == {f"encoder.{name}" for name in state} and taken.notes == ()
    assert all(torch.equal(taken.state[f"encoder.{name}"], value) for name, value in state.items())


def test_medicalnet_is_monais_resnet_without_weights_in_its_shortcuts(tmp_path, capsys):
    torch.manual_seed(2)
    theirs = resnet18(spatial_dims=3, n_input_channels=1, conv1_t_stride=2, feed_forward=False, shortcut_type="A")
    with torch.no_grad():
        theirs.train()(torch.rand(2, 1, 32, 32, 32))
    head = {"conv_seg.0.weight": torch.rand(3), "conv_seg.0.bias": torch.rand(3)}
    path = save(tmp_path, theirs.state_dict() | head, prefix="module.")
    model = load_network(path)
    said = capsys.readouterr().out
    assert model.architecture == Architecture(ndim=3, network="resnet18", restores=False)
    assert "MedicalNet resnet18, taken: encoder 85 tensors" in said and "dilates them" in said
    assert "conv_seg.*: 2 tensors, no such head here" in said and "RGB" not in said
    images = torch.rand(1, 1, 32, 64, 32)
    with torch.no_grad():
        now = theirs.eval().act(theirs.bn1(theirs.conv1(images)))
        expected, now = [now.clone()], theirs.maxpool(now)
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            now = layer(now)
            expected.append(now)
    assert_computes(model.encoder.eval(), images, expected)
    assert raygenesis.load_unet(path, num_out=2)(images).shape == (1, 2, 32, 64, 32)


@pytest.mark.parametrize(
    ("network", "ndim"),
    [*((name, ndim) for name in list(RESNETS.values())[:6] for ndim in (2, 3)), ("resnet101", 2)],
)
def test_every_resnet_is_recognised_and_whole(tmp_path, network, ndim):
    (blocks, convolutions, shortcuts), *_ = [kind for kind, name in RESNETS.items() if name == network]
    state = resnet_state(blocks, convolutions, ndim, 3 if ndim == 2 else 1, shortcuts, fill=0.01)
    taken = parse_supervised(state, tmp_path)
    assert taken.architecture == Architecture(ndim=ndim, network=network, restores=False)
    assert taken.state.keys() == {f"encoder.{name}" for name in state} and taken.unused == {}


@pytest.mark.parametrize(
    ("blocks", "network"),
    [((3, 4, 23, 3), "resnet101"), ((3, 8, 36, 3), "resnet152"), ((3, 24, 36, 3), "resnet200")],
)
def test_the_deep_ones_are_recognised(tmp_path, blocks, network):
    """By what is missing, which costs no gigabyte: everything before it fits."""
    state = resnet_state(blocks, 3, 3, 1, fill=0.01)
    del state["layer4.2.bn3.num_batches_tracked"], state["layer4.2.bn3.running_var"]
    with pytest.raises(WeightsError, match=rf"MedicalNet {network}: layer4\.2\.bn3\.running_var is missing"):
        parse_supervised(state, tmp_path)


@pytest.fixture(scope="module")
def i3d():
    return i3d_state()


def test_i3d_sees_grey_as_it_saw_three_equal_channels(tmp_path, capsys, i3d):
    path = save(tmp_path, i3d, wrapped=False)
    model = load_network(path)
    said = capsys.readouterr().out
    assert model.architecture == Architecture(ndim=3, network="i3d", restores=False)
    assert "I3D, taken: encoder 285 tensors" in said and "logits.*: 2 tensors, no such head" in said
    images = torch.rand(1, 1, 16, 64, 32)
    expected = i3d_features(i3d, images.expand(-1, 3, -1, -1, -1))
    assert [tuple(level.shape[1:]) for level in expected] == [
        (64, 8, 32, 16), (192, 8, 16, 8), (480, 8, 8, 4), (832, 4, 4, 2), (1024, 2, 2, 1),
    ]  # fmt: skip
    assert_computes(model.encoder.eval(), images, expected)


def test_i3d_of_a_torch_that_counted_no_batches(tmp_path, i3d):
    state = {f"module.{name}": value for name, value in i3d.items() if "num_batches" not in name}
    torch.save(state, tmp_path / "rgb_imagenet.pt", _use_new_zipfile_serialization=False)
    model = load_network(tmp_path / "rgb_imagenet.pt")
    counters = [value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 57 and not any(counters)
    assert torch.equal(model.encoder.layers["Mixed_5c"].b2b.conv3d.weight, i3d["Mixed_5c.b2b.conv3d.weight"])


def test_weights_show_tells_what_a_published_file_holds(tmp_path, capsys):
    state = resnet_state((1, 1, 1, 1))
    lines = describe(save(tmp_path, state))
    num = sum(value.numel() for name, value in state.items() if name.endswith((".weight", ".bias"))) - 2 * 64 * 49
    assert "network resnet10" in lines[0] and lines[1] == f"{num:,} parameters"
    assert "taken: encoder" in capsys.readouterr().out


# --- files that are none --------------------------------------------------------------------------


def refused(path):
    with pytest.raises(WeightsError) as error:
        raygenesis.load_encoder(path)
    sentence = str(error.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 320 + len(str(path))
    return sentence


def resnet10(**changes):
    """A 2D ResNet-10 with tensors replaced, or removed where the value is None; `__` stands for a dot."""
    state = resnet_state((1, 1, 1, 1), fill=0.01) | {n.replace("__", "."): value for n, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: resnet10(layer4__0__bn2__bias=None), "not hold a whole encoder of ImageNet resnet10: layer4.0.bn2"),
        (lambda: resnet10(layer2__0__downsample__1__running_var=None), "downsample.1.running_var is missing"),
        (lambda: resnet10(layer3__0__conv1__weight=torch.rand(256, 128, 1, 1)), "has shape [256, 128, 1, 1] where"),
        (lambda: resnet10(layer1__0__se__fc1__weight=torch.rand(4, 64)), "layer1.0.se.fc1.weight has no place in it"),
        (lambda: resnet10(backbone__weight=torch.rand(4)), "backbone.weight has no place in it"),
        (lambda: resnet10(bn1__bias=torch.full((64,), torch.nan)), "numbers that are not finite, in bn1.bias"),
        (lambda: resnet10(conv1__weight=torch.full((64, 3, 7, 7), torch.inf)), "not finite, in conv1.weight"),
        (lambda: resnet10(bn1__bias="text"), "bn1.bias is missing"),
        (lambda: resnet10(conv1__weight=torch.rand(64, 4, 7, 7)), "takes images of 1 or 3 channel(s)"),
        (lambda: resnet10(conv1__weight=torch.rand(64, 3, 3, 3)), "shape [64, 3, 3, 3] where [64, 3, 7, 7]"),
        (lambda: resnet10(layer4__1__conv1__weight=torch.rand(2)), "of (1, 1, 1, 2) blocks of 2 convolutions"),
        (lambda: resnet_state((3, 4, 6, 3), 3, shortcuts=False, fill=0.1), "shortcuts without weights"),
        (lambda: resnet_state((2, 2, 2, 2), ndim=3, fill=0.1), "takes images of 1 channel(s)"),
        (lambda: {"Conv3d_1a_7x7.conv3d.weight": torch.rand(64, 2, 7, 7, 7)}, "takes images of 1 or 3 channel(s)"),
        (lambda: {"Conv3d_1a_7x7.conv3d.weight": torch.tensor(1.0)}, "takes images of 1 or 3 channel(s)"),
        (lambda: {"Conv3d_1a_7x7.conv3d.weight": torch.rand(64, 3, 7, 7, 7)}, "Conv3d_1a_7x7.bn.weight is missing"),
        (lambda: {"stem.conv.weight": torch.rand(2), "a": 1}, "that is known (Models Genesis, MedicalNet, ResNets of"),
        (lambda: {"conv1.0.weight": torch.rand(2)}, "its names begin with conv1.0.weight"),
        (lambda: {"conv1.weight": torch.rand(2), "layer1.0.conv1.weight": 3}, "names begin with conv1.weight, layer1"),
        (dict, "its names are none"),
    ],
)
def test_other_networks_and_damaged_ones_are_one_sentence(tmp_path, make, words):
    assert words in refused(save(tmp_path, make()))


def test_a_sparse_or_whole_numbered_tensor_is_no_weight(tmp_path):
    for value in (torch.ones(64, 3, 7, 7).to_sparse(), torch.ones(64, 3, 7, 7, dtype=torch.int64)):
        assert "conv1.weight is not a dense tensor of float32" in refused(save(tmp_path, resnet10(conv1__weight=value)))


def test_a_truncated_file_wherever_it_ends(tmp_path):
    content = save(tmp_path, resnet10()).read_bytes()
    for length in (0, 4, 1000, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        refused(tmp_path / "cut.pth")


def test_a_file_with_objects_is_not_opened(tmp_path):
    path = tmp_path / "objects.pth"
    torch.save({"state_dict": resnet10(), "args": argparse.Namespace(a=1)}, path)
    assert "pickled objects other than tensors" in refused(path)
    path.write_bytes(pickle.dumps({"state_dict": {}}, 4))
    refused(path)


@pytest.mark.parametrize("given", ["m.ckpt-9", "m.ckpt-9.index", "m.ckpt-9.data-00000-of-00001", "m.ckpt-9.meta", ""])
def test_a_tensorflow_checkpoint_is_told_by_any_of_its_names(tmp_path, given):
    for ending in ("index", "data-00000-of-00001", "meta"):
        (tmp_path / f"m.ckpt-9.{ending}").write_bytes(b"\x00" * 8)
    sentence = refused(tmp_path / given)
    assert "TensorFlow checkpoint, as NiftyNet publishes" in sentence and "start from MedicalNet" in sentence


# --- the networks themselves ----------------------------------------------------------------------


@pytest.mark.parametrize(("network", "ndim"), [("resnet10", 3), ("resnet18-b", 2), ("i3d", 3)])
def test_a_new_network_trains_embeds_and_becomes_a_unet(tmp_path, network, ndim):
    torch.manual_seed(0)
    model = PretextNetwork(Architecture(ndim=ndim, network=network, head="classification", num_classes=4))
    images = torch.rand(2, 1, *[NETWORK_DIVISORS[network]] * ndim)
    prediction = model(images)
    assert prediction.restored.shape == images.shape and prediction.logits.shape == (2, 4)
    (prediction.restored.mean() + prediction.logits.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.encoder.embed(images).shape == (2, model.encoder.num_features)
    path = save_network(model.eval(), tmp_path, {})
    unet = raygenesis.load_unet(path, num_out=3).eval()
    assert unet(images).shape == (2, 3, *images.shape[2:])
    assert any(name.startswith(f"{model.decoder.output_layer}.") for name in model.decoder.state_dict())
    with torch.no_grad():
        assert torch.equal(unet.encoder.embed(images), model.encoder.embed(images))


def test_i3d_is_the_same_when_it_computes_its_activations_again():
    torch.manual_seed(0)
    model = PretextNetwork(Architecture(network="i3d"))
    images, gradients = torch.rand(2, 1, 32, 32, 32), []
    for again in (False, True):
        if again:
            enable_gradient_checkpointing(model)
        model.zero_grad()
        model(images).restored.square().mean().backward()
        gradients.append(model.encoder.layers["Conv3d_1a_7x7"].conv3d.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_every_level_of_i3d_reaches_the_image():
    model = UNet(1, Architecture(network="i3d"))
    features = model.encoder(torch.rand(2, 1, 16, 32, 32))
    whole = model.decoder(features)
    assert whole.shape == (2, 1, 16, 32, 32)
    for number in range(len(features)):
        silenced = [torch.zeros_like(level) if n == number else level for n, level in enumerate(features)]
        assert not torch.allclose(model.decoder(silenced), whole)


def test_i3d_is_for_3d_and_neither_it_nor_torchvisions_resnet_is_monais(tmp_path):
    with pytest.raises(raygenesis.errors.RaygenesisError, match="takes 3D images"):
        build_encoder(Architecture(ndim=2, network="i3d"))
    path = save_network(PretextNetwork(Architecture(ndim=2, network="resnet18-b")), tmp_path, {})
    with pytest.raises(WeightsError, match="which MONAI has not"):
        export_to_library(path, tmp_path / "other.pt")
