"""Files of the earlier systems come in under our names to the bit, and ours go out as their code loads them."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

from raygenesis.errors import WeightsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.released import Released, parse_released, summary, write_released
from raygenesis.networks.weights.torch_files import read_state_dict
from tests.support.published import PublishedUNet

BASE_WIDTH, NUM_CLASSES = 4, 5
# Every layer of theirs and its place in ours, by hand.
LAYERS = """
down_tr64.ops.0.conv1   encoder.levels.0.0
down_tr64.ops.0.bn1     encoder.levels.0.1
down_tr64.ops.1.conv1   encoder.levels.0.3
down_tr64.ops.1.bn1     encoder.levels.0.4
down_tr128.ops.0.conv1  encoder.levels.1.0
down_tr128.ops.0.bn1    encoder.levels.1.1
down_tr128.ops.1.conv1  encoder.levels.1.3
down_tr128.ops.1.bn1    encoder.levels.1.4
down_tr256.ops.0.conv1  encoder.levels.2.0
down_tr256.ops.0.bn1    encoder.levels.2.1
down_tr256.ops.1.conv1  encoder.levels.2.3
down_tr256.ops.1.bn1    encoder.levels.2.4
down_tr512.ops.0.conv1  encoder.levels.3.0
down_tr512.ops.0.bn1    encoder.levels.3.1
down_tr512.ops.1.conv1  encoder.levels.3.3
down_tr512.ops.1.bn1    encoder.levels.3.4
up_tr256.up_conv        decoder.ups.0
up_tr256.ops.0.conv1    decoder.levels.0.0
up_tr256.ops.0.bn1      decoder.levels.0.1
up_tr256.ops.1.conv1    decoder.levels.0.3
up_tr256.ops.1.bn1      decoder.levels.0.4
up_tr128.up_conv        decoder.ups.1
up_tr128.ops.0.conv1    decoder.levels.1.0
up_tr128.ops.0.bn1      decoder.levels.1.1
up_tr128.ops.1.conv1    decoder.levels.1.3
up_tr128.ops.1.bn1      decoder.levels.1.4
up_tr64.up_conv         decoder.ups.2
up_tr64.ops.0.conv1     decoder.levels.2.0
up_tr64.ops.0.bn1       decoder.levels.2.1
up_tr64.ops.1.conv1     decoder.levels.2.3
up_tr64.ops.1.bn1       decoder.levels.2.4
out_tr.final_conv       decoder.output
clc_out.conv1           head.conv.0
clc_out.bn1             head.conv.1
clc_out.fc1             head.linear
"""
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Their name of every tensor → ours.
TENSORS = {
    f"{theirs}.{tensor}": f"{ours}.{tensor}"
    for theirs, ours in (line.split() for line in LAYERS.split("\n") if line)
    for tensor in (NORM_TENSORS if theirs.endswith("bn1") else ("weight", "bias"))
}
EXTRA = {
    **{f"projection_head.{name}": (3, 2) for name in ("0.weight", "0.bias", "2.weight", "2.bias")},
    "prototypes.weight": (7, 2),
}


def published_network():
    """A network whose every tensor differs from those of a new one, counters and running statistics included."""
    torch.manual_seed(3)
    network = PublishedUNet(BASE_WIDTH, NUM_CLASSES)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(len(name))
        elif ".bn1." in name:
            tensor.copy_(0.5 + torch.rand(tensor.shape))
    return network.eval()


def our_network(ndim=3, norm="batch"):
    torch.manual_seed(4)
    wanted = {"ndim": ndim, "base_width": BASE_WIDTH, "norm": norm}
    model = PretextNetwork(Architecture(head="classification", num_classes=NUM_CLASSES, **wanted))
    model(torch.rand(2, 1, *[16] * ndim))  # batch norms have counted a batch
    return model


def save(tmp_path, state, prefix="", **others):
    path = tmp_path / "Genesis.pt"
    torch.save({"epoch": 7, "state_dict": {prefix + name: value for name, value in state.items()}, **others}, path)
    return path


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name


def read_released(path: str | Path) -> Released:
    return parse_released(read_state_dict(Path(path)), Path(path))


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "classficationNet.", "module.classficationNet.", "module.module."])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_every_tensor_lands_under_our_name_to_the_bit(tmp_path, prefix, zipped):
    theirs = published_network().state_dict()
    assert theirs.keys() == TENSORS.keys()  # the table is whole
    extra = {name: torch.rand(shape) for name, shape in EXTRA.items()}
    path = tmp_path / "Genesis.pt"
    content = {"state_dict": {prefix + name: value for name, value in {**extra, **theirs}.items()}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    released = read_released(path)
    assert_same(released.state, {ours: theirs[name] for name, ours in TENSORS.items()})
    assert sorted(released.used) == sorted(TENSORS) and released.missing == []
    assert released.unused == {name: "no such head here" for name in EXTRA}
    assert (released.base_width, released.num_classes, released.has_decoder) == (BASE_WIDTH, NUM_CLASSES, True)
    our_network().load_state_dict(released.state)


def test_what_was_taken_and_left_is_told(tmp_path):
    extra = {name: torch.rand(shape) for name, shape in EXTRA.items()}
    lines = summary(read_released(save(tmp_path, published_network().state_dict() | extra, "module.")))
    assert lines == [
        "taken: encoder 56 tensors, decoder 50 tensors, classification head 9 tensors",
        "projection_head.*: 4 tensors, no such head here",
        "prototypes.*: 1 tensor, no such head here",
    ]


def test_a_state_dict_by_itself_among_other_values(tmp_path):
    theirs = published_network().state_dict()
    torch.save({"epoch": 3, 0: None, **theirs}, tmp_path / "bare.pth")
    released = read_released(str(tmp_path / "bare.pth"))
    assert_same(released.state, {ours: theirs[name] for name, ours in TENSORS.items()})
    assert released.unused == {}


def test_other_precisions_and_memory_formats_become_plain_float32(tmp_path):
    theirs = published_network().half().to(memory_format=torch.channels_last_3d).state_dict()
    theirs["clc_out.fc1.bias"] = torch.tensor(0.25, dtype=torch.float64).expand(NUM_CLASSES)
    released = read_released(save(tmp_path, theirs))
    expected = {TENSORS[name]: value.float() if value.is_floating_point() else value for name, value in theirs.items()}
    assert_same(released.state, expected)
    assert all(value.is_contiguous() for value in released.state.values())
    assert released.state["head.linear.bias"].untyped_storage().nbytes() == 4 * NUM_CLASSES


def test_an_encoder_alone(tmp_path):
    theirs = {name: value for name, value in published_network().state_dict().items() if name.startswith("down_")}
    released = read_released(save(tmp_path, theirs))
    assert released.state.keys() == {TENSORS[name] for name in theirs}
    assert released.missing == ["decoder", "classification head"] and released.unused == {}
    assert (released.num_classes, released.has_decoder) == (None, False)
    assert summary(released) == ["taken: encoder 56 tensors", "missing: decoder, classification head"]


def test_a_decoder_and_a_head_that_are_not_whole_are_left(tmp_path):
    theirs = published_network().state_dict()
    del theirs["up_tr128.ops.1.bn1.running_var"]
    theirs["clc_out.conv1.weight"] = torch.rand(8, 64, 3, 3, 3)
    theirs["down_tr64.ops.0.conv1.weight_g"] = torch.rand(4)
    released = read_released(save(tmp_path, theirs))
    assert released.missing == ["decoder", "classification head"]
    assert sorted(released.used) == sorted(name for name in TENSORS if name.startswith("down_"))
    assert released.state.keys() == {TENSORS[name] for name in released.used}
    assert released.unused.keys() == theirs.keys() - set(released.used)
    lacks = "the decoder is not whole: up_tr128.ops.1.bn1.running_var is missing"
    shape = "clc_out.conv1.weight has shape [8, 64, 3, 3, 3] where [128, 64, 3, 3, 3] fits the rest"
    assert summary(released)[2:] == [
        f"up_tr256.*: 16 tensors, {lacks}",
        f"up_tr128.*: 15 tensors, {lacks}",
        f"up_tr64.*: 16 tensors, {lacks}",
        f"out_tr.*: 2 tensors, {lacks}",
        f"clc_out.*: 9 tensors, the classification head is not whole: {shape}",
        "down_tr64.*: 1 tensor, no such tensor here",
    ]


# --- writing --------------------------------------------------------------------------------------


def test_their_code_loads_what_is_written(tmp_path):
    ours = our_network().state_dict()
    write_released(ours, tmp_path / "ours.pt")
    content = torch.load(tmp_path / "ours.pt", weights_only=True)
    theirs = PublishedUNet(BASE_WIDTH, NUM_CLASSES)
    theirs.load_state_dict(content["state_dict"], strict=True)
    assert_same(theirs.state_dict(), {name: ours[name_here] for name, name_here in TENSORS.items()})
    assert_same(read_released(tmp_path / "ours.pt").state, ours)
    assert [path.name for path in tmp_path.iterdir()] == ["ours.pt"]


def test_theirs_read_and_written_is_theirs_again_and_the_same_bytes_each_time(tmp_path):
    theirs = published_network().state_dict()
    released = read_released(save(tmp_path, theirs, "module."))
    for name in ("first.pt", "second.pt"):
        write_released(released.state, str(tmp_path / name))
        assert_same(torch.load(tmp_path / name, weights_only=True)["state_dict"], theirs)
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()


def test_an_encoder_alone_is_written_without_the_rest(tmp_path):
    encoder = {name: value for name, value in our_network().state_dict().items() if name.startswith("encoder.")}
    write_released(encoder, tmp_path / "encoder.pt")
    assert_same(read_released(tmp_path / "encoder.pt").state, encoder)


def test_batch_norms_without_running_statistics_are_written_with_those_of_new_ones(tmp_path):
    ours = our_network(norm="batch-statistics").state_dict()
    write_released(ours, tmp_path / "ours.pt")
    theirs = PublishedUNet(BASE_WIDTH, NUM_CLASSES)
    new = {name: value.clone() for name, value in theirs.state_dict().items()}
    theirs.load_state_dict(torch.load(tmp_path / "ours.pt", weights_only=True)["state_dict"], strict=True)
    assert_same(theirs.state_dict(), {name: ours.get(here, new[name]) for name, here in TENSORS.items()})
    assert sum(here not in ours for here in TENSORS.values()) == 3 * 15


def changed(**changes):
    """Our state with tensors replaced, or removed where the value is None; `__` stands for a dot."""
    state = our_network().state_dict() | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: changed(projector__0__weight=torch.rand(2)), "projector.0.weight has no place in the U-Net"),
        (lambda: changed(encoder__levels__4__0__bias=torch.rand(2)), "encoder.levels.4.0.bias has no place"),
        (lambda: changed(encoder__levels__2__3__bias=None), "encoder.levels.2.3.bias is missing"),
        (lambda: changed(decoder__output__bias=None), "decoder.output.bias is missing"),
        (lambda: changed(head__linear__bias=torch.rand(6)), "head.linear.bias has shape [6] where [5] fits the rest"),
        (lambda: our_network(ndim=2).state_dict(), "has shape [4, 1, 3, 3] where [4, 1, 3, 3, 3] fits the rest"),
        (dict, "encoder.levels.0.0.weight is missing"),
    ],
)
def test_the_state_of_another_network_is_not_written(tmp_path, make, sentence):
    with pytest.raises(WeightsError) as error:
        write_released(make(), tmp_path / "ours.pt")
    assert f"{tmp_path / 'ours.pt'} is not written: " in str(error.value) and sentence in str(error.value)
    assert list(tmp_path.iterdir()) == []


# --- files that are none --------------------------------------------------------------------------


def refused(path):
    with pytest.raises(WeightsError) as error:
        read_released(path)
    sentence = str(error.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 300 + len(str(path))
    return sentence


def test_a_file_that_is_not_there(tmp_path):
    assert "does not exist: give a .pt or .pth file" in refused(tmp_path / "nothing.pt")
    assert "does not exist" in refused(tmp_path)


NO_TORCH_FILES = [b"", b"PK\x03\x04 a zip", b"\xff" * 100, b'{"a": 1}', *(pickle.dumps({"a": 1}, i) for i in (2, 4))]


@pytest.mark.parametrize("content", NO_TORCH_FILES)
def test_a_file_that_is_no_torch_file(tmp_path, content, recwarn):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert "is not a torch file, or is damaged" in refused(path)
    assert not recwarn.list  # one sentence, and none of torch's


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_truncated_file_wherever_it_ends(tmp_path, zipped):
    path, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    torch.save({"state_dict": published_network().state_dict()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in (4, 100, 5000, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
        assert "is not a torch file, or is damaged" in refused(cut)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_pickled_code_is_refused_and_not_run(tmp_path, zipped):
    path, mark = tmp_path / "bomb.pt", tmp_path / "it-ran"
    content = {"state_dict": published_network().state_dict(), "optimizer": Bomb(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    sentence = refused(path)
    assert re.search(r"holds pickled objects other than tensors \(_?io.open\) and is not opened", sentence)
    assert "can run code" in sentence and "torch.save(model.state_dict(), file)" in sentence
    assert not mark.exists()
    torch.load(path, weights_only=False)["optimizer"].close()
    assert mark.exists()  # it would have run


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(published_network(), tmp_path / "module.pt")
    assert "other than tensors (tests.support.published.PublishedUNet)" in refused(tmp_path / "module.pt")


def test_files_of_other_things(tmp_path):
    path = tmp_path / "other.pt"
    torch.save([torch.rand(3)], path)
    assert "holds a list, not a state dict" in refused(path)
    torch.save({"model": {}, "epoch": 1}, path)
    told = refused(path)
    assert "holds no convolution of the U-Net of Models Genesis: the names in it begin with model, epoch" in told
    torch.save({"state_dict": {}}, path)
    assert "the names in it are none" in refused(path)
    resnet = {f"module.{name}.weight": torch.rand(2) for name in ("conv1", "bn1", "layer1.0.conv1", "fc")}
    assert "begin with conv1.weight, bn1.weight, layer1.0.conv1.weight" in refused(save(tmp_path, resnet))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("down_tr64.ops.0.conv1.weight", None, "is missing"),
        ("down_tr512.ops.1.bn1.running_var", None, "is missing"),
        ("down_tr256.ops.1.conv1.bias", "a word", "is missing"),
        ("down_tr64.ops.0.conv1.weight", torch.rand(4, 3, 3, 3, 3), "shape [4, 3, 3, 3, 3] where [4, 1, 3, 3, 3] fits"),
        ("down_tr64.ops.0.conv1.weight", torch.rand(4, 1, 3, 3), "shape [4, 1, 3, 3] where [4, 1, 3, 3, 3] fits"),
        ("down_tr64.ops.0.conv1.weight", torch.rand(0, 1, 3, 3, 3), "has shape [0, 1, 3, 3, 3]"),
        ("down_tr64.ops.0.conv1.weight", torch.tensor(1.0), "has shape []"),
        ("down_tr256.ops.0.conv1.weight", torch.rand(16, 9, 3, 3, 3), "where [16, 16, 3, 3, 3] fits the rest"),
        ("down_tr128.ops.1.bn1.weight", torch.ones(16, dtype=torch.int8), "is not a dense tensor of float32"),
        ("down_tr128.ops.1.bn1.weight", torch.ones(16).to_sparse(), "is not a dense tensor of float32"),
        ("down_tr128.ops.1.bn1.weight", torch.ones(16, device="meta"), "is not a dense tensor of float32"),
    ],
)
def test_an_encoder_that_is_not_whole(tmp_path, name, value, sentence):
    theirs = published_network().state_dict()
    theirs[name] = value
    if value is None:
        del theirs[name]
    told = refused(save(tmp_path, theirs, "module."))
    assert "does not hold a whole encoder: " + name in told and sentence in told


def test_a_tensor_of_more_numbers_than_are_stored(tmp_path):
    """A file of a few kilobytes whose network would take terabytes."""
    with torch.device("meta"):
        wide = PublishedUNet(base_width=2**13).state_dict()
    theirs = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in wide.items()}
    torch.save({"state_dict": theirs}, tmp_path / "bomb.pt")
    assert (tmp_path / "bomb.pt").stat().st_size < 2**16
    with pytest.raises(WeightsError, match=r"holds [0-9,]+ bytes of numbers for tensors of [0-9,]{16,} bytes"):
        parse_released(read_state_dict(tmp_path / "bomb.pt"), tmp_path / "bomb.pt")


def test_a_torch_file_that_unpacks_is_not_opened(tmp_path):
    """What torch writes is stored as it is."""
    torch.save({"a": torch.zeros(2**16)}, tmp_path / "plain.pt")
    bomb = zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, bomb as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(WeightsError, match="holds packed parts"):
        read_state_dict(tmp_path / "bomb.pt")


@pytest.mark.parametrize("name", ["down_tr256.ops.0.bn1.running_mean", "up_tr64.up_conv.bias", "clc_out.fc1.bias"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_not_finite(tmp_path, name, number):
    theirs = published_network().state_dict()
    theirs[name] = theirs[name].double()
    theirs[name][1] = number
    assert f"holds numbers that are not finite, in {name}" in refused(save(tmp_path, theirs))


def test_two_networks_in_one_file(tmp_path):
    theirs = published_network().state_dict()
    twice = {f"module.{name}": value for name, value in theirs.items()} | theirs
    assert "holds down_tr64.ops.0.conv1.weight twice" in refused(save(tmp_path, twice))


# --- parity: the same weights give the same outputs in their network and in ours ---------------------


@pytest.mark.parametrize("norm", ["batch", "batch-statistics"])
def test_outputs_are_those_of_the_published_network(tmp_path, norm):
    network = published_network()
    state = read_released(save(tmp_path, network.state_dict(), "module.classficationNet.")).state
    model = our_network(norm=norm).train(norm == "batch")  # theirs normalises by the batch in evaluation too
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    images = torch.rand(2, 1, 16, 24, 16)
    with torch.no_grad():
        restored, logits = network(images)
        prediction = model(images)
    torch.testing.assert_close(prediction.logits, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction.restored, restored, atol=1e-5, rtol=0)
    assert logits.std() > 1e-3 and restored.std() > 1e-3  # neither is a constant
