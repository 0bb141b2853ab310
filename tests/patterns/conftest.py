"""A finished pattern store with failures, for what looks into stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygenesis.workspace.workspace import Workspace
from tests.support.stores import SOME_FAILURES, StorePlan


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    StorePlan().write(tmp_path / "ws" / "patterns", SOME_FAILURES)
    return Workspace.open(tmp_path / "ws")
