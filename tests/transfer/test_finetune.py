"""Fine-tuning as a whole: paired, without leaks, repeatable, growing, and going on where it was cut."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import ray

from raygenesis.archive.catalogue import read_catalogue, split_by_subject
from raygenesis.archive.intake.identity import open_identity
from raygenesis.errors import RaygenesisError, ScanError, SettingsError, WeightsError, WorkspaceError
from raygenesis.planning.announce import announce
from raygenesis.settings import Settings, settings_from
from raygenesis.training.experiment import TrainingError
from raygenesis.transfer.description import parse_description
from raygenesis.transfer.finetune import DEFAULT_SOURCES, FinetuneRequest, finetune
from raygenesis.workspace.files import blake2b_of, read_json
from raygenesis.workspace.manifest import TransferManifest
from raygenesis.workspace.workspace import Workspace
from tests.support.cases import write_run
from tests.support.targets import SHAPE, write_boxes, write_catalogue, write_sizes

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Target:
    """A target of ten subjects, of whom the archive holds seven."""

    tree: dict[str, Any] = {"task": "segmentation", "images": "images", "labels": "labels"}  # noqa: RUF012

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write()
        self.images, self.labels = root / "images", root / "labels"
        self.workspace = Workspace.open(root / "workspace")
        write_run(self.workspace.run("default"))
        write_catalogue(self.workspace, {f"a{n}": self.images / f"sub-{n}.nii.gz" for n in range(7)})
        self.folder = self.workspace.transfer("boxes")

    def write(self) -> None:
        write_boxes(self.root, 10)

    def settings(self, **finetune: Any) -> Settings:
        few = {"num_labelled": 2, "num_test": 3, "num_trials": 2, "num_steps": 3, "batch_size": 2, **finetune}
        return settings_from({"finetune": {"input_shape": list(SHAPE), **few}})

    def finetune(self, starts: tuple[str, ...] = DEFAULT_SOURCES, **finetune_settings: Any) -> TransferManifest:
        description = parse_description(self.tree, self.root, "target")
        request = FinetuneRequest("boxes", starts)
        return finetune(description, self.workspace, self.settings(**finetune_settings), request)

    def trial(self, start: str, labelled: int | str, number: int) -> dict[str, Any]:
        return read_json(self.folder / f"trial-{start}-{labelled}-{number}.json")

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.folder.glob("trial-*.json")}


class Sizes(Target):
    """Balls of different radii in ten subjects."""

    tree = {"task": "classification", "images": "images", "labels": "values.csv", "value_column": "size"}  # noqa: RUF012

    def write(self) -> None:
        write_sizes(self.root, 10)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Target, TransferManifest]:
    """A finished target; what tests do to it leaves it finished."""
    target = Target(tmp_path_factory.mktemp("target"))
    return target, target.finetune()


def test_the_table_says_what_the_trials_found(made: tuple[Target, TransferManifest]) -> None:
    target, manifest = made
    assert manifest.counts.examples == 10 and manifest.counts.test_examples == 3
    assert manifest.counts.pool_subjects == 7 and manifest.counts.left_out == 0
    made_by = ("finetune", "--target", "TARGET.yaml", "--from", "random", "--from", "default", "--name", "boxes")
    assert manifest.command == made_by and manifest.runs == {"default": "default"}
    with (target.folder / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["initialisation"] for row in table] == list(DEFAULT_SOURCES)
    for row, listed in zip(table, manifest.table, strict=True):
        dice = [target.trial(row["initialisation"], 2, n)["figures"]["dice"] for n in range(2)]
        assert float(row["mean"]) == listed["mean"] == pytest.approx(np.mean(dice))
        assert listed["sd"] == pytest.approx(np.std(dice, ddof=1))
        assert listed["seconds_per_trial"] > 0 and listed["epochs_to_converge"] > 0
    assert sum(row["is_best"] for row in manifest.table) == 1
    for ending in ("md", "tex"):
        text = (target.folder / f"table.{ending}").read_text()
        assert "random" in text and "default" in text
    with np.load(target.folder / "example.npz") as example:
        assert set(example) == {"image", "label", "prediction_random", "prediction_default"}
        assert {array.shape for array in example.values()} == {(18, 16)} and example["label"].max() > 0


def test_trials_are_paired_and_nobody_seen_in_pretraining_is_tested_on(made: tuple[Target, TransferManifest]) -> None:
    target, _ = made
    test_files = set()
    for number in range(2):
        random, ours = (target.trial(start, 2, number) for start in DEFAULT_SOURCES)
        assert random["learnt_from"] == ours["learnt_from"] and random["seed"] == ours["seed"]
        assert random["loss"] != ours["loss"]
        tested = {case["name"] for case in random["test"]}
        assert not tested & set(random["learnt_from"]) and len(tested) == 3
        assert tested == {case["name"] for case in ours["test"]}
        test_files |= tested
    rows = {path.name: blake2b_of(path) for path in target.images.iterdir()}
    training, _ = split_by_subject(read_catalogue(target.workspace.catalog), 0.2, 0)
    assert not {rows[name] for name in test_files} & {row["volume_id"] for row in training}


def test_trials_know_subjects_as_the_archive_does(made: tuple[Target, TransferManifest]) -> None:
    """By a keyed hash: of DICOM the name is a patient's id."""
    target, _ = made
    identity = open_identity(target.workspace, keep_ids=False)
    for case in target.trial("default", 2, 1)["test"]:
        assert case["subject"] == identity.subject(case["name"].removesuffix(".nii.gz")) != case["name"]


def test_predictions_lie_on_the_scans_own_voxels(made: tuple[Target, TransferManifest]) -> None:
    target, _ = made
    written = sorted((target.folder / "predictions" / "default-2").glob("*.nii.gz"))
    assert {path.name for path in written} == {case["name"] for case in target.trial("default", 2, 0)["test"]}
    for path in written:
        predicted, scan = nibabel.load(path), nibabel.load(target.images / path.name)
        assert predicted.shape == scan.shape and np.allclose(predicted.affine, scan.affine)
        counts = np.bincount(np.asarray(predicted.dataobj).ravel(), minlength=3)[1:]
        told = next(case for case in target.trial("default", 2, 0)["test"] if case["name"] == path.name)
        assert counts.tolist() == told["voxels_predicted"]


def test_a_second_call_does_nothing_and_other_settings_are_refused(
    made: tuple[Target, TransferManifest], capsys: pytest.CaptureFixture[str]
) -> None:
    target, manifest = made
    before = {path: path.stat().st_mtime_ns for path in target.folder.iterdir()}
    assert target.finetune() == manifest
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in target.folder.iterdir()} == before
    with pytest.raises(WorkspaceError, match=r"finetune\.num_steps was 3 and is now 4"):
        target.finetune(num_steps=4)


@pytest.mark.slow
def test_a_lost_trial_alone_is_run_again_to_the_same_result_and_more_are_added(
    made: tuple[Target, TransferManifest],
) -> None:
    target, manifest = made
    lost = target.folder / "trial-default-2-1.json"
    result = read_json(lost)
    (target.folder / "manifest.json").unlink()
    lost.unlink()
    before = target.times()
    again = target.finetune()
    assert {name: time for name, time in target.times().items() if name in before} == before
    # Another process may sum in another order.
    about = {"loss": pytest.approx(result["loss"], rel=1e-4), "seconds": 0, "seconds_to_converge": 0}
    assert {**read_json(lost), "seconds": 0, "seconds_to_converge": 0} == {**result, **about}
    assert [row["mean"] for row in again.table] == [row["mean"] for row in manifest.table]
    before = target.times()
    more = target.finetune(num_labelled=[2, "100%"], num_trials=3)
    assert {name: time for name, time in target.times().items() if name in before} == before
    assert [(row["initialisation"], row["labelled"], row["trials"]) for row in more.table] == [
        ("random", 2, 3), ("default", 2, 3), ("random", "100%", 3), ("default", "100%", 3),
    ]  # fmt: skip
    with np.load(target.folder / "example.npz") as shown:
        for start in DEFAULT_SOURCES:
            with np.load(target.folder / f"example-{start}-100percent.npz") as most:  # whichever trial ended last
                assert np.array_equal(shown[f"prediction_{start}"], most["prediction"])
    few, all_of_them = target.trial("random", 2, 0), target.trial("random", "100percent", 0)
    assert all_of_them["subjects"] == 7 and set(few["learnt_from"]) < set(all_of_them["learnt_from"])


def test_trials_take_pretrainings_in_turn_and_one_more_runs_only_those_that_change(tmp_path: Path) -> None:
    target = Target(tmp_path)
    for name in ("second", "third"):
        write_run(target.workspace.run(name), norm="batch")
    one = target.finetune(("random", "ours=default"), num_trials=4, num_steps=1)
    assert one.runs == {"ours": "default"} and one.table[1]["pretrainings"] == 1
    before = target.times()
    two = target.finetune(("random", "ours=default,second"), num_trials=4, num_steps=1)
    kept = {name for name, time in target.times().items() if before[name] == time}
    assert kept == {*(f"trial-random-2-{n}.json" for n in range(4)), "trial-ours-2-0.json", "trial-ours-2-2.json"}
    assert [target.trial("ours", 2, number)["source"] for number in range(4)] == [0, 1, 0, 1]
    assert two.runs == {"ours": "default,second"} and two.extent.initialisations["ours"] == "of default,of second"
    assert [row["pretrainings"] for row in two.table] == [0, 2] and two.table[1]["p_seeds_against_random"] is not None
    assert two.shown[1]["pretrainings"] == "2" and "p seeds" in two.shown[1]
    before = target.times()
    target.finetune(("random", "ours=default,second,third"), num_trials=4, num_steps=1)
    changed = {name for name, time in target.times().items() if before[name] != time}
    assert changed == {"trial-ours-2-2.json", "trial-ours-2-3.json"}  # trial 3 begins with source 0 again
    random, ours = (target.trial(start, 2, 1) for start in ("random", "ours"))
    assert random["learnt_from"] == ours["learnt_from"] and random["seed"] == ours["seed"]
    with pytest.raises(SettingsError, match=r"num_trials=2 is fewer than the 3 pretrainings of ours"):
        target.finetune(("random", "ours=default,second,third"), num_trials=2, num_steps=1)


GRID = {"learning_rate": [0.001, 0.02, 1e30], "num_validation": 2, "num_steps": 6}


def test_each_initialisation_gets_the_rate_that_validation_likes_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target(tmp_path)
    manifest = target.finetune(**GRID)
    assert {(rate.initialisation, rate.labelled) for rate in manifest.rates} == {("random", 2), ("default", 2)}
    tuned = {path.name: read_json(path) for path in target.folder.glob("tuning-*.json")}
    assert set(tuned) == {
        f"tuning-{start}-2-{rate}-{n}.json" for start in DEFAULT_SOURCES for rate in (0.001, 0.02) for n in (0, 1)
    }
    tested = {case["name"] for case in target.trial("random", 2, 0)["test"]}
    for result in tuned.values():  # a tuning trial knows nobody who is tested on
        names = {case["name"] for case in result["test"]} | set(result["learnt_from"])
        assert not names & tested and len(result["test"]) == 2
    for chosen in manifest.rates:
        means = {
            rate: np.mean(
                [tuned[f"tuning-{chosen.initialisation}-2-{rate}-{n}.json"]["figures"]["dice"] for n in (0, 1)]
            )
            for rate in (0.001, 0.02)
        }
        assert chosen.scores == pytest.approx({f"{rate:g}": mean for rate, mean in means.items()})
        assert chosen.rate == max(means, key=means.__getitem__)
        trials = [target.trial(chosen.initialisation, 2, number) for number in (0, 1)]
        assert {trial["rate"] for trial in trials} == {chosen.rate}
        row = next(row for row in manifest.table if row["initialisation"] == chosen.initialisation)
        shown = next(row for row in manifest.shown if row["initialisation"] == chosen.initialisation)
        assert row["rate"] == chosen.rate and shown["rate"] == f"{chosen.rate:g}"
        for trial in trials:  # on the validation subjects, after each of six steps, the best of which is kept
            assert [step for step, _ in trial["curve"]] == [1, 2, 3, 4, 5, 6]
    said = capsys.readouterr().out
    assert "random, 2 labelled: learning rate 0." in said and "1e+30: diverged)" in said
    assert {path.name.partition("-")[0] for path in (target.folder / "predictions").iterdir()} == set(DEFAULT_SOURCES)
    before = {path: path.stat().st_mtime_ns for path in target.folder.glob("t*-*.json")}
    (target.folder / "manifest.json").unlink()
    assert target.finetune(**GRID).rates == manifest.rates
    assert {path: path.stat().st_mtime_ns for path in target.folder.glob("t*-*.json")} == before


def test_where_every_rate_diverges_it_is_one_sentence(tmp_path: Path) -> None:
    target = Target(tmp_path)
    with pytest.raises(TrainingError, match=r"^4 of 4 trials failed, .* the loss is \w+ at step \d+: lower finetune"):
        target.finetune(("random",), **GRID | {"learning_rate": [1e30, 1e31]})


@pytest.mark.parametrize("mode", ["full", "frozen", "knn"])
def test_sizes_are_classified_in_every_mode(tmp_path: Path, mode: str) -> None:
    target = Sizes(tmp_path)
    manifest = target.finetune(mode=mode, num_labelled=4, num_steps=20, learning_rate=0.01)
    assert manifest.task == "classification" and manifest.classes == ("big", "small")
    for trial in (target.trial(start, 4, number) for start in DEFAULT_SOURCES for number in range(2)):
        assert {case["value"] for case in trial["test"]} == {0, 1}
        assert all(sum(case["answer"]) == pytest.approx(1) for case in trial["test"])
        assert (trial["steps"] > 0) == (mode == "full")
    assert not (target.folder / "predictions").exists()


def test_the_settings_own_pretext_task_refuses_no_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rotation could not be posed on inputs that are no squares, and its network's corruption would not fit them."""
    target = Sizes(tmp_path)
    tree = target.settings(mode="frozen", input_shape=[8, 16, 24]).model_dump(mode="json")
    tree["pretraining"] |= {"pretext": "rotation"}
    described_as = parse_description(target.tree, target.root, "target")
    settings = settings_from(tree)
    manifest = finetune(
        described_as, target.workspace, settings, FinetuneRequest("boxes"),
        lambda left: announce(left, target.workspace, settings),
    )  # fmt: skip
    assert manifest.counts.trials == 4 and "finetune: 4 trials: about" in capsys.readouterr().out


def test_radii_are_told_better_than_by_their_mean(tmp_path: Path) -> None:
    target = Sizes(tmp_path)
    target.tree = {**target.tree, "task": "regression", "value_column": "radius"}
    manifest = target.finetune(starts=("random",), num_labelled=7, mode="frozen")
    (row,) = manifest.table
    assert row["metric"] == "mae" and row["p_against_random"] is None
    spread = np.mean([abs(case["value"] - 5) for case in target.trial("random", 7, 0)["test"]])
    assert row["mean"] < spread and row["mean_correlation"] > 0.5


def test_bad_examples_are_named_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = Target(tmp_path)
    empty = nibabel.Nifti1Image(np.zeros((16, 18, 20), np.uint8), np.eye(4))
    nibabel.save(empty, target.labels / "sub-0.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), target.labels / "sub-1.nii.gz")
    (target.images / "sub-2.nii.gz").write_bytes(b"no image")
    (target.images / "sub-3.nii.gz").unlink()
    manifest = target.finetune(starts=("random",), num_labelled="100%", num_test=2)  # all are drawn, so all are opened
    assert manifest.counts.examples == 6 and manifest.counts.left_out == 4
    with (target.folder / "failures.csv").open() as file:
        reasons = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == {f"sub-{n}.nii.gz" for n in range(4)}
    assert "empty mask" in reasons["sub-0.nii.gz"] and "5×5×5" in reasons["sub-1.nii.gz"]
    assert "without an image" in reasons["sub-3.nii.gz"]
    assert "4 left out (failures.csv lists them), such as:" in capsys.readouterr().out


def test_labels_with_a_gap_are_one_sentence(tmp_path: Path) -> None:
    target = Target(tmp_path)
    for path in target.labels.iterdir():
        label = np.asarray(nibabel.load(path).dataobj)
        nibabel.save(nibabel.Nifti1Image(label * 2, np.eye(4)), path)
    with pytest.raises(ScanError, match=r"^the label maps hold the values \[0, 2, 4\]"):
        target.finetune()


@pytest.mark.slow
def test_a_failed_trial_leaves_the_others_and_is_named(tmp_path: Path) -> None:
    target = Target(tmp_path)
    with pytest.raises(TrainingError, match=r"^4 of 4 trials failed, .* the loss is nan at step \d+: lower finetune"):
        target.finetune(learning_rate=1e30, num_steps=6)
    assert read_json(target.folder / "manifest.json") is None and not target.times()


@pytest.mark.parametrize(
    ("starts", "error", "words"),
    [
        (("random", "nothing"), WorkspaceError, "run `raygenesis pretrain` first"),
        (("random", "a/b.pt"), WeightsError, "a/b.pt"),
        (("random", "random"), SettingsError, "two initialisations are called 'random'"),
        (("default", "default=random"), SettingsError, "two initialisations are called 'default'"),
    ],
)
def test_initialisations_that_are_not_there_are_one_sentence(
    tmp_path: Path, starts: tuple[str, ...], error: type[RaygenesisError], words: str
) -> None:
    target = Target(tmp_path)
    with pytest.raises(error) as raised:
        target.finetune(starts)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert not target.folder.exists()


@pytest.mark.slow
def test_a_2d_run_works_slice_by_slice_and_a_gpu_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    target = Target(tmp_path)
    write_run(target.workspace.run("flat"), ndim=2)
    manifest = target.finetune(("random", "flat"))
    assert [row["initialisation"] for row in manifest.table] == ["random", "flat"]
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(SettingsError, match=r"finetune\.num_gpus=1 needs 1 × 1 CPU and 1 GPU"):
        target.finetune(("random", "flat"), num_gpus=1, num_trials=3)


@pytest.mark.slow
def test_only_what_is_drawn_is_opened_and_a_changed_label_map_is_another_target(tmp_path: Path) -> None:
    target, again = Target(tmp_path), Target(tmp_path / "again")
    for each in (target, again):
        each.workspace.catalog.unlink()  # nobody is seen, whatever becomes of files
    target.finetune(starts=("random",))
    trials = [target.trial("random", 2, number) for number in range(2)]
    used = {name for trial in trials for name in trial["learnt_from"]} | {case["name"] for case in trials[0]["test"]}
    idle = next(path for path in sorted(target.images.iterdir()) if path.name not in used)
    (again.images / idle.name).write_bytes((again.images / idle.name).read_bytes()[:100])
    assert again.finetune(starts=("random",)).counts.left_out == 0
    label = target.labels / idle.name
    nibabel.save(nibabel.Nifti1Image(1 - np.asarray(nibabel.load(label).dataobj).clip(0, 1), np.eye(4)), label)
    with pytest.raises(WorkspaceError, match="not made from the present target"):
        target.finetune(starts=("random",))
