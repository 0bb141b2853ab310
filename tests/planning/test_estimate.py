"""From work to time, memory, storage and cost."""

from __future__ import annotations

import pytest
from raygenesis.planning.work import ONE_NODE, START_S, Work

from raygenesis.planning.estimate import Factor, estimate
from raygenesis.settings import PriceSettings
from raygenesis.workspace.hardware import Hardware

FREE = PriceSettings()
WORK = Work("ingest", "", core_s=6400.0, read_mib=1000, stored_mib=500, memory_gib=1, memory_gib_per_core=2)
CLUSTER = Hardware(num_cores=64, num_gpus=8, num_nodes=4)
START = START_S["ingest"]


def test_cores_share_what_can_be_shared() -> None:
    assert estimate(WORK, CLUSTER, FREE, {}, 500).seconds == pytest.approx(START + 100)
    assert estimate(WORK, CLUSTER, FREE, {}, 500).limit == "64 cores"
    few = Work("embed", "", core_s=6400.0, most_cores=2)
    assert estimate(few, CLUSTER, FREE, {}, 500).seconds == pytest.approx(START_S["embed"] + 3200)
    assert estimate(few, CLUSTER, FREE, {}, 500).limit == "2 cores of 64"
    alone = Work("auto-encoder", "", core_s=6400.0, most_cores=ONE_NODE)
    assert estimate(alone, CLUSTER, FREE, {}, 500).limit == "16 cores of 64"


def test_gpus_share_what_is_theirs() -> None:
    found = estimate(Work("pretrain", "", 0, gpu_s=8000, most_gpus=4), CLUSTER, FREE, {}, 500)
    assert (found.num_gpus, found.seconds, found.limit) == (4, pytest.approx(START_S["pretrain"] + 2000), "4 GPUs")


def test_what_is_moved_can_be_what_takes_the_time() -> None:
    found = estimate(WORK, CLUSTER, FREE, {}, 1.0)
    assert found.limit == "disk or network" and found.seconds == pytest.approx(START + 1500 / 4)
    assert found.moved_mib == 1500


def test_little_work_is_starting() -> None:
    assert estimate(Work("ingest", "", core_s=1.0), CLUSTER, FREE, {}, 500).limit == "starting"


def test_memory_is_of_the_fullest_node() -> None:
    assert estimate(WORK, CLUSTER, FREE, {}, 500).memory_gib == 1 + 16 * 2


def test_measured_factors_count_for_their_stage() -> None:
    factors = {"ingest": Factor(2.0, 3.0, "this workspace"), "embed": Factor(9.0)}
    found = estimate(WORK, CLUSTER, FREE, factors, 500)
    assert found.seconds == pytest.approx(START + 200) and found.stored_mib == 1500 and found.seen == "this workspace"


def test_the_whole_cluster_is_paid_for_as_long_as_a_stage_takes() -> None:
    prices = PriceSettings(cpu_hour=0.05, gpu_hour=2.0, gib_month=0.02)
    found = estimate(WORK, CLUSTER, prices, {}, 500)
    assert found.cost == pytest.approx((START + 100) / 3600 * (64 * 0.05 + 8 * 2.0) + 500 / 1024 * 0.02)
    assert estimate(WORK, CLUSTER, FREE, {}, 500).cost is None
    gpus_alone = estimate(WORK, CLUSTER, PriceSettings(gpu_hour=3.6), {}, 500)
    assert gpus_alone.cost == pytest.approx((START + 100) * 8 / 1000)


def test_a_cluster_whose_machines_are_yet_to_come_counts_as_one_core() -> None:
    assert estimate(WORK, Hardware(0, 0, 1), FREE, {}, 1e9).seconds == pytest.approx(START + 6400)


def test_gpus_that_are_not_there_are_told() -> None:
    training = Work("pretrain", "", 0, gpu_s=8000, most_gpus=4)
    assert estimate(training, Hardware(2), FREE, {}, 500).limit.startswith("no GPU")
