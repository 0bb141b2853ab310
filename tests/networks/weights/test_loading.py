"""Weights leave with their configuration, come back without Ray, and foreign files are told in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from monai.networks.nets import FlexibleUNet, SegResNet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import raygenesis
from raygenesis.errors import WeightsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.library_export import export_to_library
from raygenesis.networks.weights.loading import load_encoder, load_network, load_unet
from raygenesis.networks.weights.native import save_network
from tests.support.published import PublishedUNet

ARCHITECTURES = [
    {"ndim": 3, "base_width": 2, "head": "classification", "num_classes": 5},
    {"ndim": 2, "base_width": 3, "head": "classification", "num_classes": 7, "norm": "group"},
]
SIZES = {2: (16, 24), 3: (8, 16, 8)}


def trained(architecture):
    """A network whose batch statistics are no longer those of a new one."""
    torch.manual_seed(1)
    model = PretextNetwork(Architecture(**architecture))
    for _ in range(3):
        model(torch.rand(2, 1, *SIZES[architecture["ndim"]]))
    return model.eval()


@pytest.fixture(params=ARCHITECTURES, ids=["3D", "2D"])
def exported(request, tmp_path):
    model = trained(request.param)
    return model, save_network(model, tmp_path, {"accuracy": 0.5}), request.param


def test_what_is_exported_is_loaded_to_the_bit(exported):
    model, path, architecture = exported
    loaded = load_network(path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    images = torch.rand(2, 1, *SIZES[architecture["ndim"]])
    with torch.no_grad():
        for now, then in zip(loaded.eval()(images), model(images), strict=True):
            assert now is then is None or torch.equal(now, then)


def test_the_same_network_is_the_same_bytes_whatever_its_memory_format(tmp_path):
    model = trained(ARCHITECTURES[0])
    contents = set()
    for number in range(6):
        memory_format = torch.channels_last_3d if number % 2 else torch.contiguous_format
        path = save_network(model.to(memory_format=memory_format), tmp_path, {})
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_the_encoder_is_the_pretrained_one_from_the_file_or_its_folder(exported):
    model, path, architecture = exported
    images = torch.rand(2, 1, *SIZES[architecture["ndim"]])
    for given in (path, str(path), path.parent, str(path.parent)):
        encoder = load_encoder(given)
        assert not encoder.training
        with torch.no_grad():
            assert torch.equal(encoder.embed(images), model.encoder.embed(images))


def test_a_unet_takes_over_everything_but_the_output_layer(exported):
    model, path, architecture = exported
    unet = load_unet(path, num_out=4)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(unet.encoder.state_dict()[name], value), name
    theirs, ours = model.decoder.state_dict(), unet.decoder.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert name.startswith("output.") or torch.equal(ours[name], value), name
    assert unet.decoder.output.out_channels == 4
    assert not torch.equal(ours["output.weight"][:1], theirs["output.weight"])
    assert unet(torch.rand(1, 1, *SIZES[architecture["ndim"]])).shape == (1, 4, *SIZES[architecture["ndim"]])


def test_the_card_says_what_the_weights_are(exported):
    _, path, architecture = exported
    card = (path.parent / "model-card.md").read_text()
    for name, value in {**architecture, "accuracy": 0.5}.items():
        assert f"| {name} | {value} |" in card


def test_loading_imports_no_ray(tmp_path):
    model = trained(ARCHITECTURES[0])
    path = save_network(model, tmp_path, {})
    script = f"""
import sys, torch, raygenesis
encoder = raygenesis.load_encoder({str(path)!r})
raygenesis.load_unet({str(path)!r}, num_out=2)
assert not {"ray", "monai"} & sys.modules.keys(), "ray or MONAI was imported"
print(*encoder.embed(torch.linspace(0, 1, 1024).view(1, 1, 8, 16, 8))[0].tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model.encoder.embed(torch.linspace(0, 1, 1024).view(1, 1, 8, 16, 8))[0]
    torch.testing.assert_close(torch.tensor([float(word) for word in done.stdout.split()]), expected)


# --- files that are none --------------------------------------------------------------------------


def refused(path):
    with pytest.raises(WeightsError) as error:
        raygenesis.load_encoder(path)
    sentence = str(error.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 300 + len(str(path))
    return sentence


def test_a_file_that_is_not_there(tmp_path):
    assert "does not exist: give a run's folder, its encoder.safetensors" in refused(tmp_path / "nothing.safetensors")
    assert "does not exist" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 100, b'{"a": 1}' * 50])
def test_a_file_that_is_no_safetensors(tmp_path, content):
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    assert "not a safetensors file" in refused(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_someone_else(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.rand(3)}, path, metadata)
    assert "was not written by raygenesis and has no published layout that is known" in refused(path)


def test_a_truncated_file_wherever_it_ends(exported, tmp_path):
    _, path, _ = exported
    content = path.read_bytes()
    cut = path.with_name("cut.safetensors")
    for length in (4, 100, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
        refused(cut)


def test_a_file_that_does_not_hold_what_it_says(exported):
    _, path, _ = exported
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(path)
    tensors.pop("head.linear.bias")
    other = path.with_name("other.safetensors")
    save_file(tensors, other, metadata)
    assert "does not match its own description" in refused(other)


@pytest.mark.parametrize("described", ['{"format": "raygenesis-2", "architecture": {"depth": 3}}', "not JSON"])
def test_a_file_that_does_not_describe_its_network(exported, described):
    _, path, _ = exported
    other = path.with_name("other.safetensors")
    save_file(load_file(path), other, {"raygenesis": described})
    assert "does not describe its network" in refused(other)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"base_width": 8192}, "does not match its own description: encoder.levels.0.0.weight is missing"),
        ({"num_classes": 10**12, "head": "classification"}, "does not match its own description"),
        ({"network": "resnet200", "ndim": 3}, "does not match its own description"),
        ({"base_width": 10**15}, "does not describe its network"),
        ({"base_width": "32"}, "does not describe its network"),
        ({"base_width": -1}, "does not describe its network"),
        ({"ndim": 7}, "does not describe its network"),
        ({"network": "none"}, "does not describe its network"),
        ({"network": "i3d", "ndim": 2}, "does not describe its network"),
    ],
)
def test_a_small_file_that_describes_a_large_network_takes_no_memory(tmp_path, architecture, words):
    """The first two would take more than a machine has."""
    file = tmp_path / "bomb.safetensors"
    description = {"format": "raygenesis-2", "architecture": architecture}
    save_file({"a": torch.zeros(1)}, file, {"raygenesis": json.dumps(description)})
    before = torch.random.get_rng_state()
    assert words in refused(file).replace("a has no place in it", "encoder.levels.0.0.weight is missing")
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing was drawn, so nothing was built


def test_weights_written_before_there_were_decoders_without_skips_have_them(exported):
    model, path, _ = exported
    other = path.with_name("other.safetensors")
    description = {"format": "raygenesis-2", "version": "1.0", "architecture": asdict(model.architecture)}
    del description["architecture"]["skips"]
    save_file(load_file(path), other, {"raygenesis": json.dumps(description)})
    loaded = load_network(other)
    assert loaded.architecture == model.architecture and loaded.architecture.skips
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_weights_of_an_earlier_format_are_refused(exported):
    """Its decoder put the skip before what comes from below: loaded as they are, they would restore nothing."""
    _, path, _ = exported
    other = path.with_name("other.safetensors")
    save_file(load_file(path), other, {"raygenesis": '{"format": "raygenesis-1"}'})
    assert "its format is 'raygenesis-1', and 'raygenesis-2' is read" in refused(other)


# --- other networks, and other layouts ------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    [
        {"network": "segresnet", "base_width": 8, "ndim": 3},
        {"base_width": 2, "skips": False},
        {"network": "segresnet", "base_width": 8, "ndim": 2, "skips": False},
        {"network": "resnet18", "ndim": 2, "head": "rubiks-cube", "num_classes": 24, "restores": False},
        {"norm": "batch-statistics", "base_width": 2, "head": "rubiks-cube", "num_classes": 100, "restores": False},
    ],
    ids=lambda architecture: architecture.get("network", "unet"),
)
def test_any_network_comes_back_and_becomes_a_unet(architecture, tmp_path, capsys):
    torch.manual_seed(0)
    model = PretextNetwork(Architecture(**architecture)).eval()
    path = save_network(model, tmp_path, {})
    loaded = load_network(path)
    assert loaded.architecture == model.architecture
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    images = torch.rand(2, 1, *[32] * loaded.architecture.ndim)
    unet = load_unet(path, num_out=3).eval()
    assert unet(images).shape == (2, 3, *images.shape[2:])
    taken = unet.encoder.state_dict()
    assert all(torch.equal(taken[name], value) for name, value in model.encoder.state_dict().items())
    said = capsys.readouterr().out
    assert ("holds no decoder: the U-Net's begins with" in said) != architecture.get("restores", True)
    assert ("holds a decoder without skips: the U-Net's begins with" in said) != architecture.get("skips", True)
    if model.unet_decoder is not None:
        kept = unet.decoder.state_dict()
        last = f"{model.decoder.output_layer}."
        assert any(name.startswith(last) for name in kept)
        assert all(
            torch.equal(kept[name], value)
            for name, value in model.decoder.state_dict().items() if not name.startswith(last)
        )  # fmt: skip


def test_a_published_file_is_read_where_ours_are(tmp_path, capsys):
    published = PublishedUNet(2, 5)
    torch.save({"state_dict": {f"module.{name}": value for name, value in published.state_dict().items()}
                | {"module.projection_head.0.weight": torch.rand(3)}}, tmp_path / "published.pt")  # fmt: skip
    images = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        restored, logits = published.eval()(images)
        model = load_network(tmp_path / "published.pt").eval()
        said = capsys.readouterr().out
        prediction = model(images)
        torch.testing.assert_close(prediction.restored, restored, atol=1e-5, rtol=0)
        torch.testing.assert_close(prediction.logits, logits, atol=1e-5, rtol=0)
    assert "taken: encoder 56 tensors, decoder 50 tensors" in said
    assert "projection_head.*: 1 tensor, no such head" in said
    assert load_unet(tmp_path / "published.pt", num_out=2)(images).shape == (2, 2, 16, 16, 16)
    assert load_encoder(tmp_path / "published.pt").embed(images).shape == (2, 32)


def test_our_unet_leaves_as_the_published_code_loads_it(tmp_path):
    model = trained(ARCHITECTURES[0])
    path = save_network(model, tmp_path, {})
    assert "Models Genesis" in export_to_library(path, tmp_path / "theirs.pt")
    state = torch.load(tmp_path / "theirs.pt", weights_only=True)["state_dict"]
    theirs = PublishedUNet(2, 5)
    theirs.load_state_dict(state)
    images = torch.rand(4, 1, 16, 16, 16)
    with torch.no_grad():
        restored, logits = theirs(images)
        prediction = model.train()(images)
    torch.testing.assert_close(prediction.restored, restored, atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction.logits, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["segresnet", "resnet18"])
def test_a_network_of_monai_leaves_as_monai_loads_it(tmp_path, name):
    model = PretextNetwork(Architecture(network=name, base_width=8, ndim=2)).eval()
    said = export_to_library(save_network(model, tmp_path, {}), tmp_path / "monai.pt")
    whole = {
        "segresnet": lambda: SegResNet(2, 8, in_channels=1, out_channels=1),
        "resnet18": lambda: FlexibleUNet(1, 1, "resnet18", spatial_dims=2),
    }[name]()
    assert type(whole).__name__ in said
    whole.load_state_dict(torch.load(tmp_path / "monai.pt", weights_only=True))
    images = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.sigmoid(whole.eval()(images)), model(images).restored)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"ndim": 2}, "is a 2D U-Net with batch norm"),
        ({"norm": "group"}, "is a 3D U-Net with group norm"),
        ({"skips": False}, "holds a decoder without skips"),
        ({"network": "segresnet", "skips": False, "base_width": 8}, "holds a decoder without skips"),
        ({"network": "segresnet", "restores": False, "base_width": 8}, "holds no decoder"),
    ],
)
def test_what_has_no_other_layout_is_said(tmp_path, architecture, words):
    path = save_network(PretextNetwork(Architecture(**{"base_width": 2, **architecture})), tmp_path, {})
    with pytest.raises(WeightsError, match=words):
        export_to_library(path, tmp_path / "other.pt")
    assert not (tmp_path / "other.pt").exists()
