"""What describes a whole scan: saved and opened again, principal components as scikit-learn's, and real heads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import ndimage
from sklearn.decomposition import PCA

from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.geometry import axis_weights, resample
from raygenesis.archive.intensity import normalise, percentiles
from raygenesis.discovery.autoencoder_training import IdentityMapping
from raygenesis.discovery.principal_components import fit_components
from raygenesis.errors import WeightsError, WorkspaceError
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.scan_encoders import PretrainedScanEncoder, restore
from raygenesis.networks.weights.scan_encoders import load_scan_encoder, save_scan_encoder
from raygenesis.patterns.cells import encode
from raygenesis.settings import AutoencoderSettings
from raygenesis.training.feeding import Samples
from raygenesis.training.loop import run_epochs
from tests.support.data import HEADS, needs_heads

SHAPE = (8, 8, 8)


def samples(scans: NDArray[np.float32]) -> Samples:
    cells = pa.array([encode(scan) for scan in scans], pa.binary())
    return Samples([pa.table({"number": np.arange(len(scans)), "cube": cells})], "number", scans.shape[1:])


def random_scans(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, *shape), np.float32)


def embedded(model: torch.nn.Module, scans: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return model.encode(torch.from_numpy(scans)[:, None]).numpy()


def decoded(table: Samples) -> NDArray[np.float32]:
    """The scans as their cells keep them."""
    return table.batch(np.arange(len(table))).cubes[:, 0].numpy()


# --- principal components -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 8)])
def test_principal_components_are_scikit_learns_up_to_their_sign(shape):
    table = samples(random_scans(30, shape=shape))
    scans = decoded(table)
    model = fit_components(table, 6)
    theirs = PCA(6, svd_solver="full").fit(scans.reshape(30, -1).astype(np.float64))
    signs = np.sign((model.components.numpy() * theirs.components_).sum(1))
    np.testing.assert_allclose(model.components, signs[:, None] * theirs.components_, atol=1e-4)
    others = random_scans(5, seed=1, shape=shape)
    expected = theirs.transform(others.reshape(5, -1)) * signs
    np.testing.assert_allclose(embedded(model, others), expected, atol=1e-3)
    back = theirs.inverse_transform(theirs.transform(others.reshape(5, -1)))
    np.testing.assert_allclose(restore(model, others[0]), back[0].reshape(shape), atol=1e-3)


def test_the_largest_number_of_a_component_is_positive_whatever_the_order_of_the_scans():
    scans = random_scans(20)
    model, turned = (fit_components(samples(some), 5) for some in (scans, scans[::-1].copy()))
    components = model.components.numpy()
    assert (components[np.arange(5), np.abs(components).argmax(1)] > 0).all()
    np.testing.assert_allclose(turned.components, components, atol=1e-4)


def test_fewer_scans_than_components_give_as_many_as_there_are_directions():
    """Of a scan that is there twice no direction is made up: rounding alone would decide where it points."""
    scans = random_scans(6)
    table = samples(scans)
    model = fit_components(table, 64)
    assert model.latent_size == 5 and embedded(model, scans).shape == (6, 5)
    for scan in decoded(table):  # five directions hold six scans
        np.testing.assert_allclose(restore(model, scan), scan, atol=1e-4)
    twice = fit_components(samples(np.concatenate([scans, scans])), 64)
    assert twice.latent_size == 5
    np.testing.assert_allclose(twice.components @ twice.components.T, np.eye(5), atol=1e-4)


def test_scans_that_do_not_differ_are_refused():
    with pytest.raises(WorkspaceError, match="the 4 training scans do not differ"):
        fit_components(samples(np.repeat(random_scans(1), 4, 0)), 3)


# --- saved and opened -----------------------------------------------------------------------------


def a_model(kind: str) -> tuple[torch.nn.Module, dict]:
    torch.manual_seed(0)
    if kind == "autoencoder":
        architecture = {"input_shape": [16, 16, 16], "base_width": 2, "latent_size": 5}
        return Autoencoder(**architecture).eval(), architecture
    model = fit_components(samples(random_scans(12)), 4)
    return model, {"input_shape": list(model.input_shape), "latent_size": model.latent_size}


@pytest.mark.parametrize("kind", ["autoencoder", "pca"])
def test_what_is_saved_encodes_the_same_when_it_is_opened(tmp_path, kind):
    model, architecture = a_model(kind)
    for name in ("one", "other"):
        save_scan_encoder(tmp_path / name, kind, model.state_dict(), architecture)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    opened = load_scan_encoder(tmp_path / "one")
    assert type(opened) is type(model) and not opened.training and opened.input_shape == model.input_shape
    scans = random_scans(3, shape=tuple(model.input_shape))
    np.testing.assert_array_equal(embedded(opened, scans), embedded(model, scans))
    np.testing.assert_array_equal(restore(opened, scans[0]), restore(model, scans[0]))


def a_run(folder: Path, ndim: int = 3) -> Path:
    from raygenesis.networks.architecture import Architecture
    from raygenesis.networks.network import PretextNetwork
    from raygenesis.networks.weights.native import save_network

    torch.manual_seed(1)
    folder.mkdir()
    save_network(PretextNetwork(Architecture(ndim=ndim, base_width=2)).eval(), folder, {})
    return folder


def test_a_pretraining_runs_encoder_sees_the_whole_scan_as_one_image(tmp_path):
    import raygenesis

    run = a_run(tmp_path / "run")
    for path in (run, run / "encoder.safetensors"):
        opened = load_scan_encoder(path, [16, 16, 16])
        assert isinstance(opened, PretrainedScanEncoder) and opened.input_shape == (16, 16, 16) and not opened.training
        scans = random_scans(2, shape=(16, 16, 16))
        with torch.inference_mode():
            expected = raygenesis.load_encoder(run).embed(torch.from_numpy(scans)[:, None]).numpy()
        np.testing.assert_array_equal(embedded(opened, scans), expected)


def test_an_encoder_opens_without_ray(tmp_path):
    model, architecture = a_model("pca")
    save_scan_encoder(tmp_path / "pca.safetensors", "pca", model.state_dict(), architecture)
    script = (
        "import sys\nfrom raygenesis.networks.weights.scan_encoders import load_scan_encoder\n"
        f"print(load_scan_encoder({str(tmp_path / 'pca.safetensors')!r}).latent_size, 'ray' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4 False"


def test_what_is_no_encoder_of_ours_is_one_sentence(tmp_path):
    model, architecture = a_model("pca")
    file = tmp_path / "pca.safetensors"
    save_scan_encoder(file, "pca", model.state_dict(), architecture)
    with safe_open(file, "pt") as opened:
        described = opened.metadata()
    save_file({"mean": load_file(file)["mean"]}, tmp_path / "incomplete", described)
    larger = json.loads(described["raygenesis"]) | {"architecture": {**architecture, "latent_size": 9}}
    save_file(load_file(file), tmp_path / "larger", {"raygenesis": json.dumps(larger)})
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    for name, changed in (("bomb", {"latent_size": 10**10}), ("unlike", {"latent_size": -1})):
        changed = json.loads(described["raygenesis"]) | {"architecture": {**architecture, **changed}}
        save_file(load_file(file), tmp_path / name, {"raygenesis": json.dumps(changed)})
    (tmp_path / "text").write_text("no weights")
    (tmp_path / "short").write_bytes(file.read_bytes()[:-5])
    flat = a_run(tmp_path / "flat", ndim=2)
    for path, words in (
        (tmp_path / "nowhere", "nowhere/encoder.safetensors does not exist: give the file of an encoder, or"),
        (tmp_path, "does not exist"),
        (tmp_path / "text", "is not a safetensors file, or is damaged"),
        (tmp_path / "short", "is not a safetensors file, or is damaged"),
        (tmp_path / "incomplete", "does not match its own description"),
        (tmp_path / "larger", "does not match its own description"),
        (tmp_path / "bomb", "does not match its own description"),
        (tmp_path / "unlike", "does not describe its encoder"),
        (tmp_path / "foreign", "was not written by raygenesis"),
        (flat, "takes 2D images, and the scans are 3D"),
    ):
        with pytest.raises(WeightsError, match=words) as refused:
            load_scan_encoder(path, (16, 16, 16))
        assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


# --- real heads -----------------------------------------------------------------------------------

NUM_TRAINING, NUM_HELD_OUT = 24, 4
FINE, COARSE, HEAD_MM = 64, 32, (240, 240, 180)


def head(path: Path) -> NDArray[np.float32]:
    """A real head on 64 voxels a side, normalised as ingest does."""
    (volume,) = read_scan([path])
    assert np.array(volume.shape) * volume.spacing_mm == pytest.approx(HEAD_MM, abs=3)
    weights = [axis_weights(side, FINE, 0, side)[1] for side in volume.shape]
    return resample(normalise(volume.voxels, *percentiles(volume.voxels)), weights)


def halved(scan: NDArray[np.float32]) -> NDArray[np.float32]:
    return scan.reshape(COARSE, 2, COARSE, 2, COARSE, 2).mean((1, 3, 5))


def deformed(scan: NDArray[np.float32], source_of: Callable[[NDArray], NDArray]) -> NDArray[np.float32]:
    """The scan whose voxel at p shows what lies at source_of(p); both [3, ...], in mm from the centre."""
    step = np.array(HEAD_MM).reshape(3, 1, 1, 1) / FINE
    places = (np.indices(scan.shape) + 0.5 - FINE / 2) * step
    return ndimage.map_coordinates(scan, source_of(places) / step + FINE / 2 - 0.5, order=1, mode="nearest")


def growing_deformations() -> dict[str, list[Callable[[NDArray], NDArray]]]:
    """Each kind three times, more each time."""
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((3, FINE, FINE, FINE)), (0, 8, 8, 8))
    field /= np.linalg.norm(field, axis=0).max()
    back = np.array([0, 1, 0]).reshape(3, 1, 1, 1)
    return {
        "scaled": [lambda mm, by=by: mm / (1 + by) for by in (0.03, 0.06, 0.12)],
        "shifted": [lambda mm, by=by: mm - by * back for by in (4, 8, 16)],
        "warped": [lambda mm, by=by: mm + by * field for by in (4, 8, 16)],
    }


@pytest.fixture(scope="module")
def heads() -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Coarse training heads, and held-out ones in full."""
    read = [head(path) for path in sorted(HEADS.glob("*.nii.gz"))[: NUM_TRAINING + NUM_HELD_OUT]]
    return np.stack([halved(scan) for scan in read[:NUM_TRAINING]]), read[NUM_TRAINING:]


@needs_heads
@pytest.mark.parametrize("kind", ["autoencoder", "pca"])
def test_latent_distances_order_known_deformations_of_a_real_head(heads, kind):
    """A head held out lies the farther from its copy the more this is scaled, shifted or warped."""
    training, held_out = heads
    if kind == "pca":
        model = fit_components(samples(training), 16)
    else:
        chosen = AutoencoderSettings(
            input_shape=(COARSE,) * 3, base_width=4, latent_size=32, num_epochs=10, batch_size=4, learning_rate=3e-3
        )
        experiment = IdentityMapping(chosen, seed=0)
        held = samples(np.stack([halved(scan) for scan in held_out]))
        model = run_epochs(experiment, samples(training), held).model.eval()
    for name, deformations in growing_deformations().items():
        for scan in held_out:
            copies = [scan, *(deformed(scan, source_of) for source_of in deformations)]
            latent = embedded(model, np.stack([halved(copy) for copy in copies]))
            distances = np.linalg.norm(latent[1:] - latent[0], axis=1)
            print(kind, name, distances.round(2))
            assert (np.diff(distances, prepend=0) > 0).all(), (name, distances)
