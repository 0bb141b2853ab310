"""What each verb announces: the work that is left, once, while the manifests that rates are learnt from are there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from raygenesis.archive.ingest import ingest
from raygenesis.archive.work import archive_size
from raygenesis.cluster.work import Announce, Work
from raygenesis.discovery import embed as embedding
from raygenesis.discovery.crop import crop
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.discovery.work import crop_work
from raygenesis.planning.pipeline import pipeline_work
from raygenesis.pretraining import pretrain as pretraining
from raygenesis.pretraining.pretrain import pretrain
from raygenesis.settings import Settings, merge, settings_from
from raygenesis.sweeps import sweep as sweeping
from raygenesis.sweeps.sweep import sweep
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest_files import MANIFEST, STARTED
from raygenesis.workspace.workspace import Workspace
from tests.support.nifti import add_scan, make_scans

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_SCANS = 6


def settings_of(**sections: Any) -> Settings:
    tree = {
        "archive": {"coarse_size": 8, "chunk": 8, "shard": 16},
        "autoencoder": {"input_shape": [16] * 3, "base_width": 2, "latent_size": 4, "num_epochs": 1},
        "embedding": {"volumes_per_part": 4},
        "discovery": {
            "num_references": 1, "num_coordinates": 2, "num_neighbours": 3, "num_validation_neighbours": 1,
            "cube_shape": [16] * 3, "scales": [{"extent_mm": [8] * 3}], "min_distance_mm": 1, "min_content": 0.1,
        },
        "pretraining": {
            "base_width": 2, "batch_size": 8, "num_classification_epochs": 1, "num_joint_epochs": 1, "trackers": [],
        },
    }  # fmt: skip
    return settings_from(merge(tree, sections))


SETTINGS = settings_of()
LONGER = settings_of(pretraining={"num_joint_epochs": 3})


class Stopped(Exception):
    """In place of work that would take long."""


def stop(*_: object, **__: object) -> NoReturn:
    raise Stopped


@dataclass
class Announced:
    """What a verb announces. folder: of its artifact, which must not have been claimed by then."""

    folder: Place
    calls: list[list[str]] = field(default_factory=list)

    def __call__(self, left: Sequence[Work]) -> None:
        is_claimed = (self.folder / STARTED).is_file() and not (self.folder / MANIFEST).is_file()
        assert not is_claimed
        self.calls.append([f"{work.stage}: {work.what}" for work in left])


def announced(folder: Place, verb: Callable[[Announce], object]) -> list[list[str]]:
    """The works of each call of `announce`, in words."""
    found = Announced(folder)
    verb(found)
    return found.calls


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scans(tmp_path_factory.mktemp("scans"), NUM_SCANS)


@pytest.fixture(scope="module")
def embedded(scans: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Workspace:
    """An archive and its embeddings."""
    workspace = Workspace.open(tmp_path_factory.mktemp("announcing"))
    ingest(scans, workspace, SETTINGS)
    embed(workspace, SETTINGS)
    return workspace


@pytest.fixture(scope="module")
def discovered(embedded: Workspace) -> Workspace:
    """The same workspace with a pattern store."""
    discover(embedded, SETTINGS)
    return embedded


@pytest.fixture
def grown(embedded: Workspace, scans: Path, tmp_path: Path) -> tuple[Path, Workspace]:
    """A copy of the folder of scans, with one more, and of the workspace that does not have that yet."""
    more = shutil.copytree(scans, tmp_path / "scans")  # with times of modification: the others stay known
    add_scan(more, NUM_SCANS)
    roots = ("archive", "autoencoder", "embeddings", "private")
    there = [name for name in roots if (embedded.root / name).exists()]
    for name in there:
        shutil.copytree(embedded.root / name, tmp_path / "workspace" / name)
    return more, Workspace.open(tmp_path / "workspace")


def test_ingest_announces_the_scans_that_it_does_not_know(scans: Path, grown: tuple[Path, Workspace]) -> None:
    more, workspace = grown
    again = partial(ingest, more, workspace, SETTINGS)
    assert announced(workspace.archive, lambda announce: again(announce=announce)) == [["ingest: 1 scans"]]
    assert announced(workspace.archive, lambda announce: again(announce=announce)) == []
    fresh = Workspace.open(workspace.root / "fresh")
    first = announced(fresh.archive, lambda announce: ingest(scans, fresh, SETTINGS, announce=announce))
    assert first == [[f"ingest: {NUM_SCANS} scans"]]


def test_embed_announces_the_volumes_that_lack_embeddings(grown: tuple[Path, Workspace]) -> None:
    more, workspace = grown
    again = partial(embed, workspace, SETTINGS)
    assert announced(workspace.embeddings, lambda announce: again(announce=announce)) == []
    ingest(more, workspace, SETTINGS)
    output = workspace.root / "elsewhere"
    assert announced(output, lambda announce: again(output, announce)) == []
    assert announced(workspace.embeddings, lambda announce: again(announce=announce)) == [["embed: 1 scans"]]


def test_embed_announces_the_auto_encoder_and_the_embedding_at_once(
    grown: tuple[Path, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, workspace = grown
    shutil.rmtree(workspace.autoencoder)
    shutil.rmtree(workspace.embeddings)
    monkeypatch.setattr(embedding, "ready_encoder", stop)
    found = Announced(workspace.embeddings)
    with pytest.raises(Stopped):
        embed(workspace, SETTINGS, announce=found)
    assert found.calls == [["auto-encoder: 5 scans × 1 epochs", f"embed: {NUM_SCANS} scans"]]


def test_discover_announces_the_patterns(discovered: Workspace, tmp_path: Path) -> None:
    verb = partial(discover, discovered, SETTINGS)
    assert announced(discovered.patterns, lambda announce: verb(announce)) == []
    shutil.move(discovered.patterns, tmp_path / "patterns")
    try:
        works = announced(discovered.patterns, lambda announce: verb(announce))
    finally:
        shutil.rmtree(discovered.patterns, ignore_errors=True)
        shutil.move(tmp_path / "patterns", discovered.patterns)
    assert works == [["discover: 8 patterns"]]  # neighbours are there


def test_crop_announces_what_the_plan_prices(embedded: Workspace) -> None:
    verb = partial(crop, embedded, SETTINGS)
    works = announced(embedded.crops, lambda announce: verb(announce))
    assert works == [["crop: 12 crops"]]  # of 5 training scans, and of one that is held out, two each
    assert announced(embedded.crops, lambda announce: verb(announce)) == []
    cropped = settings_of(pretraining={"pretext": "rotation"})
    stages = pipeline_work(archive_size(ARCHIVE.require(embedded.archive)), cropped)
    assert next(work for work in stages if work.stage == "crop") == crop_work(cropped.discovery, 5, 1)


def test_pretrain_announces_the_epochs_that_are_left(discovered: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, verb = discovered.run("default"), partial(pretrain, discovered)
    whole = announced(folder, lambda announce: verb(SETTINGS, announce=announce))
    assert whole == [["pretrain: 6 patterns × 2 epochs"]]
    assert announced(folder, lambda announce: verb(SETTINGS, announce=announce)) == []
    monkeypatch.setattr(pretraining, "fit_with_ray", stop)
    longer = Announced(folder)
    with pytest.raises(Stopped):
        verb(LONGER, extend=True, announce=longer)
    assert longer.calls == [["pretrain: 6 patterns × 2 epochs"]]  # the third and the fourth
    (folder / "metrics.parquet").write_bytes(b"damaged")
    damaged: list[str] = []  # and the run is claimed, as it is when it was interrupted
    with pytest.raises(Stopped):
        verb(LONGER, extend=True, announce=lambda left: damaged.extend(work.what for work in left))
    assert damaged == ["6 patterns × 4 epochs"]


def test_a_sweep_announces_its_trials(discovered: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "run_trials", stop)
    found = Announced(discovered.sweep("default"))
    with pytest.raises(Stopped):
        sweep(discovered, settings_of(sweep={"objective": "rankme"}), announce=found)
    ((works,),) = found.calls
    assert works.startswith("sweep: ")
