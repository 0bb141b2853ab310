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
from raygenesis.demo.population import anatomy, write_population
from raygenesis.discovery.cubes import origin_of, size_mm
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.discovery.references import Correspondence, Reference, choose_coordinates
from raygenesis.patterns.reader import read_patterns
from raygenesis.settings import Settings, load_settings
from raygenesis.workspace.workspace import Workspace

pytestmark = pytest.mark.slow

NUM_SUBJECTS, SEED = 26, 3
SETTINGS = load_settings(
    "cpu-small",
    [
        "archive.keep_ids=true",
        "autoencoder.num_epochs=10",
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
        known = choose_coordinates(
            workspace.volumes, anchor, number, SETTINGS.discovery, SETTINGS.intensity, SETTINGS.seed
        )
        assert known.centres_mm.tolist() == reference["centres_mm"]
        for stranger in (row for row in training if row["volume_id"] not in similar):
            same = same_places(workspace, stranger, known, SETTINGS)
            for coordinate, centre in enumerate(same):
                there = in_template(dict(stranger), origin_of(centre, extent, size_mm(stranger)) + extent / 2)
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


def same_places(workspace: Workspace, row: Any, known: Reference, chosen: Settings) -> NDArray[np.float64]:
    return Correspondence(workspace.volumes, row, chosen.discovery, chosen.intensity).centres_mm(known)


def test_registered_patients_are_nearer_in_anatomy_than_the_same_fraction_of_the_field_of_view(
    workspace: Workspace,
) -> None:
    """Measured on all subjects against one reference: simulated heads lie up to 15 mm and 10 degrees apart."""
    rows = read_catalogue(workspace.catalog)[:9]
    errors = {}
    for alignment in ("none", "rigid", "affine"):
        discovery = SETTINGS.discovery.model_copy(update={"alignment": alignment})
        chosen = SETTINGS.model_copy(update={"discovery": discovery})
        known = choose_coordinates(workspace.volumes, rows[0], 0, chosen.discovery, chosen.intensity, chosen.seed)
        truth = [in_template(rows[0], centre) for centre in known.centres_mm]
        errors[alignment] = np.mean(
            [
                np.linalg.norm(in_template(row, centre) - true)
                for row in rows[1:]
                for centre, true in zip(same_places(workspace, row, known, chosen), truth, strict=True)
            ]
        )
    print("error of the same coordinate in other subjects, mm:", {name: round(e, 1) for name, e in errors.items()})
    assert errors["affine"] < errors["rigid"] < 0.8 * errors["none"]


def test_the_measured_quality_says_that_neighbours_are_better_than_random(workspace: Workspace) -> None:
    """Where the truth in mm says so, so do the numbers that a user sees."""
    quality = json.loads((workspace.patterns / "manifest.json").read_text())["quality"]
    assert quality["p_value"] < 0.01 and quality["warning"] is None
    assert quality["neighbours"]["within"] > quality["random"]["within"] > quality["neighbours"]["between"]
