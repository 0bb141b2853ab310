"""Sweeps of the smallest pretraining."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raygenesis.settings import Settings, settings_from
from raygenesis.workspace.manifest import Tree
from tests.support.planar import settings_of

PLAN = {"references": 1, "coordinates": 2, "neighbours": 12, "held_out": 4, "scales": 1}


def swept(**sweep_settings: Any) -> Settings:
    tree = settings_of().model_dump(mode="json")
    short = {"num_classification_epochs": 1, "num_joint_epochs": 1, "max_concurrent_trials": 2}
    return settings_from(tree | {"sweep": {**short, **sweep_settings}})


def trial_files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("trial-*.json")}


def without_seconds(table: Iterable[Tree]) -> list[Tree]:
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in table]
