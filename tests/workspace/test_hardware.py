"""What a container may use of its machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raygenesis.workspace import control_groups, hardware


@pytest.mark.parametrize(
    ("limit", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("99900000 100000", None), ("max 100000", None)]
)
def test_a_share_of_the_cores_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int | None
) -> None:
    monkeypatch.setattr(control_groups, "MOUNTS", tmp_path)
    monkeypatch.setattr(control_groups, "OWN", tmp_path / "own")
    (tmp_path / "own").write_text("0::/")
    there = len(os.sched_getaffinity(0))
    assert hardware.num_cores() == there  # no limit
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert hardware.num_cores() == (cores or there)


def test_a_share_of_the_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_groups, "MOUNTS", tmp_path)
    monkeypatch.setattr(control_groups, "OWN", tmp_path / "own")
    (tmp_path / "own").write_text("0::/")
    whole = hardware.memory_gib()
    assert whole > 0.5
    for limit, expected in (("max", whole), (str(2**28), 0.25), (str(2**60), whole)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert hardware.memory_gib() == expected
