"""Compiled networks that several workers train together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import PretrainingSettings
from raygenesis.training.loop import Callbacks, run_epochs
from raygenesis.training.workers import Workers
from tests.support.synthetic import pattern_table, samples

SHAPE = (32, 32)


def losses(compiles: bool, workers: Workers = Workers()) -> list[tuple[float, float]]:  # noqa: B008
    """Loss and gradient norm of each step, of both phases."""
    settings = PretrainingSettings(
        base_width=2, batch_size=6, num_classification_epochs=1, num_joint_epochs=1, precision="fp32", compile=compiles
    )
    rows: list[tuple[float, float]] = []
    callbacks = Callbacks(on_step=lambda now, row: rows.append((row["loss"], row["gradient_norm"])))
    parts = [samples(pattern_table(12, SHAPE, 3, first), SHAPE) for first in (0, 100)]
    run_epochs(PretextTask(settings, 0, SHAPE, 1, 3), *parts, workers=workers, callbacks=callbacks)
    return rows


def worker(rank: int, world_size: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}.store", rank=rank, world_size=world_size)
    rows = losses(True, Workers(rank=rank, world_size=world_size))
    if rank == 0:
        torch.save((rows, torch._dynamo.utils.counters["stats"]["unique_graphs"]), file)
    dist.destroy_process_group()


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.timeout(900)
def test_two_workers_with_synchronised_batch_norm_train_a_compiled_network(tmp_path: Path) -> None:
    """Norms, which wait for the other worker, split the network into graphs; steps are those of one plain worker."""
    file = str(tmp_path / "losses.pt")
    torch.multiprocessing.spawn(worker, (2, file), nprocs=2)
    compiled, num_graphs = torch.load(file)
    assert len(compiled) == 4 and num_graphs > 1
    np.testing.assert_allclose(compiled, losses(False), rtol=1e-3)
