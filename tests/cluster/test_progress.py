"""Progress in a job log: few lines, and never none at the end."""

from __future__ import annotations

import pytest

from raygenesis.cluster import progress as module
from raygenesis.cluster.progress import progress


@pytest.mark.parametrize(
    ("seconds_each", "num_units", "shown"),
    [
        # Each unit a second: at tenths, no sooner than after a quarter of a minute, and at the end.
        (1.0, 100, [20, 40, 60, 80, 100]),
        # Tenths are rare: once a minute.
        (1.0, 3000, [60, 120, 180, 240, 300, 360, 420, 480, 540, 600]),
        (0.01, 100, [100]),
        (20.0, 4, [1, 2, 3, 4]),
    ],
)
def test_a_job_log_has_few_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds_each: float, num_units: int,
    shown: list[int],
) -> None:  # fmt: skip
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    with progress("embed", num_units, "scans") as ticker:
        for _ in range(num_units):
            clock[0] += seconds_each
            ticker.advance()
    lines = capsys.readouterr().out.splitlines()
    found = [int(line.split("/")[0].removeprefix("embed: ")) for line in lines]
    assert found[: len(shown)] == shown
    assert found[-1] == num_units and len(found) <= 10 + num_units * seconds_each / 60


def test_a_stage_without_units_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("crop", 0, "scans") as ticker:
        ticker.advance()
    assert capsys.readouterr().out == ""
