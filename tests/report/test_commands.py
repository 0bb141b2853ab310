"""The commands that the page lists: each with the settings of what it makes, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygenesis.report.commands import Record, command_of
from raygenesis.workspace.artifacts import (
    AUTOENCODER,
    COMPONENTS,
    EMBEDDINGS,
    INDEX,
    PATTERNS,
    PCA_COMMAND,
    Artifact,
)
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest_files import Started
from raygenesis.workspace.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def begun(**settings: object) -> Started:
    return Started(settings=settings, inputs={})


def test_principal_components_beside_an_auto_encoder_change_no_command_of_it(workspace: Workspace) -> None:
    trained = begun(seed=1, autoencoder={"latent_size": 32})
    fitted = Started(settings={"seed": 2, "autoencoder": {"latent_size": 8}}, inputs={}, command=PCA_COMMAND)
    embedded = begun(embedding={"volumes_per_part": 5})
    records: dict[Place, Record] = {workspace.autoencoder: trained, workspace.embeddings: embedded}
    alone = [command_of(kind, workspace.folder(kind), records, workspace) for kind in (AUTOENCODER, EMBEDDINGS)]
    records[workspace.pca] = fitted
    for kind, command in zip((AUTOENCODER, EMBEDDINGS), alone, strict=True):
        assert command_of(kind, workspace.folder(kind), records, workspace) == command
        assert "seed=1" in command and "latent_size=32" in command and "volumes_per_part=5" in command
    own = command_of(COMPONENTS, workspace.pca, records, workspace)
    assert own.startswith("raygenesis embed --encoder pca --workspace ")
    assert "seed=2" in own and "latent_size=8" in own and "volumes_per_part" not in own


def test_embeddings_by_principal_components_take_the_settings_of_these(workspace: Workspace) -> None:
    records: dict[Place, Record] = {
        workspace.autoencoder: begun(seed=1, autoencoder={"latent_size": 32}),
        workspace.pca: Started(settings={"seed": 2, "autoencoder": {"latent_size": 8}}, inputs={}, command=PCA_COMMAND),
        workspace.embeddings: Started(settings={}, inputs={}, command=PCA_COMMAND),
    }
    commands = [command_of(kind, workspace.folder(kind), records, workspace) for kind in (COMPONENTS, EMBEDDINGS)]
    assert commands[0] == commands[1] and "seed=2" in commands[0] and "latent_size=8" in commands[0]


@pytest.mark.parametrize("kind", [INDEX, PATTERNS])
def test_index_and_patterns_are_made_by_one_command(workspace: Workspace, kind: Artifact) -> None:
    records: dict[Place, Record] = {
        workspace.index: begun(seed=3, index={"method": "auto", "m": 7}),
        workspace.patterns: begun(seed=3, discovery={"num_neighbours": 9}, method="exact"),
    }
    command = command_of(kind, workspace.folder(kind), records, workspace)
    assert "num_neighbours=9" in command and "index.method=exact" in command and "index.m=7" in command
