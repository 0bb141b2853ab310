"""What several folders of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import raygenesis as raygenesis  # first of all: it gives Ray its settings, which Ray reads when it is imported
from raygenesis.training import precision

# The networks here are tiny: a second thread only waits for the first.
torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under pytest-xdist a file's tests stay in one process, and so do all that share the main job."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "end_to_end" if "/end_to_end/" in file else file

    return Scheduler(config, log)


@pytest.fixture(scope="session", autouse=True)
def _single_precision() -> Iterator[None]:
    """Where a test names no precision `auto` is fp32 in pytest's process: expected numbers are those of any machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "fastest_precision", lambda device: "fp32")
        yield


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, started once in each of pytest's processes."""
    import ray

    from raygenesis.cluster import joining

    joining.connect()
    yield
    ray.shutdown()
