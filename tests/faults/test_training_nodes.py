"""A machine is lost in the midst of elastic training: fewer workers go on, and the curve does not tell."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from raygenesis.training.metrics import read_metrics
from tests.support.experiments import Experiment, read_steps, run, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Noting(Experiment):
    """In double precision; each number of workers that there was leaves a file."""

    seen: Path | None = None

    def build(self):
        return super().build().double()

    def losses(self, model, batch, epoch, teacher=None):
        if self.seen is not None:
            (self.seen / str(torch.distributed.get_world_size())).touch()
        return super().losses(model, type(batch)(batch.cubes.double(), batch.columns), epoch)

    def evaluate(self, model, batch):
        return super().evaluate(model, type(batch)(batch.cubes.double(), batch.columns))


SCRIPT = """
import sys, threading, time
from pathlib import Path
import raygenesis
import ray
from ray.cluster_utils import Cluster
from raygenesis.training.checkpoints import steps_in
from raygenesis.training.fit import Resources, fit_with_ray
from tests.faults.test_training_nodes import Noting
from tests.support.experiments import HELD_OUT, TRAIN, settings

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
ray.init(address=cluster.address, log_to_driver=False)  # while the head is alone: the driver is not to be lost
machines = [cluster.add_node(num_cpus=1) for _ in range(2)]

def lose_one():
    while not (steps := steps_in(folder / "checkpoints")) or steps[-1] < 6:
        time.sleep(0.05)
    cluster.remove_node(machines[0], allow_graceful=False)

threading.Thread(target=lose_one, daemon=True).start()
datasets = {"train": ray.data.from_arrow(TRAIN), "validation": ray.data.from_arrow(HELD_OUT)}
experiment = Noting(settings=settings(), seen=folder.parent, seconds_a_step=0.2)
fit_with_ray(experiment, datasets, folder, Resources(num_workers=(1, 3), checkpoint_seconds=0))
ray.shutdown()
cluster.shutdown()  # left to the end of the process, it ends it with an exit code of its own
"""


def test_a_lost_machine_takes_its_worker_and_nothing_else(tmp_path):
    rows = []
    alone = run(Noting(settings=settings()), on_step=lambda now, row: rows.append(dict(row)))
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }  # fmt: skip
    seen = tmp_path / "seen"
    seen.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(seen / "run")], env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = {int(path.name) for path in seen.iterdir() if path.name.isdigit()}
    assert 3 in numbers and min(numbers) < 3, numbers
    found = [*read_steps(seen / "run"), *read_metrics(seen / "run")]
    assert len(found) == 24
    for row, expected in zip(found, [*rows, *alone.history], strict=True):
        for name in row.keys() & {"loss", "gradient_norm", "train_loss", "val_mse"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-9), name
