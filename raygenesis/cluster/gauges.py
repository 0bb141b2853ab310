"""The pipeline's own figures for Prometheus, through Ray, which puts `ray_` before their names."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

# Each gauge: its description, and the names of its tags.
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "raygenesis_rate": ("Units that a stage does a second.", ("verb", "stage", "unit")),
    "raygenesis_done": ("Units that a stage has done.", ("verb", "stage", "unit")),
    "raygenesis_total": ("Units that a stage has to do.", ("verb", "stage", "unit")),
    "raygenesis_failures": ("Scans that a stage left out.", ("stage",)),
    "raygenesis_index_recall": ("Share of the true neighbours that the graphs find.", ()),
    "raygenesis_training_gap": ("Share of a step's time that is spent waiting for data.", ("run",)),
    "raygenesis_loss": ("Loss of the newest step, and of the newest epoch held out.", ("run", "split")),
}


def set_gauge(name: str, value: float, **tags: str) -> None:
    """Set a gauge where this process is part of a Ray cluster; else do nothing."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        _gauge(name).set(value, tags)


@cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    description, tags = GAUGES[name]
    return Gauge(name, description, tag_keys=tags)
