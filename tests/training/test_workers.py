"""What workers agree on, against torch's own batch norm over all samples; groups of real processes are in test_fit."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from raygenesis.training.workers import SynchronisedBatchNorm, sum_over_workers, synchronise


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A group of this process alone: collectives are real, and give back what they got."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


LAYERS = {
    "2D": (nn.BatchNorm2d(3), (4, 3, 5, 6)),
    "3D": (nn.BatchNorm3d(3, momentum=0.3), (2, 3, 4, 5, 6)),
    "no affine": (nn.BatchNorm3d(3, affine=False), (2, 3, 4, 5, 6)),
    "no running statistics": (nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 6)),
    "flat": (nn.BatchNorm1d(3), (8, 3)),
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", LAYERS)
def test_synchronised_batch_norm_is_torchs(name):
    plain, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = plain.double()
    if plain.affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    images = 100 + torch.randn(shape, dtype=torch.float64)
    like = {"momentum": plain.momentum, "affine": plain.affine, "track_running_stats": plain.track_running_stats}
    model = nn.Sequential(nn.Identity(), type(plain)(3, **like).double())
    model[1].load_state_dict(plain.state_dict())
    parameters = list(model.parameters())
    synchronised = synchronise(model, "cpu")
    assert isinstance(synchronised[1], SynchronisedBatchNorm)
    assert [id(p) for p in synchronised.parameters()] == [id(p) for p in parameters]
    assert synchronised.state_dict().keys() == {f"1.{key}" for key in plain.state_dict()}
    for _ in range(3):
        outcomes = []
        for layer in (plain, synchronised):
            seen = images.clone().requires_grad_()
            shown = layer.train()(seen)
            (shown.sin() * torch.arange(shown.numel()).view(shape)).sum().backward()
            outcomes.append((shown, seen.grad, *(p.grad for p in layer.parameters())))
        for expected, found in zip(*outcomes, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-6)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(synchronised.state_dict()[f"1.{key}"], value)
    torch.testing.assert_close(synchronised.eval()(images), plain.eval()(images))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_counted_in_single(dtype):
    images = (3 + torch.randn(8, 3, 16, 16)).to(dtype)
    layer = synchronise(nn.Sequential(nn.BatchNorm2d(3)), "cpu").train()
    shown = layer(images)
    assert shown.dtype == dtype and layer[0].running_mean.dtype == torch.float32
    expected = nn.BatchNorm2d(3).train()(images.float())
    assert (shown.float() - expected).abs().max() < 0.02
    torch.testing.assert_close(layer[0].running_mean, 0.1 * images.float().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_on_gpus_it_is_torchs_own_with_the_parameters_and_statistics_that_were_there():
    model = nn.Sequential(nn.Conv3d(1, 3, 3), nn.Sequential(nn.BatchNorm3d(3, eps=1e-3, momentum=0.3)))
    names = {name: value for name, value in [*model.named_parameters(), *model.named_buffers()]}
    norm = synchronise(model, "cuda")[1][0]
    assert isinstance(norm, nn.SyncBatchNorm) and (norm.eps, norm.momentum) == (1e-3, 0.3)
    now = {name: value for name, value in [*model.named_parameters(), *model.named_buffers()]}
    assert now.keys() == names.keys() and all(now[name] is names[name] for name in names)
    assert synchronise(model, "cuda")[1][0] is norm


def test_sums_keep_names_and_shapes():
    found = sum_over_workers({"b": torch.ones(2, 3), "a": torch.tensor(2.0)}, 1)
    assert found["a"].item() == 2 and found["b"].tolist() == [[1, 1, 1]] * 2
    assert {value.dtype for value in found.values()} == {torch.float64}
