"""Weights leave with their configuration, come back without Ray, and foreign files are told in one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import raygenesis
from raygenesis.pretraining.networks import SemanticGenesis
from raygenesis.pretraining.weights import WeightsError, export, load_encoder, load_network, load_unet

ARCHITECTURES = [
    {"ndim": 3, "base_width": 2, "num_classes": 5},
    {"ndim": 2, "base_width": 3, "num_classes": 7},
]
SIZES = {2: (16, 24), 3: (8, 16, 8)}


def trained(architecture):
    """A network whose batch statistics are no longer those of a new one."""
    torch.manual_seed(1)
    model = SemanticGenesis(architecture["num_classes"], architecture["ndim"], architecture["base_width"])
    for _ in range(3):
        model(torch.rand(2, 1, *SIZES[architecture["ndim"]]))
    return model.eval()


@pytest.fixture(params=ARCHITECTURES, ids=["3D", "2D"])
def exported(request, tmp_path):
    model = trained(request.param)
    return model, export(model, tmp_path, request.param, {"accuracy": 0.5}), request.param


def test_what_is_exported_is_loaded_to_the_bit(exported):
    model, path, architecture = exported
    loaded = load_network(path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    images = torch.rand(2, 1, *SIZES[architecture["ndim"]])
    with torch.no_grad():
        for now, then in zip(loaded.eval()(images), model(images), strict=True):
            assert torch.equal(now, then)


def test_the_same_network_is_the_same_bytes_whatever_its_memory_format(tmp_path):
    model = trained(ARCHITECTURES[0])
    contents = set()
    for number in range(6):
        memory_format = torch.channels_last_3d if number % 2 else torch.contiguous_format
        path = export(model.to(memory_format=memory_format), tmp_path, ARCHITECTURES[0], {})
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
    path = export(model, tmp_path, ARCHITECTURES[0], {})
    script = f"""
import sys, torch, raygenesis
encoder = raygenesis.load_encoder({str(path)!r})
raygenesis.load_unet({str(path)!r}, num_out=2)
assert "ray" not in sys.modules, "ray was imported"
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
    assert "does not exist: give a run's folder or its encoder.safetensors" in refused(tmp_path / "nothing.safetensors")
    assert "does not exist" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 100, b'{"a": 1}' * 50])
def test_a_file_that_is_no_safetensors(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert "not a safetensors file" in refused(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_someone_else(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.rand(3)}, path, metadata)
    assert "was not written by raygenesis" in refused(path)


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
