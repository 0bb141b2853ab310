"""The page's costs are the plan's."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygenesis.planning.plan import plan
from raygenesis.report.cost import SCANS, cost
from raygenesis.settings import load_settings
from raygenesis.workspace import hardware
from tests.support.measured import measured_workspace


def test_the_page_tells_what_the_plan_tells(tmp_path: Path) -> None:
    workspace = measured_workspace(tmp_path)
    settings = load_settings("cpu-small", ["prices.cpu_hour=0.1"])
    told = cost(workspace, settings, {})
    assert told["scans"] == (1000, *SCANS)
    for place, number in enumerate(told["scans"]):
        planned = plan(number, hardware.available(), settings, workspace)
        assert [row["costs"][place] for row in told["rows"]] == planned
        sums = told["total"][place]
        assert sums["seconds"] == pytest.approx(sum(one.seconds for one in planned))
        assert sums["memory_gib"] == max(one.memory_gib for one in planned)
        assert sums["cost"] == pytest.approx(sum(one.cost for one in planned))
