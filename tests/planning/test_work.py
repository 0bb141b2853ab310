"""What stages have to do, against arithmetic by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from raygenesis.archive.work import ingest_work
from raygenesis.cluster.work import ONE_NODE, ArchiveSize, Load, Work, core_s, gpu_s
from raygenesis.discovery.work import autoencoder_work, discover_work, embed_work, neighbours_work, num_patterns
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import build_encoder
from raygenesis.networks.operations import count_operations
from raygenesis.planning.pipeline import pipeline_work
from raygenesis.pretraining.pretexts import PRETEXTS
from raygenesis.pretraining.work import StoreSize, pretrain_work, selected
from raygenesis.settings import Settings, load_settings, settings_from
from raygenesis.sweeps.work import sweep_work
from raygenesis.transfer.initialisations import Initialisation
from raygenesis.transfer.work import default_finetune_work, finetune_work

SCANS = ArchiveSize(1000, 10.0, 6.0)
MIB = 2**20


def test_ingest_reads_files_and_stores_voxels() -> None:
    found = ingest_work(SCANS)
    assert found.core_s == pytest.approx(1000 * (0.017 + 10 * 0.0078))
    assert (found.read_mib, found.stored_mib) == (6000, pytest.approx(7500))
    assert found.most_cores == math.inf


def test_the_auto_encoder_learns_from_a_limited_number_on_one_node() -> None:
    small = load_settings("cpu-small", ["autoencoder.max_volumes=100", "autoencoder.num_epochs=4"])

    def training(number: int, num_epochs: int | None = None) -> Work:
        scans = ArchiveSize(number, 10, 6)
        return autoencoder_work(scans, small.autoencoder, small.validation_fraction, num_epochs)

    one, many = training(1000), training(100_000)
    assert one.core_s == many.core_s and one.most_cores == ONE_NODE
    assert training(1000, num_epochs=8).core_s == pytest.approx(2 * one.core_s, rel=0.02)


def embedding(settings: Settings) -> Work:
    return embed_work(SCANS, settings.embedding, settings.autoencoder)


def indexing(settings: Settings) -> Work:
    return neighbours_work(SCANS, settings.index, settings.autoencoder.latent_size)


def test_embedding_goes_by_scans_and_to_gpus_where_they_are_asked_for() -> None:
    found = embedding(load_settings("cpu-small"))
    assert found.stored_mib == pytest.approx(1000 * 64 * 4 / MIB)
    assert found.read_mib == pytest.approx(1000 * 32**3 * 2 / MIB)
    on_gpus = embedding(load_settings("cpu-small", ["embedding.num_gpus=0.5", "embedding.num_actors=4"]))
    assert on_gpus.gpu_s > 0 and on_gpus.most_gpus == 2 and on_gpus.core_s == pytest.approx(1.4)


def test_the_index_is_built_where_it_is_cheaper_than_exact_search() -> None:
    few, many = load_settings("paper-3d"), load_settings("paper-3d", ["index.method=hnsw"])
    assert indexing(few).stored_mib < 1 and "exact" in indexing(few).what
    assert indexing(many).stored_mib > 1000 * 512 * 4 / MIB and "HNSW" in indexing(many).what
    million = neighbours_work(replace(SCANS, num_scans=10**6), few.index, 512)
    assert "HNSW" in million.what and million.core_s > 1000 * indexing(few).core_s


def test_the_papers_patterns() -> None:
    paper = load_settings("paper-3d")
    assert num_patterns(paper.discovery) == 30_360 and num_patterns(paper.discovery, held_out=False) == 26_400
    found = discover_work(paper.discovery)
    assert found.stored_mib == pytest.approx(30_360 * 32 * 64 * 64 * 2 * 0.67 / MIB)
    assert found.most_cores == 30  # parts of 1,024


def store_of(settings: Settings, learnt: int, held_out: int) -> StoreSize:
    """A store of so many patterns, of which the settings leave none out."""
    return StoreSize(learnt, held_out, settings.discovery.num_neighbours, settings.discovery.num_coordinates)


def pretraining(settings: Settings, learnt: int, held_out: int, num_epochs: int | None = None) -> Work:
    return pretrain_work(settings.pretraining, settings.discovery, store_of(settings, learnt, held_out), num_epochs)


def sweeping(settings: Settings, num_points: int = 8) -> Work:
    num_gpus = settings.gpus_of_trial("sweep")
    return sweep_work(settings.sweep, settings.pretraining, settings.discovery, num_gpus, num_points)


def fine_tuning(settings: Settings) -> Work:
    num_gpus = settings.gpus_of_trial("finetune")
    return default_finetune_work(settings.finetune, settings.pretraining, settings.discovery.cube_shape, num_gpus)


def test_pretraining_is_its_epochs_of_each_phase() -> None:
    def seconds(*overrides: str) -> float:
        return pretraining(load_settings("cpu-small", list(overrides)), 1000, 0).core_s

    alone, joint = (
        seconds(f"pretraining.num_classification_epochs={one}", f"pretraining.num_joint_epochs={other}")
        for one, other in ((6, 0), (0, 6))
    )
    assert 0 < alone < joint
    both = seconds("pretraining.num_classification_epochs=3", "pretraining.num_joint_epochs=3")
    assert both == pytest.approx((alone + joint) / 2)
    cut_short = pretraining(load_settings("cpu-small"), 1000, 0, num_epochs=10)
    assert cut_short.core_s == pytest.approx(seconds("pretraining.num_joint_epochs=0"))  # 10 of classification alone
    held_out = pretraining(load_settings("cpu-small"), 1000, 300)
    assert held_out.core_s == pytest.approx(1.1 * seconds())  # a third of a training step each


def test_pretraining_reads_its_store_once_or_an_epoch() -> None:
    def both(number: int) -> list[Work]:
        return [
            pretraining(load_settings("cpu-small", [f"pretraining.memory_gib={gib}"]), number, 0) for gib in (100, 0)
        ]

    kept, read = both(100)
    assert read.read_mib == pytest.approx(25 * kept.read_mib)
    assert kept.memory_gib == read.memory_gib  # all of them fit into the window
    kept, read = both(100_000)
    assert kept.memory_gib > read.memory_gib + 2


def test_gpus_take_the_work_of_cores() -> None:
    on_gpus = load_settings("paper-3d", ["pretraining.use_gpu=true", "pretraining.num_workers=4"])
    for found in (pretraining(on_gpus, 100, 10), sweeping(on_gpus), fine_tuning(on_gpus)):
        assert found.core_s == 0 and found.gpu_s > 0
    assert pretraining(on_gpus, 100, 10).most_gpus == 4
    assert gpu_s(Load(1000, 0)) < core_s(Load(1000, 0)) / 10


def test_sweeps_and_fine_tuning_are_their_trials() -> None:
    settings = load_settings("cpu-small", ["finetune.num_trials=5", "finetune.num_labelled=[5,20]"])
    assert sweeping(settings, 16).core_s == pytest.approx(2 * sweeping(settings, 8).core_s)
    assert fine_tuning(settings).most_cores == 2 * 2 * 5
    given = ["finetune.num_trials=5", "finetune.num_labelled=[5,20]", "finetune.learning_rate=[0.001,0.003,0.01]"]
    tuned = fine_tuning(load_settings("cpu-small", given))
    assert tuned.most_cores == 2 * 2 * (5 + 3 * 2)  # each rate on two draws
    assert tuned.core_s == pytest.approx(fine_tuning(settings).core_s * 11 / 5)
    assert fine_tuning(load_settings("cpu-small", ["finetune.mode=knn"])).core_s == 0


def test_a_trials_gpus_are_its_own_whatever_pretraining_runs_on() -> None:
    shared = load_settings("cpu-small", ["sweep.num_gpus=0.25", "finetune.num_gpus=0.25"])
    trials = 2 * len(shared.finetune.num_labelled) * shared.finetune.num_trials
    for found, most in ((sweeping(shared, 8), 2), (fine_tuning(shared), math.ceil(trials / 4))):
        assert found.core_s == 0 and found.gpu_s > 0 and found.most_gpus == most
    assert pretraining(shared, 100, 10).gpu_s == 0
    on_cores = load_settings("cpu-small", ["pretraining.use_gpu=true", "sweep.num_gpus=0"])
    assert sweeping(on_cores).gpu_s == 0 and sweeping(on_cores).core_s > 0


def start(**architecture: Any) -> Initialisation:
    return Initialisation("start", None, Architecture(**{"base_width": 2, **architecture}), "")


def test_fine_tuning_is_that_of_the_networks_and_the_target() -> None:
    # None of it is a target of cubes that the settings' pretext task could be posed.
    small = load_settings("cpu-small", ["pretraining.pretext=rotation", "finetune.num_steps=10"])
    narrow, wide, flat = start(), start(base_width=8), start(ndim=2)

    def seconds(starts: list[Initialisation], shape: tuple[int, ...] = (8, 64, 96), segments: bool = True) -> float:
        return finetune_work(small.finetune, 0, starts, shape, segments).core_s

    assert seconds([wide]) > 2 * seconds([narrow])
    assert seconds([narrow, wide]) == pytest.approx(seconds([narrow]) + seconds([wide]))
    assert 0 < seconds([narrow], segments=False) < seconds([narrow])
    assert seconds([flat]) == pytest.approx(8 * seconds([flat], (64, 96)))  # slice by slice
    frozen = load_settings("cpu-small", ["finetune.mode=frozen"])
    assert (
        finetune_work(frozen.finetune, 0, [narrow], (8, 64, 96), segments=False).core_s == 0
    )  # a probe of its embedding
    assert finetune_work(frozen.finetune, 0, [narrow], (8, 64, 96), segments=True).core_s > 0


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("pretext", PRETEXTS)
def test_every_pretext_task_has_its_estimate(pretext: str, ndim: int) -> None:
    shape = [32] * ndim
    tree = {
        "autoencoder": {"input_shape": shape, "base_width": 2}, "discovery": {"cube_shape": shape},
        "pretraining": {"pretext": pretext, "base_width": 2, "average_decay": 0.99},
    }  # fmt: skip
    tree["discovery"]["scales"] = [{"extent_mm": shape}]
    stages = {each.stage: each for each in pipeline_work(SCANS, settings_from(tree))}
    assert stages["pretrain"].core_s > 0 and stages["finetune"].core_s > 0
    assert PRETEXTS[pretext].store.name in stages["pretrain"].what


def test_pairs_cost_a_teacher_and_a_second_decoding() -> None:
    small = load_settings("cpu-small", ["pretraining.average_decay=0.99"])

    def seconds(**weights: float) -> float:
        return pretrain_work(small.pretraining.model_copy(update=weights), small.discovery).core_s

    plain, contrasted, crossed = seconds(), seconds(lambda_pair=0.5), seconds(lambda_cross=0.5)
    assert 1.02 * plain < contrasted < 1.34 * plain and 1.2 * plain < crossed < 2 * plain


def test_a_rubiks_cube_is_its_pieces() -> None:
    """Eight pieces of 8³ cost what eight images of 8³ do: an encoder sees 4,096 of the 32,768 voxels of the cube."""
    encoder = count_operations(build_encoder(Architecture(base_width=4)), (8, 8, 8))
    tree = {"pretext": "rubiks-cube", "base_width": 4, "num_classification_epochs": 0, "num_joint_epochs": 1}
    small = load_settings("cpu-small")
    cube = settings_from({
        **small.model_dump(mode="json"), "pretraining": tree,
        "discovery": {"cube_shape": [32, 32, 32], "scales": [{"extent_mm": [32, 32, 32]}]},
    })  # fmt: skip
    seconds = pretraining(cube, 1, 0).core_s
    assert 8 * core_s(encoder) < seconds < 9 * core_s(encoder)


def test_an_epoch_of_one_scale_is_a_share_of_the_patterns() -> None:
    scales = "discovery.scales=[{extent_mm: [32, 32, 32]}, {extent_mm: [64, 64, 64]}, {extent_mm: [32, 32, 32]}]"
    epochs = ["pretraining.num_classification_epochs=0", "pretraining.num_joint_epochs=6", "pretraining.memory_gib=0"]
    mixed, staged = (
        load_settings("cpu-small", [scales, *epochs, f"pretraining.scale_stages={on}"]) for on in ("null", "true")
    )
    every, parts = (pretraining(each, 900, 0) for each in (mixed, staged))
    # Three epochs of the one large scale, then three of the two small ones: 300 and 600 of 900 patterns.
    assert parts.core_s == pytest.approx(every.core_s / 2) and parts.read_mib == pytest.approx(every.read_mib / 2)
    assert parts.stored_mib == every.stored_mib and parts.memory_gib == every.memory_gib
    assert every.what == "900 patterns × 6 epochs"
    assert parts.what == "900 patterns × 6 epochs, each of one of 2 scales"
    # Held-out patterns are those of all scales, in each epoch.
    held_out = [pretraining(each, 900, 90).core_s - pretraining(each, 900, 0).core_s for each in (mixed, staged)]
    assert held_out[0] == pytest.approx(held_out[1])
    # An early end is one in the midst of the stages that were planned.
    assert pretraining(staged, 900, 0, num_epochs=3).core_s == pytest.approx(every.core_s / 6)


def test_what_is_left_out_of_a_store_is_not_learnt_from() -> None:
    halves = load_settings("cpu-small", ["pretraining.num_neighbours=12", "pretraining.num_coordinates=4"])
    counts = StoreSize(learnt=1000, held_out=200, neighbours=24, coordinates=16)
    assert selected(halves.pretraining, counts) == (125, 50)  # held-out patients all, of a quarter of the places
    assert selected(load_settings("cpu-small").pretraining, counts) == (1000, 200)
    all_of_them = load_settings("cpu-small", ["pretraining.num_neighbours=99"])
    assert selected(all_of_them.pretraining, counts) == (1000, 200)
    shares = 12 / halves.discovery.num_neighbours * 4 / halves.discovery.num_coordinates
    learnt = num_patterns(halves.discovery, held_out=False)
    assert pretrain_work(halves.pretraining, halves.discovery).what.startswith(f"{round(learnt * shares):,} patterns")
    crops = load_settings(
        "cpu-small", ["pretraining.pretext=rotation", "discovery.num_crops=8", "pretraining.num_coordinates=2"]
    )
    told = {each.stage: each.what for each in pipeline_work(SCANS, crops)}
    assert told["crop"] == "8,000 crops" and told["pretrain"].startswith("1,600 crops ×")  # 800 scans, two of each


def test_without_a_weight_for_classification_none_is_learnt_alone() -> None:
    joint, alone = (
        pretraining(load_settings("cpu-small", [f"pretraining.lambda_cls={weight}"]), 1000, 0).core_s
        for weight in (0, 0.01)
    )
    assert joint > alone


def test_random_crops_need_no_discovery() -> None:
    stages = [each.stage for each in pipeline_work(SCANS, load_settings("cpu-small", ["pretraining.pretext=rotation"]))]
    assert stages == ["ingest", "crop", "pretrain", "finetune"]


def figures(found: Work) -> tuple[float, ...]:
    return found.core_s, found.gpu_s, found.read_mib, found.stored_mib, found.memory_gib


@limits(deadline=None, max_examples=30)  # the first counts the networks
@given(st.integers(1, 10**7), st.integers(0, 10**7))
def test_more_scans_are_never_less_work(number: int, more: int) -> None:
    settings = load_settings("paper-3d")
    pairs = zip(*(pipeline_work(ArchiveSize(count, 10, 6), settings) for count in (number, number + more)), strict=True)
    for one, other in pairs:
        if one.what.startswith("HNSW") == other.what.startswith("HNSW"):
            assert all(a <= b + 1e-9 for a, b in zip(figures(one), figures(other), strict=True))
