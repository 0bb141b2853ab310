"""One new scan is embedded and found as the archive's own scans are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import raygenesis
from raygenesis.archive.ingest import ingest
from raygenesis.discovery.embed import embed
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.native import save_network
from raygenesis.settings import load_settings
from raygenesis.workspace.workspace import Workspace
from tests.support.dicom_series import a_slice, write
from tests.support.nifti import write_nifti
from tests.support.stores import change_manifest

SETTINGS = ["autoencoder.input_shape=[16,16,16]", "autoencoder.latent_size=4", "embedding.encoder=pca",
            "archive.coarse_size=16", "archive.spacing_mm=[2,2,2]"]  # fmt: skip


def scan(seed: int) -> np.ndarray:
    """A bright ball in noise, of uneven sides."""
    generator = np.random.default_rng(seed)
    where = np.indices((45, 38, 40)) - generator.uniform(12, 28, (3, 1, 1, 1))
    ball = (where**2).sum(0) < generator.uniform(40, 160)
    return (generator.integers(0, 60, ball.shape) + 700 * ball).astype(np.int16)


@pytest.fixture(scope="module")
def workspace(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("retrieval")
    (root / "scans").mkdir()
    for number in range(12):
        write_nifti(root / "scans" / f"{number:02d}.nii.gz", scan(number))
    settings = load_settings("cpu-small", SETTINGS)
    place = Workspace.open(root / "workspace")
    ingest(root / "scans", place, settings)
    embed(place, settings)
    return root / "workspace"


def stored(embeddings: Path) -> dict[str, np.ndarray]:
    rows = pq.read_table(*embeddings.glob("part-*.parquet")).to_pylist()
    return {row["volume_id"]: np.array(row["embedding"], np.float32) for row in rows}


def test_a_scan_of_the_archive_has_the_embedding_that_embed_stored(workspace: Path) -> None:
    vectors = stored(workspace / "embeddings")
    sources = pq.read_table(workspace / "private" / "sources.parquet").to_pylist()
    for row in sources[:4]:
        (volume_id,) = row["volume_ids"]
        found = raygenesis.embed_scan(workspace.parent / "scans" / row["path"], workspace)
        np.testing.assert_allclose(found, vectors[volume_id], rtol=1e-5, atol=1e-6)


def test_the_nearest_scans_are_those_of_least_distance(workspace: Path, tmp_path: Path) -> None:
    new = write_nifti(tmp_path / "new.nii.gz", scan(99))
    query = raygenesis.embed_scan(new, workspace)
    distances = {
        name: float(np.linalg.norm(vector - query)) for name, vector in stored(workspace / "embeddings").items()
    }
    found = raygenesis.similar_scans(new, workspace, k=5)
    assert [each.volume_id for each in found] == sorted(distances, key=distances.__getitem__)[:5]
    np.testing.assert_allclose([each.distance for each in found], sorted(distances.values())[:5], rtol=1e-4)
    assert len(raygenesis.similar_scans(new, workspace, k=99)) == 12


def test_a_run_s_encoder_is_known_by_its_bytes(workspace: Path, tmp_path: Path) -> None:
    copy = Workspace(shutil.copytree(workspace, tmp_path / "copy"))
    for name, width in (("another", 2), ("default", 3)):
        copy.run(name).mkdir(parents=True)
        save_network(PretextNetwork(Architecture(ndim=3, base_width=width)), copy.run(name), {})
    encoder = f"embedding.encoder={copy.run('default')}"
    embed(copy, load_settings("cpu-small", [*SETTINGS, encoder]), tmp_path / "embeddings")
    vectors = stored(tmp_path / "embeddings")
    new = workspace.parent / "scans" / "03.nii.gz"
    query = raygenesis.embed_scan(new, copy.root, tmp_path / "embeddings")
    (nearest,) = raygenesis.similar_scans(new, copy.root, k=1, embeddings=tmp_path / "embeddings")
    np.testing.assert_allclose(query, vectors[nearest.volume_id], rtol=1e-4, atol=1e-5)
    (copy.run("default") / "encoder.safetensors").unlink()
    with pytest.raises(WorkspaceError, match="is not in"):
        raygenesis.embed_scan(new, copy.root, tmp_path / "embeddings")


def test_embeddings_of_another_state_of_the_archive_are_refused(workspace: Path, tmp_path: Path) -> None:
    """They may be of scans that were prepared otherwise: distances between two preparations mean nothing."""
    copy, new = shutil.copytree(workspace, tmp_path / "copy"), write_nifti(tmp_path / "new.nii.gz", scan(99))
    change_manifest(copy / "archive", lambda tree: tree.update(fingerprint="made again with other spacing"))
    for folder in (copy / "embeddings", shutil.copytree(copy / "embeddings", tmp_path / "own")):
        with pytest.raises(WorkspaceError, match=rf"{folder} is of another state of {copy}/archive: run"):
            raygenesis.embed_scan(new, copy, folder)
    with pytest.raises(WorkspaceError, match=f"{copy}/embeddings is of another state"):
        raygenesis.similar_scans(new, copy)


def test_a_folder_is_one_series(workspace: Path, tmp_path: Path) -> None:
    voxels = scan(5)
    (tmp_path / "series").mkdir()
    for number, plane in enumerate(voxels):
        write(tmp_path / "series" / f"{number}.dcm", a_slice(plane.astype(np.uint16), number))
    assert raygenesis.embed_scan(tmp_path / "series", workspace).shape == (4,)
    write_nifti(tmp_path / "series" / "other.nii.gz", voxels)
    with pytest.raises(ScanError, match="holds 2 scans"):
        raygenesis.embed_scan(tmp_path / "series", workspace)


def test_what_cannot_be_embedded_is_refused_in_words(workspace: Path, tmp_path: Path) -> None:
    new = write_nifti(tmp_path / "new.nii.gz", scan(99))
    with pytest.raises(ScanError, match="does not exist"):
        raygenesis.embed_scan(tmp_path / "nowhere.nii.gz", workspace)
    (tmp_path / "torn.nii.gz").write_bytes(new.read_bytes()[:100])
    series = np.stack([scan(99), scan(98)], -1)
    wrong = {
        write_nifti(tmp_path / "flat.nii", scan(99)[:, :, 0]): "archive.spacing_mm has 3 numbers and the scan 2",
        write_nifti(tmp_path / "series.nii", series): "",
        tmp_path / "torn.nii.gz": "",
    }
    for path, reason in wrong.items():
        with pytest.raises(ScanError, match=f"^{path}: {reason}"):
            raygenesis.embed_scan(path, workspace)
    copy = shutil.copytree(workspace, tmp_path / "copy")
    shutil.rmtree(copy / "pca")
    with pytest.raises(WorkspaceError, match=r"is not in .*run `raygenesis embed` again"):
        raygenesis.embed_scan(new, copy)
    shutil.rmtree(copy / "embeddings")
    with pytest.raises(WorkspaceError, match="run `raygenesis embed` first"):
        raygenesis.similar_scans(new, copy)
