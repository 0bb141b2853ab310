"""The page's costs are the plan's."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygenesis.planning.plan import plan
from raygenesis.report.cost import NUM_SCANS, cost_section
from raygenesis.settings import load_settings
from raygenesis.text.amounts import MIB
from raygenesis.workspace import hardware
from raygenesis.workspace.manifest import ArchiveCounts, ArchiveManifest, PatternsManifest, StoreCounts
from raygenesis.workspace.manifest_files import write_manifest
from raygenesis.workspace.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """1,000 scans of 2 MiB of voxels in files of 1 MiB, and patterns of them: stages of which rates are learnt."""
    found = Workspace.open(tmp_path)
    archived = ArchiveManifest(
        counts=ArchiveCounts(scans=1000, volumes=1000, subjects=1000, failures=0), seconds=70.0, bytes=MIB,
        source_bytes=1000 * MIB, voxel_bytes=2000 * MIB, hardware=hardware.Hardware(2),
    )  # fmt: skip
    counts = StoreCounts(
        patterns=50_000, validation=10_000, volumes=1000, parts=1, failures=0, references=1, coordinates=44,
        neighbours=200,
    )  # fmt: skip
    stored = PatternsManifest(
        counts=counts, seconds=600.0, bytes=MIB, cube_shape=(16, 16, 16), raw_bytes=MIB, hardware=hardware.Hardware(2)
    )
    for folder, manifest in ((found.archive, archived), (found.patterns, stored)):
        folder.mkdir()
        write_manifest(folder, manifest)
    return found


def test_the_page_shows_the_costs_of_the_plan(workspace: Workspace) -> None:
    settings = load_settings("cpu-small", ["prices.cpu_hour=0.1"])
    costs = cost_section(workspace, settings)
    assert costs.num_scans == (1000, *NUM_SCANS)
    assert [row.stage for row in costs.rows if row.seen] == ["ingest", "discover"]
    for place, number in enumerate(costs.num_scans):
        planned = plan(number, hardware.available(), settings, workspace).estimates
        assert [row.estimates[place] for row in costs.rows] == list(planned)
        total = costs.total[place]
        assert total.seconds == pytest.approx(sum(one.seconds for one in planned))
        assert total.memory_gib == max(one.memory_gib for one in planned)
        assert total.cost == pytest.approx(sum(one.cost for one in planned))
