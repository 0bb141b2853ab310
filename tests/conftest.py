"""What several folders of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import raygenesis as raygenesis  # first of all: it gives Ray its settings, which Ray reads when it is imported

# The networks here are tiny: a second thread only waits for the first.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, started once in each of pytest's processes."""
    import ray

    from raygenesis.cluster import joining

    joining.connect()
    yield
    ray.shutdown()
