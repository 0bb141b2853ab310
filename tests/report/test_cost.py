"""Costs at scale, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygenesis.report.cost import STAGES, Cost, costs, num_patterns, total, with_patterns_of
from raygenesis.report.rates import Measured
from raygenesis.settings import load_settings

MILLION = 10**6


def measured(**manifests: dict[str, Any] | None) -> Measured:
    """A run of 100 scans: 80 to learn from, 20 held out; K = 6 + 2, C = 4, 1 scale."""
    whole = {
        "archive": {"counts": {"scans": 100, "volumes": 100, "known": 0}, "seconds": 50.0, "bytes": 7000},
        "autoencoder": {
            "counts": {"epochs": 3, "training": 80, "validation": 20}, "seconds": 40.0, "bytes": 999,
            "settings": {"autoencoder": {"max_volumes": 1600}},
        },
        "embeddings": {
            "counts": {"volumes": 100}, "seconds": 10.0, "bytes": 5000,
            "settings": {"embedding": {"volumes_per_part": 128}},
        },
        "index": {
            "counts": {"volumes": 100}, "seconds": 2.0, "bytes": 30_000,
            "settings": {"index": {"volumes_per_shard": 1000}},
        },
        "patterns": {
            "counts": {"patterns": 32}, "cube_shape": [32, 32, 32], "raw_bytes": 32 * 65536, "seconds": 4.0,
            "bytes": 3200,
            "settings": {
                "discovery": {"num_neighbours": 6, "num_validation_neighbours": 2, "patterns_per_part": 16}
            },
        },
        "runs": {"counts": {"patterns": 24, "epochs": 5}, "seconds": 12.0, "bytes": 777},
    }  # fmt: skip
    kept = {stage: manifest for stage, manifest in (whole | manifests).items() if manifest}
    return Measured(
        manifests=kept, epoch_seconds={"autoencoder": 30.0, "runs": 9.0}, row_bytes=2000, table_bytes=300,
        scan_bytes=10**6, input_voxels=1000, latent_size=64, num_tasks=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # 0.5 s, 70 bytes and a catalogue row a scan; four scans unpacked.
        ("archive", Cost(500_000, 70 * MILLION, 2000 * MILLION + 4 * MILLION)),
        # 0.5 s a training scan up to 1,600 of them; with as many held out at 2 bytes a voxel.
        ("autoencoder", Cost(800, 999, 300 * MILLION + 3200 * 1000 * 2)),
        # 0.1 s and 64 × 4 bytes a scan; four parts of 128 coarse scans at 4 bytes a voxel.
        ("embeddings", Cost(100_000, 256 * MILLION, 300 * MILLION + 512 * 1000 * 4)),
        # 0.02 s and 300 bytes a scan; four shards of 1,000.
        ("index", Cost(20_000, 300 * MILLION, 300 * MILLION + 4000 * 300)),
        # As measured; the 32 patterns fit in four parts of 16, at 64 KiB each.
        ("patterns", Cost(4, 3200, 300 * MILLION + 32 * 65536)),
        ("runs", Cost(12, 777, 3200)),
    ],
)
def test_a_million_scans(stage: str, expected: Cost) -> None:
    (found,) = costs(measured(), stage, [MILLION])
    assert near(found, expected)


def near(found: Cost | None, expected: Cost) -> bool:
    return found is not None and vars(found) == pytest.approx(vars(expected))


def test_the_same_archive_costs_what_it_took() -> None:
    run = measured()
    for stage in STAGES:
        (found,) = costs(run, stage, [100])
        assert found is not None and found.seconds == pytest.approx(run.manifests[stage]["seconds"])


def test_growing_an_archive_gives_the_rate_of_what_was_added() -> None:
    grown = measured(
        archive={"counts": {"scans": 100, "volumes": 100, "known": 90}, "seconds": 5.0, "bytes": 7000},
        embeddings={**measured().manifests["embeddings"], "counts": {"volumes": 100, "new": 10}, "seconds": 1.0},
        index={**measured().manifests["index"], "counts": {"volumes": 100, "indexed_before": 90}, "seconds": 0.2},
    )
    for stage in ("archive", "embeddings", "index"):
        assert near(costs(grown, stage, [MILLION])[0], costs(measured(), stage, [MILLION])[0])


def test_a_call_that_added_nothing_gives_no_rate() -> None:
    idle = measured(
        archive={"counts": {"scans": 100, "volumes": 100, "known": 100}, "seconds": 0.1, "bytes": 7000},
        embeddings={**measured().manifests["embeddings"], "counts": {"volumes": 100, "new": 0}},
        index={**measured().manifests["index"], "counts": {"volumes": 100, "indexed_before": 100}},
        patterns={**measured().manifests["patterns"], "counts": {"patterns": 0}},
    )
    for stage in ("archive", "embeddings", "index", "patterns"):
        assert costs(idle, stage, [100, MILLION]) == [None, None]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_not_run_costs_nothing_known(stage: str) -> None:
    run = measured(**{stage: None}, **({"runs": None} if stage == "patterns" else {}))
    assert costs(run, stage, [100, MILLION]) == [None, None]
    assert total([costs(run, name, [100]) for name in STAGES]) == [None]


def test_resumed_training_counts_the_epochs_of_all_calls() -> None:
    run = replace(measured(), epoch_seconds={"autoencoder": 400.0, "runs": 90.0})
    assert costs(run, "runs", [MILLION])[0].seconds == 90
    assert costs(run, "autoencoder", [100])[0].seconds == 400


def test_discovery_needs_as_many_scans_as_it_crops() -> None:
    for stage in ("patterns", "runs"):
        few, enough = costs(measured(), stage, [7, 8])
        assert few is None and enough is not None


def test_totals_add_time_and_storage_and_take_the_most_memory() -> None:
    assert total([[Cost(1, 10, 5), Cost(2, 20, 6)], [Cost(3, 30, 4), None]]) == [Cost(4, 40, 5), None]


def test_the_papers_patterns() -> None:
    paper = load_settings("paper-3d")
    assert num_patterns(paper) == 30_360 and num_patterns(paper, held_out=False) == 26_400
    asked = with_patterns_of(measured(), paper)
    # 30,360 cubes of four times the voxels for 32; 26,400 of them learnt from for 24.
    more, longer = 30_360 * 4 / 32, 26_400 * 4 / 24
    memory = 10_000 * 300 + 4 * paper.discovery.patterns_per_part * 4 * 65536
    few, found = costs(asked, "patterns", [229, 10_000])
    assert few is None and near(found, Cost(4 * more, 3200 * more, memory))
    assert near(costs(asked, "runs", [10_000])[0], Cost(12 * longer, 777, 3200 * more))


def test_the_papers_patterns_need_a_measured_discovery() -> None:
    asked = with_patterns_of(measured(patterns=None), load_settings("paper-3d"))
    assert costs(asked, "patterns", [MILLION]) == costs(asked, "runs", [MILLION]) == [None]
    untrained = with_patterns_of(measured(runs=None), load_settings("paper-3d"))
    assert costs(untrained, "patterns", [MILLION])[0] and costs(untrained, "runs", [MILLION]) == [None]


@given(st.integers(8, 10**7), st.integers(1, 10**7))
def test_more_scans_never_cost_less(num_scans: int, more: int) -> None:
    for stage in STAGES:
        one, other = costs(measured(), stage, [num_scans, num_scans + more])
        assert all(vars(one)[key] <= vars(other)[key] for key in vars(one))
