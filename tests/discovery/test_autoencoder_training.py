"""The auto-encoder: everything passes through the latent vector, and identity is what it learns."""

import pytest
import torch

from raygenesis.discovery.autoencoder_training import IdentityMapping
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.settings import AutoencoderSettings
from raygenesis.training.feeding import Batch
from raygenesis.training.loop import run_epochs
from tests.support.synthetic import pattern_table, samples

SHAPES = [(64, 64, 64), (32, 32, 32), (8, 8, 8), (16, 64, 64), (24, 48, 40), (128, 128), (8, 64)]
SMALL = AutoencoderSettings(input_shape=(16, 16, 16), base_width=4, latent_size=8, batch_size=4, num_epochs=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_scan_becomes_a_vector_and_a_scan_of_the_same_shape_again(shape):
    model = Autoencoder(shape, base_width=2, latent_size=5)
    scans = torch.rand(2, 1, *shape)
    assert model.encode(scans).shape == (2, 5)
    restored = model(scans)
    assert restored.shape == scans.shape
    assert restored.min() >= 0 and restored.max() <= 1


@pytest.mark.parametrize("shape", [(64, 64, 64), (32, 32, 32), (128, 128)])
def test_the_bottom_is_eight_voxels_wide(shape):
    model = Autoencoder(shape, base_width=2, latent_size=5)
    assert model.down(torch.rand(1, 1, *shape)).shape[2:] == (8,) * len(shape)


def test_nothing_bypasses_the_latent_vector():
    model = Autoencoder((16, 16, 16), base_width=2, latent_size=5).eval()
    model.to_latent.register_forward_hook(lambda *_: torch.ones(2, 5))
    one, other = model(torch.rand(2, 1, 16, 16, 16))
    torch.testing.assert_close(one, other)


def test_the_seed_decides_the_weights_and_leaves_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    same, again = (IdentityMapping(SMALL, seed=3).build().state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(same[name], again[name]) for name in same)
    other = IdentityMapping(SMALL, seed=4).build().state_dict()
    assert not torch.equal(other["to_latent.weight"], same["to_latent.weight"])


def test_loss_and_error_are_the_mean_squared_difference():
    experiment = IdentityMapping(SMALL, seed=0)
    model = experiment.build().eval()
    batch = Batch(torch.rand(4, 1, 16, 16, 16), {})
    with torch.no_grad():
        expected = ((model(batch.cubes) - batch.cubes) ** 2).mean()
        assert torch.allclose(experiment.losses(model, batch, 0)["loss"], expected)
        evaluated = experiment.evaluate(model, batch)
    assert torch.allclose(evaluated["mse"] / evaluated["count"], expected)
    assert evaluated["count"] == 4


def test_training_lowers_the_error_on_scans_held_out():
    longer = SMALL.model_copy(update={"num_epochs": 8, "learning_rate": 1e-2})
    experiment = IdentityMapping(longer, seed=0, sample_key="pattern_id")
    train = samples(pattern_table(16, (16, 16, 16)), (16, 16, 16))
    held_out = samples(pattern_table(8, (16, 16, 16), first=100), (16, 16, 16))
    history = run_epochs(experiment, train, held_out).history
    assert [row["epoch"] for row in history] == list(range(8))
    assert history[-1]["val_mse"] < 0.75 * history[0]["val_mse"]


def test_stops_when_the_error_has_not_fallen_for_the_patience():
    experiment = IdentityMapping(SMALL.model_copy(update={"patience": 2}), seed=0)
    rows = [{"val_mse": error} for error in (3.0, 1.0, 2.0, 1.5)]
    assert not experiment.should_stop([])
    assert [experiment.should_stop(rows[:n]) for n in (1, 2, 3, 4)] == [False, False, False, True]
