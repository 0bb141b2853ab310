"""What stages have to do, against arithmetic by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from raygenesis.planning import work
from raygenesis.planning.load import Load
from raygenesis.planning.work import ONE_NODE, Scans, Work
from raygenesis.settings import load_settings

SCANS = Scans(1000, 10.0, 6.0)
MIB = 2**20


def test_ingest_reads_files_and_stores_voxels() -> None:
    found = work.ingest(SCANS)
    assert found.core_s == pytest.approx(1000 * (0.017 + 10 * 0.0078))
    assert (found.read_mib, found.stored_mib) == (6000, pytest.approx(7500))
    assert found.most_cores == math.inf


def test_the_auto_encoder_learns_from_a_limited_number_on_one_node() -> None:
    small = load_settings("cpu-small", ["autoencoder.max_volumes=100", "autoencoder.num_epochs=4"])
    one, many = (work.train_autoencoder(Scans(number, 10, 6), small) for number in (1000, 100_000))
    assert one.core_s == many.core_s and one.most_cores == ONE_NODE
    assert work.train_autoencoder(SCANS, small, num_epochs=8).core_s == pytest.approx(2 * one.core_s, rel=0.02)


def test_embedding_goes_by_scans_and_to_gpus_where_they_are_asked_for() -> None:
    found = work.embed(SCANS, load_settings("cpu-small"))
    assert found.stored_mib == pytest.approx(1000 * 64 * 4 / MIB)
    assert found.read_mib == pytest.approx(1000 * 32**3 * 2 / MIB)
    on_gpus = work.embed(SCANS, load_settings("cpu-small", ["embedding.num_gpus=0.5", "embedding.num_actors=4"]))
    assert on_gpus.gpu_s > 0 and on_gpus.most_gpus == 2 and on_gpus.core_s == pytest.approx(1.4)


def test_the_index_is_built_where_it_is_cheaper_than_exact_search() -> None:
    few, many = load_settings("paper-3d"), load_settings("paper-3d", ["index.method=hnsw"])
    assert work.index(SCANS, few).stored_mib == 0 and "exact" in work.index(SCANS, few).what
    assert work.index(SCANS, many).stored_mib > 1000 * 512 * 4 / MIB and "HNSW" in work.index(SCANS, many).what


def test_the_papers_patterns() -> None:
    paper = load_settings("paper-3d")
    assert work.num_patterns(paper) == 30_360 and work.num_patterns(paper, held_out=False) == 26_400
    found = work.discover(paper)
    assert found.stored_mib == pytest.approx(30_360 * 32 * 64 * 64 * 2 * 0.67 / MIB)
    assert found.most_cores == 30  # parts of 1,024


def test_pretraining_is_its_epochs_of_each_phase() -> None:
    def seconds(*overrides: str) -> float:
        return work.pretrain(load_settings("cpu-small", list(overrides)), 1000, 0).core_s

    alone, joint = (
        seconds(f"pretraining.num_classification_epochs={one}", f"pretraining.num_joint_epochs={other}")
        for one, other in ((6, 0), (0, 6))
    )
    assert 0 < alone < joint
    both = seconds("pretraining.num_classification_epochs=3", "pretraining.num_joint_epochs=3")
    assert both == pytest.approx((alone + joint) / 2)
    cut_short = work.pretrain(load_settings("cpu-small"), 1000, 0, num_epochs=10)
    assert cut_short.core_s == pytest.approx(seconds("pretraining.num_joint_epochs=0"))  # 10 of classification alone
    held_out = work.pretrain(load_settings("cpu-small"), 1000, 300)
    assert held_out.core_s == pytest.approx(1.1 * seconds())  # a third of a training step each


def test_pretraining_reads_its_store_once_or_an_epoch() -> None:
    kept, read = (
        work.pretrain(load_settings("cpu-small", [f"pretraining.memory_gib={gib}"]), 100, 0) for gib in (1, 0)
    )
    assert read.read_mib == pytest.approx(25 * kept.read_mib)
    assert kept.memory_gib > read.memory_gib


def test_gpus_take_the_work_of_cores() -> None:
    on_gpus = load_settings("paper-3d", ["pretraining.use_gpu=true", "pretraining.num_workers=4"])
    for found in (work.pretrain(on_gpus), work.sweep(on_gpus), work.finetune(on_gpus)):
        assert found.core_s == 0 and found.gpu_s > 0
    assert work.pretrain(on_gpus).most_gpus == 4
    assert work.gpu_s(Load(1000, 0)) < work.core_s(Load(1000, 0)) / 10


def test_sweeps_and_fine_tuning_are_their_trials() -> None:
    settings = load_settings("cpu-small", ["finetune.num_trials=5", "finetune.num_labelled=[5,20]"])
    assert work.sweep(settings, 16).core_s == pytest.approx(2 * work.sweep(settings, 8).core_s)
    assert work.finetune(settings, 3).most_cores == 3 * 2 * 5
    nothing_trained = load_settings("cpu-small", ["finetune.mode=knn"])
    assert work.finetune(nothing_trained).core_s == 0


def test_random_crops_need_no_discovery() -> None:
    stages = [each.stage for each in work.pipeline(SCANS, load_settings("cpu-small", ["pretraining.pretext=rotation"]))]
    assert stages == ["ingest", "crop", "pretrain", "finetune"]


def figures(found: Work) -> tuple[float, ...]:
    return found.core_s, found.gpu_s, found.read_mib, found.stored_mib, found.memory_gib


@limits(deadline=None, max_examples=30)  # the first counts the networks
@given(st.integers(1, 10**7), st.integers(0, 10**7))
def test_more_scans_are_never_less_work(number: int, more: int) -> None:
    settings = load_settings("paper-3d")
    pairs = zip(*(work.pipeline(Scans(count, 10, 6), settings) for count in (number, number + more)), strict=True)
    for one, other in pairs:
        if one.what.endswith("searches") == other.what.endswith("searches"):
            assert all(a <= b + 1e-9 for a, b in zip(figures(one), figures(other), strict=True))
