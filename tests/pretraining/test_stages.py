"""Stages by scale: which scales an epoch learns from, of which samples its batches are, and where it is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from raygenesis.errors import SettingsError
from raygenesis.pretraining.stages import check_crops, check_epochs, coarse_to_fine, stage_of
from raygenesis.pretraining.stores import check_pretext, pretext_task
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import PretrainingSettings, Scale, settings_from
from raygenesis.training.checkpoints import copy_state
from raygenesis.training.experiment import TrainingError, best_of
from raygenesis.training.loop import Callbacks, run_epochs
from raygenesis.training.workers import Workers
from raygenesis.workspace.artifacts import CROPS, PATTERNS
from tests.support.experiments import equal, without_timings
from tests.support.orders import training_batches
from tests.support.stores import StorePlan
from tests.support.synthetic import pattern_table, samples

SHAPE = (32, 32)


def scales_of(*sides):
    return [Scale(extent_mm=(side, side)) for side in sides]


def table(num, first=0, num_scales=2):
    """Scales alternate from row to row, as in a store."""
    made = pattern_table(num, SHAPE, first=first)
    return made.append_column("scale", pa.array(np.arange(num) % num_scales, pa.int8()))


def task(stages=((1,), (0,)), **settings):
    chosen = {
        "base_width": 2, "batch_size": 4, "num_classification_epochs": 2, "num_joint_epochs": 4, "scale_stages": True,
        **settings,
    }  # fmt: skip
    return PretextTask(PretrainingSettings(**chosen), 0, SHAPE, 1, 2, stages=stages)


# --- the stages of a store, and of an epoch -------------------------------------------------------


def test_the_largest_extent_comes_first_and_scales_of_one_extent_are_one_stage():
    assert coarse_to_fine(scales_of(32, 64, 48)) == ((1,), (2,), (0,))
    assert coarse_to_fine(scales_of(48, 64, 48, 64)) == ((1, 3), (0, 2))
    # By what a crop covers, whatever its form.
    assert coarse_to_fine([Scale(extent_mm=(20, 60)), Scale(extent_mm=(40, 40))]) == ((1,), (0,))


@pytest.mark.parametrize("sides", [(32,), (45, 45, 45)])
def test_one_extent_makes_no_stages(sides):
    with pytest.raises(SettingsError, match=r"^pretraining\.scale_stages=true needs .* of different extents, .* alone"):
        coarse_to_fine(scales_of(*sides))


def test_each_phases_epochs_are_divided_evenly_in_order():
    for first, second in ((0, 7), (3, 9), (5, 4), (4, 4)):
        phases = ["classification"] * first + ["joint"] * second
        for num_stages in (1, 2, 3):
            stages = [stage_of(epoch, phases, num_stages) for epoch in range(len(phases))]
            for part in (stages[:first], stages[first:]):
                counts = [part.count(stage) for stage in range(num_stages)] if part else [1]
                assert part == sorted(part) and max(counts) - min(counts) <= 1 and min(counts) >= 1


def test_a_phase_too_short_for_its_stages_is_refused():
    said = r"^pretraining\.scale_stages=true divides .* among 2 scales, and the phase {} has 1: raise .*leave .* out$"
    with pytest.raises(SettingsError, match=said.format("classification")):
        task(num_classification_epochs=1)
    with pytest.raises(SettingsError, match=said.format("joint")):
        task(num_joint_epochs=1)
    with pytest.raises(SettingsError, match=said.format("restoration")):
        task(pretext="models-genesis", num_classification_epochs=0, num_joint_epochs=1)
    task(num_classification_epochs=0)  # a phase without epochs has no stages
    task(pretext="models-genesis", num_classification_epochs=1, num_joint_epochs=1)  # two epochs of one phase
    check_epochs(["joint"], 0)


def test_crops_of_too_few_scales_are_refused():
    check_crops(3, 3)
    with pytest.raises(SettingsError, match=r"each of the 3 scales .* the 2 crops of a scan in use have fewer: raise"):
        check_crops(2, 3)


@pytest.mark.parametrize("references", [1, 0])
def test_the_stages_are_those_of_the_store(tmp_path, references):
    kind, pretext = (PATTERNS, "semantic-genesis") if references else (CROPS, "models-genesis")
    folder = tmp_path / kind.name
    StorePlan(references, coordinates=2, scales=2, shape=SHAPE).write(folder)
    store = kind.require(folder)
    settings = PretrainingSettings(pretext=pretext, scale_stages=True, num_classification_epochs=4, num_joint_epochs=4)
    extents = [{"extent_mm": [side, side]} for side in (30, 60)]
    store = replace(store, settings={"discovery": {"scales": extents}})
    assert pretext_task(settings, 0, store).stages == ((1,), (0,))
    assert pretext_task(settings.model_copy(update={"scale_stages": None}), 0, store).stages == ()
    assert pretext_task(settings.model_copy(update={"scale_stages": False}), 0, store).stages == ()
    one = replace(store, settings={"discovery": {"scales": extents[:1]}})
    with pytest.raises(SettingsError, match="scale_stages=true needs a store with scales of different extents"):
        pretext_task(settings, 0, one)
    fewer = settings.model_copy(update={"num_coordinates": 1})
    if references:
        assert pretext_task(fewer, 0, store).stages == ((1,), (0,))  # each coordinate is there at each scale
    else:
        with pytest.raises(SettingsError, match="the 1 crops of a scan in use have fewer"):
            pretext_task(fewer, 0, store)


def test_a_store_that_is_yet_to_be_made_is_checked_by_the_settings():
    tree = {"discovery": {"cube_shape": SHAPE, "scales": [{"extent_mm": SHAPE}]}, "autoencoder": {"input_shape": SHAPE}}
    settings = settings_from(tree | {"pretraining": {"scale_stages": True}})
    with pytest.raises(SettingsError, match="scale_stages=true needs a store"):
        check_pretext(settings.pretraining, settings.discovery)


# --- training -------------------------------------------------------------------------------------


def trained(chosen, state=None):
    """Ids of each step's batch with its epoch, the states after each step, and the end."""
    seen, states, rows = [], [], []

    class Watching(PretextTask):
        def losses(self, model, batch, epoch, teacher=None):
            seen.append((epoch, batch.columns["pattern_id"].tolist()))
            return super().losses(model, batch, epoch)

    watching = Watching(**{name: getattr(chosen, name) for name in chosen.__dataclass_fields__})

    def keep(now, row):
        states.append(copy_state(now.state()))
        rows.append(dict(row))

    train, held_out = samples(table(26), SHAPE), samples(table(8, 100), SHAPE)
    now = run_epochs(watching, train, held_out, state=state, callbacks=Callbacks(on_step=keep))
    return seen, states, rows, now


def test_an_epochs_batches_are_of_its_scale_alone_and_the_rest_of_the_table_waits():
    chosen = task()
    seen, states, rows, now = trained(chosen)
    assert [row["phase"] for row in now.history] == ["classification"] * 2 + ["joint"] * 4
    for epoch, scale in enumerate([1, 0, 1, 1, 0, 0]):
        batches = [ids for number, ids in seen if number == epoch]
        assert [len(ids) for ids in batches] == [4] * 3  # of 13 patterns of the scale
        ids = [number for batch in batches for number in batch]
        assert len(set(ids)) == 12 and {number % 2 for number in ids} == {scale}
        own = [row for row in rows if row["epoch"] == epoch]
        assert [row["share"] for row in own] == pytest.approx([1 / 3, 2 / 3, 1])
        row = now.history[epoch]
        assert row["cubes_per_s"] * row["seconds"] == pytest.approx(12)
    assert seen[3:6] != seen[12:15]  # each epoch has an order of its own
    for steps in (2, 3, 4, 8):  # in the midst of epochs, and between them
        again, _, _, resumed = trained(chosen, state=states[steps - 1])
        assert again == seen[steps:]
        assert without_timings(resumed.history) == without_timings(now.history)
        assert equal(resumed.model.state_dict(), now.model.state_dict())


def test_workers_share_the_batches_of_a_scale():
    chosen, train = task(), samples(table(26), SHAPE)
    for epoch in (0, 1):
        selected = train.select(chosen.learns_from(train.columns, epoch))
        alone, *shares = (
            training_batches(len(selected), 4, 0, epoch, workers)
            for workers in (Workers(), *(Workers(rank=rank, world_size=2) for rank in range(2)))
        )
        for (whole,), *parts in zip(alone, *shares, strict=True):
            ids = [selected.columns["pattern_id"][rows] for rows in (whole, *(rows for (rows,) in parts))]
            assert np.array_equal(ids[0], np.concatenate(ids[1:])) and len(set(ids[0] % 2)) == 1


def test_without_stages_every_epoch_learns_from_all():
    chosen = task(stages=(), scale_stages=None)
    assert chosen.learns_from({}, 3) is None and chosen.scales(0) is None
    seen, *_ = trained(chosen)
    assert all(
        {number % 2 for epoch, ids in seen if epoch == number_ for number in ids} == {0, 1} for number_ in (0, 3)
    )


def test_the_best_epoch_and_patience_are_those_of_the_last_scale():
    chosen = task(num_joint_epochs=6, patience=2)
    losses = [(0, "classification", 0.1), (1, "classification", 0.1), (2, "joint", 0.1), (3, "joint", 0.1)]
    losses += [(4, "joint", 0.1), (5, "joint", 3.0), (6, "joint", 2.0), (7, "joint", 2.5)]
    history = [
        {"epoch": epoch, "phase": phase, "val_loss": loss, "val_classification": 1.0} for epoch, phase, loss in losses
    ]
    assert best_of(chosen, history)["epoch"] == 6
    assert [chosen.should_stop(history[:number]) for number in range(9)] == [False] * 9
    assert chosen.should_stop([*history, history[-1] | {"epoch": 8}])
    # Before it, the newest is the best.
    assert best_of(chosen, history[:5])["epoch"] == 4


def test_a_scale_with_fewer_samples_than_workers_is_refused_at_the_start():
    few = table(9).filter(pa.array([True] * 2 + [False, True] * 3 + [False]))  # one of scale 0, four of scale 1
    tables = [samples(few, SHAPE), samples(table(8, 100), SHAPE)]
    with pytest.raises(TrainingError, match=r"1 training samples are too few for 2 worker\(s\)"):
        run_epochs(task(), *tables, workers=Workers(world_size=2))


def test_an_epoch_of_a_scale_is_the_epoch_of_a_store_of_that_scale_alone():
    alone = table(26).filter(pa.array(np.arange(26) % 2 == 1))
    held_out = samples(table(8, 100), SHAPE)
    plain = run_epochs(task(stages=(), scale_stages=None), samples(alone, SHAPE), held_out).history[0]
    staged = run_epochs(task(), samples(table(26), SHAPE), held_out).history[0]
    assert without_timings([staged]) == without_timings([plain])
