"""One setting, input byte, weight or format is changed at a time: what depends on it is made anew, and nothing else.

The table DEPENDS is the oracle. Stages run in this process, on a dozen small scans.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from raygenesis.archive.ingest import ingest
from raygenesis.archive.store import volume_folder
from raygenesis.discovery.crop import crop
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.errors import WorkspaceError
from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.weights.scan_encoders import save_scan_encoder
from raygenesis.settings import Settings, settings_from
from raygenesis.workspace import artifacts
from raygenesis.workspace.artifacts import (
    ARCHIVE,
    AUTOENCODER,
    CROPS,
    EMBEDDINGS,
    INDEX,
    NEIGHBOURS,
    PATTERNS,
    RUNS,
    Artifact,
)
from raygenesis.workspace.manifest import AutoencoderCounts, AutoencoderManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace
from tests.support.inline import run_inline

NUM_SCANS, SIDE = 12, 24
STAGES = (ARCHIVE, EMBEDDINGS, INDEX, NEIGHBOURS, PATTERNS, CROPS)
DISCOVERED = {"index", "neighbours", "patterns"}
EMBEDDED = {"embeddings", *DISCOVERED}
ALL = {"archive", "crops", *EMBEDDED}

# What is changed → the artifacts that depend on it.
DEPENDS: dict[str, set[str]] = {
    "nothing": set(),
    "archive.spacing_mm": ALL,
    "archive.crop_to_body": ALL,
    "archive.coarse_size": ALL,
    "intensity.window": ALL - {"archive"},
    "embedding.volumes_per_part": EMBEDDED,
    "index.m": DISCOVERED,
    "discovery.num_coordinates": {"patterns"},
    "discovery.num_crops": {"crops"},
    "validation_fraction": {"patterns", "crops"},
    "one byte of a scan": ALL,
    "one weight of the encoder": EMBEDDED,
}

CHANGES: dict[str, dict[str, Any]] = {
    "archive.spacing_mm": {"archive": {"spacing_mm": [1.5, 1.5, 1.5]}},
    "archive.crop_to_body": {"archive": {"crop_to_body": True}},
    "archive.coarse_size": {"archive": {"coarse_size": 8}},
    "intensity.window": {"intensity": {"window": [-100.0, 900.0]}},
    "embedding.volumes_per_part": {"embedding": {"volumes_per_part": 5}},
    "index.m": {"index": {"m": 9}},
    "discovery.num_coordinates": {"discovery": {"num_coordinates": 3}},
    "discovery.num_crops": {"discovery": {"num_crops": 3}},
    "validation_fraction": {"validation_fraction": 0.4},
}


@pytest.fixture(scope="module", autouse=True)
def inline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        run_inline(patch)
        yield


def settings(changes: dict[str, Any], weights: Path) -> Settings:
    tree: dict[str, Any] = {
        "archive": {"coarse_size": 16, "chunk": 16, "shard": 32},
        "embedding": {"encoder": str(weights), "volumes_per_part": 4},
        "autoencoder": {"input_shape": [16] * 3},
        "index": {"method": "hnsw", "num_neighbours": 4},
        "discovery": {
            "num_references": 2, "num_coordinates": 2, "num_neighbours": 3, "num_validation_neighbours": 1,
            "num_crops": 2, "cube_shape": [8] * 3, "scales": [{"extent_mm": [8] * 3}], "min_content": 0.0,
            "correspondence": "physical",
        },
        "validation_fraction": 0.25,
    }  # fmt: skip
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    return settings_from(tree)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright structures in air, of each scan its own."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(NUM_SCANS):
        draws = np.random.default_rng(number)
        tissue = ndimage.gaussian_filter(draws.standard_normal((SIDE,) * 3), 2)
        image = nibabel.Nifti1Image((900 * tissue / np.abs(tissue).max()).astype(np.int16), np.eye(4))
        nibabel.save(image, folder / f"sub-{number:02d}.nii")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "encoder.safetensors")


def write_weights(path: Path, change: float = 0.0) -> Path:
    torch.manual_seed(0)
    architecture = {"input_shape": [16] * 3, "base_width": 2, "latent_size": 4}
    state = Autoencoder(**architecture).state_dict()
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[0] += change
    save_scan_encoder(path, "autoencoder", state, architecture)
    return path


def made(workspace: Workspace, scans: Path, chosen: Settings) -> dict[str, str]:
    """Fingerprints of all artifacts, made where they are not there."""
    ingest(scans, workspace, chosen)
    embed(workspace, chosen)
    discover(workspace, chosen)
    crop(workspace, chosen)
    return {artifact.name: artifact.require(workspace.folder(artifact)).fingerprint for artifact in STAGES}


@pytest.fixture(scope="module")
def whole(scans: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, str]]:
    workspace = Workspace.open(tmp_path_factory.mktemp("whole"))
    return workspace, made(workspace, scans, settings({}, weights))


@pytest.mark.parametrize("change", DEPENDS)
def test_what_depends_on_a_change_is_another_and_what_does_not_is_the_same(
    change: str, whole: tuple[Workspace, dict[str, str]], scans: Path, weights: Path, tmp_path: Path
) -> None:
    if change == "one byte of a scan":
        scans = Path(shutil.copytree(scans, tmp_path / "scans"))
        path = scans / "sub-03.nii"
        content = bytearray(path.read_bytes())
        content[-5000] ^= 8
        path.write_bytes(content)
    if change == "one weight of the encoder":
        weights = write_weights(tmp_path / "encoder.safetensors", change=0.5)
    chosen = settings(CHANGES.get(change, {}), weights)
    found = made(Workspace.open(tmp_path / "workspace"), scans, chosen)
    before = whole[1]
    assert {name for name in before if found[name] != before[name]} == DEPENDS[change]


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "started.json")
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_nothing_is_done_where_nothing_has_changed(whole, scans, weights, capsys) -> None:
    workspace, fingerprints = whole
    before = files(workspace.root)
    capsys.readouterr()
    assert made(workspace, scans, settings({}, weights)) == fingerprints
    assert files(workspace.root) == before and capsys.readouterr().out.count("nothing to do") == 4


def test_an_archive_made_anew_with_other_settings_has_its_own_vectors(whole, scans, weights, tmp_path) -> None:
    """As is advised: the archive is removed, and ingested again."""
    workspace = Workspace(Path(shutil.copytree(whole[0].root, tmp_path / "workspace")))
    chosen = settings(CHANGES["archive.spacing_mm"], weights)
    with pytest.raises(WorkspaceError, match=r"archive\.spacing_mm was None and is now \[1\.5, 1\.5, 1\.5\]"):
        ingest(scans, workspace, chosen)
    shutil.rmtree(workspace.archive)
    ingest(scans, workspace, chosen)
    with pytest.raises(WorkspaceError, match=r"of another state of .*: run `raygenesis embed`"):
        discover(workspace, chosen)
    embed(workspace, chosen)
    with pytest.raises(WorkspaceError, match="patterns was not made from the present embeddings and archive"):
        discover(workspace, chosen)
    for folder in (workspace.patterns, workspace.crops):
        shutil.rmtree(folder)
    found = made(workspace, scans, chosen)
    anew = Workspace.open(tmp_path / "anew")
    assert found == made(anew, scans, chosen)
    assert files(workspace.embeddings).keys() == files(anew.embeddings).keys()


def test_one_volume_that_changed_costs_its_own_part_and_what_follows(whole, scans, weights, tmp_path) -> None:
    workspace = Workspace(Path(shutil.copytree(whole[0].root, tmp_path / "workspace")))
    other = Path(shutil.copytree(scans, tmp_path / "scans"))
    before = files(workspace.embeddings)
    image = nibabel.load(scans / "sub-03.nii")
    voxels = np.asarray(image.dataobj)[::-1].copy()
    (other / "sub-03.nii").unlink()
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), other / "sub-03.nii")
    chosen = settings({}, weights)
    ingest(other, workspace, chosen)
    embed(workspace, chosen)
    after = files(workspace.embeddings)
    kept = {name for name in before if name.startswith("part-") and after[name] == before[name]}
    assert len(kept) == 3 and len([name for name in after if name.startswith("part-")]) == 4
    assert len(list(workspace.volumes.iterdir())) == NUM_SCANS
    assert volume_folder(workspace.volumes, "0" * 32).parent == workspace.volumes


@pytest.mark.parametrize("artifact", [ARCHIVE, AUTOENCODER, RUNS], ids=lambda artifact: artifact.name)
def test_another_format_is_refused_and_has_another_fingerprint(artifact: Artifact[Any], tmp_path: Path) -> None:
    later = replace(artifact, format=artifact.format + 1)
    stages = [Stage(each, tmp_path / "artifact", {"seed": 0}, {}) for each in (artifact, later)]
    assert stages[0].fingerprint() != stages[1].fingerprint()
    with stages[0].claimed():
        pass
    with pytest.raises(
        WorkspaceError, match=f"in format {artifact.format} where this one writes {artifact.format + 1}"
    ):
        stages[1].finished()


def test_the_bytes_that_were_made_are_part_of_a_fingerprint(tmp_path: Path) -> None:
    """Another machine, or another version of torch, trains other weights with the same settings."""
    manifest = AutoencoderManifest(counts=AutoencoderCounts(training=1, validation=1, epochs=1), val_mse=0.1)
    found = []
    for number, change in enumerate((0.0, 0.0, 0.5)):
        stage = Stage(AUTOENCODER, tmp_path / str(number), {"seed": 0}, {"archive": "a"})
        with stage.claimed():
            write_weights(stage.folder / "autoencoder.safetensors", change)
            found.append(stage.finish(manifest).fingerprint)
    assert found[0] == found[1] != found[2]


def test_a_training_belongs_to_one_state_of_the_archive(tmp_path: Path) -> None:
    folder, growing = tmp_path / "autoencoder", frozenset({"archive"})
    then, now = (Stage(AUTOENCODER, folder, {"seed": 0}, {"archive": each}, growing=growing) for each in "ab")
    with then.claimed():
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step-1.pt").write_text("learnt from another split")
    assert not then.begins_anew() and now.begins_anew() and now.finished() is None
    with then.claimed():
        assert (folder / "checkpoints" / "step-1.pt").is_file()  # the same state: it goes on
    with now.claimed():
        assert [path.name for path in folder.iterdir()] == ["started.json"] and not now.begins_anew()
        counts = AutoencoderCounts(training=1, validation=1, epochs=1)
        manifest = now.finish(AutoencoderManifest(counts=counts, val_mse=0.1))
    assert then.finished() == now.finished() and manifest.inputs == {"archive": "b"}  # what is whole stays


def test_every_artifact_that_others_are_made_from_is_known_by_its_bytes() -> None:
    """The archive by its volumes, and the index by the embeddings that it follows from."""
    used = {name for artifact in artifacts.ARTIFACTS for name in artifact.inputs}
    without = {artifact.name for artifact in artifacts.ARTIFACTS if artifact.name in used and not artifact.identifying}
    assert without == {"archive", "index", "transfer"}
