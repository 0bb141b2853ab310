"""On a population whose anatomy is known: the same coordinate is nearer to true correspondence among neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raygenesis.archive.catalogue import read_catalogue, split_by_subject
from raygenesis.archive.ingest import ingest
from raygenesis.config import load_settings
from raygenesis.demo.population import anatomy, write_population
from raygenesis.discovery.coordinates import corresponding
from raygenesis.discovery.crop import place, size_mm
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.patterns.reader import read_patterns
from raygenesis.workspace import Workspace

NUM_SUBJECTS, SEED = 40, 3
SETTINGS = load_settings(
    "cpu-small",
    [
        "archive.keep_ids=true",
        "autoencoder.num_epochs=15",
        "discovery.num_references=4",
        "discovery.num_coordinates=4",
        "discovery.num_neighbours=8",
        "discovery.num_validation_neighbours=2",
    ],
)


@pytest.fixture(scope="module")
def workspace(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    pytest.importorskip("nilearn", reason="the population is made from nilearn's template")
    root = tmp_path_factory.mktemp("population")
    write_population(root, NUM_SUBJECTS, SEED)
    made = Workspace.open(root / "workspace")
    ingest(root / "scans", made, SETTINGS)
    embed(made, SETTINGS)
    discover(made, SETTINGS)
    return made


def in_template(row: dict[str, Any], corner_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """True anatomical place, in template mm, of a point given in mm from the corner of a volume's array (z y x)."""
    index = corner_mm / np.array(row["spacing_mm"]) - 0.5
    world = np.append(index[::-1], 1.0) @ np.array(row["affine"]).reshape(4, 4).T
    return anatomy(SEED, int(row["subject_id"].removeprefix("sub-"))).to_template(world[None, :3])[0]


def test_discovered_neighbours_are_nearer_in_anatomy_than_random_subjects(workspace: Workspace) -> None:
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog)}
    training, _ = split_by_subject(list(rows.values()), SETTINGS.validation_fraction, SETTINGS.seed)
    references = json.loads((workspace.patterns / "manifest.json").read_text())["references"]
    patterns = read_patterns(
        workspace.patterns, ["reference", "coordinate", "rank", "split", "volume_id", "origin_mm", "extent_mm"]
    ).to_pylist()
    neighbours, strangers = [], []
    for number, reference in enumerate(references):
        anchor = rows[reference["volume_id"]]
        found = [p for p in patterns if p["reference"] == number and p["split"] == "training"]
        truth = {
            p["coordinate"]: in_template(anchor, np.array(p["origin_mm"]) + np.array(p["extent_mm"]) / 2)
            for p in found
            if p["rank"] == 0
        }
        for pattern in found:
            if pattern["rank"] > 0:
                centre = np.array(pattern["origin_mm"]) + np.array(pattern["extent_mm"]) / 2
                there = in_template(rows[pattern["volume_id"]], centre)
                neighbours.append(np.linalg.norm(there - truth[pattern["coordinate"]]))
        similar = {pattern["volume_id"] for pattern in found}
        extent = np.array(SETTINGS.discovery.scales[0].extent_mm)
        for stranger in (row for row in training if row["volume_id"] not in similar):
            for coordinate, centre in enumerate(np.array(reference["centres_mm"])):
                size = size_mm(stranger)
                same = corresponding(centre, size_mm(anchor), size, SETTINGS.discovery.correspondence)
                there = in_template(dict(stranger), place(same, extent, size) + extent / 2)
                strangers.append(np.linalg.norm(there - truth[coordinate]))
    print(f"error of the same coordinate: neighbours {np.mean(neighbours):.1f} mm, others {np.mean(strangers):.1f} mm")
    assert len(neighbours) == 4 * 4 * 7
    assert np.mean(neighbours) < 0.85 * np.mean(strangers)


def test_the_reference_lies_exactly_on_its_own_coordinates(workspace: Workspace) -> None:
    references = json.loads((workspace.patterns / "manifest.json").read_text())["references"]
    patterns = read_patterns(workspace.patterns, ["reference", "coordinate", "rank", "split", "origin_mm", "extent_mm"])
    for pattern in patterns.to_pylist():
        if pattern["rank"] == 0:
            centre = np.array(pattern["origin_mm"]) + np.array(pattern["extent_mm"]) / 2
            expected = references[pattern["reference"]]["centres_mm"][pattern["coordinate"]]
            np.testing.assert_allclose(centre, expected)


def test_every_reference_and_coordinate_has_its_neighbours(workspace: Workspace) -> None:
    manifest = json.loads((workspace.patterns / "manifest.json").read_text())
    assert manifest["counts"]["patterns"] == 4 * 4 * (8 + 2)
    assert Path(workspace.patterns / "failures.parquet").exists()
