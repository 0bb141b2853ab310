"""Few-shot fine-tuning: learns, is paired and repeatable, and goes on where it was cut."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from torch import nn

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue, split_by_subject
from raygenesis.archive.identity import open_identity
from raygenesis.archive.intake import file_fingerprint
from raygenesis.config import FinetuneSettings, IntensitySettings, Settings
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.pretraining.networks import Architecture, PretextNetwork, UNet
from raygenesis.pretraining.weights import export
from raygenesis.settings import settings_from
from raygenesis.transfer.finetune import INITIALISATIONS, PRETRAINED, RANDOM, build_unet, finetune
from raygenesis.transfer.segmentation import draw_patches, score, segment, train_segmenter
from raygenesis.transfer.target import Case, common_spacing, find_labelled, read_case, split_scans
from raygenesis.workspace import Workspace, read_json, write_json, write_table
from tests.data import HIPPOCAMPI, needs_hippocampi

SHAPE = (16, 16, 16)
QUICK = FinetuneSettings(num_steps=60, batch_size=4, learning_rate=1e-2)


def box_case(seed: int, shape: tuple[int, ...] = (20, 18, 16)) -> Case:
    """Noise with a bright box (class 1) and a dark one (class 2) in it."""
    generator = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for value in (1, 2):
        corner = [int(generator.integers(0, side - 7)) for side in shape]
        label[tuple(slice(begin, begin + 7) for begin in corner)] = value
    image = np.choose(label, (0.5, 0.9, 0.1)) + generator.normal(0, 0.05, shape)
    return Case(f"case-{seed}", image.clip(0, 1).astype(np.float32), label)


def write_target(folder: Path, num_subjects: int) -> None:
    for name, of_case in (("images", lambda case: (case.image * 1000).astype(np.int16)), ("labels", lambda c: c.label)):
        (folder / name).mkdir(parents=True)
        for n in range(num_subjects):
            nibabel.save(nibabel.Nifti1Image(of_case(box_case(n)).T, np.eye(4)), folder / name / f"sub-{n}.nii.gz")


def network(ndim: int) -> PretextNetwork:
    return PretextNetwork(Architecture(ndim=ndim, base_width=2, head="classification", num_classes=8))


def write_run(folder: Path, ndim: int = 3) -> Path:
    """What pretraining would leave."""
    folder.mkdir(parents=True)
    torch.manual_seed(7)
    export(network(ndim), folder, {})
    write_json(folder / "manifest.json", {"fingerprint": "made up"})
    return folder


def write_catalogue(workspace: Workspace, scans: dict[str, Path]) -> None:
    """An archive of these scans: subject → file."""
    rows = [
        {"volume_id": file_fingerprint(path), "subject_id": subject, "source": path.name,
         "source_bytes": path.stat().st_size}
        for subject, path in scans.items()
    ]  # fmt: skip
    workspace.archive.mkdir(parents=True)
    open_identity(workspace, keep_ids=False)
    write_table(workspace.catalog, pa.Table.from_pylist(rows, CATALOGUE))


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in module.state_dict().values()])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "default")


def test_initialisations_share_the_output_layer_and_nothing_else(run_folder: Path) -> None:
    random, ours, other = (
        build_unet(start, run_folder, 3, seed) for start, seed in ((RANDOM, 1), (PRETRAINED, 1), (RANDOM, 2))
    )
    torch.manual_seed(7)
    pretrained = network(3)
    assert torch.equal(flat(ours.encoder), flat(pretrained.encoder))
    assert torch.equal(flat(ours.decoder.levels), flat(pretrained.decoder.levels))
    assert torch.equal(flat(ours.decoder.output), flat(random.decoder.output))
    assert not torch.equal(flat(other.decoder.output), flat(random.decoder.output))
    for name, weights in random.named_parameters():
        if "output" not in name and weights.ndim > 1:
            assert not torch.equal(weights, ours.get_parameter(name)), name
            assert not torch.equal(weights, other.get_parameter(name)), name


def test_random_weights_are_those_of_a_new_network_in_scale_and_statistics(run_folder: Path) -> None:
    new = torch.nn.utils.parameters_to_vector(UNet(3, Architecture(base_width=2)).parameters()).detach()
    random = build_unet(RANDOM, run_folder, 3, 1)
    ours = torch.nn.utils.parameters_to_vector(random.parameters()).detach()
    assert ours.std() == pytest.approx(new.std().item(), rel=0.1)
    for name, value in random.named_buffers():
        expected = 1.0 if name.endswith("running_var") else 0.0
        assert (value == expected).all(), name


def test_building_does_not_touch_the_callers_generator(run_folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build_unet(PRETRAINED, run_folder, 3, 1)
    drawn = torch.rand(1)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_training_learns_and_repeats_itself(ndim: int) -> None:
    shape = (24, 20, 18)[:ndim]
    cases = [box_case(seed, shape) for seed in range(3)]
    losses = []
    for num_steps in (5, QUICK.num_steps):
        torch.manual_seed(0)
        unet = UNet(3, Architecture(ndim=ndim, base_width=2))
        few = QUICK.model_copy(update={"num_steps": num_steps})
        losses.append(train_segmenter(unet, cases, few, SHAPE[:ndim], seed=5))
    assert losses[0] == losses[1][:5]
    assert np.mean(losses[1][-5:]) < 0.6 * losses[1][0]
    unseen = box_case(99, shape)
    predicted = segment(unet, unseen.image, SHAPE[:ndim], 4)
    assert predicted.shape == unseen.label.shape and predicted.dtype == np.uint8
    assert score(predicted, unseen.label, 3)["dice"] > 0.5


def test_every_other_patch_is_centred_on_foreground_and_image_and_label_fit() -> None:
    case = box_case(0, (64, 64, 64))
    # Each voxel of the image tells its own place, so that a patch tells where it was cut.
    places = Case("places", np.arange(64**3, dtype=np.float32).reshape(64, 64, 64), case.label)
    generator = np.random.default_rng(0)
    images, labels = draw_patches([places], [np.flatnonzero(case.label)], (8, 8, 8), 400, generator)
    assert images.shape == labels.shape == (400, 1, 8, 8, 8)
    assert np.array_equal(labels, case.label.ravel()[images.astype(int)])
    corners = np.array(np.unravel_index(images[:, 0, 0, 0, 0].astype(int), (64, 64, 64))).T
    inside = (corners > 0).all(1) & (corners < 56).all(1)
    even = np.arange(400) % 2 == 0
    assert inside[even].sum() > 100 and (labels[even & inside, 0, 4, 4, 4] > 0).all()
    assert (labels[~even, 0, 4, 4, 4] > 0).mean() < 0.05
    assert corners[~even].min() == 0 and corners[~even].max() == 56  # up to the edges


def test_a_case_without_foreground_still_gives_patches() -> None:
    empty = Case("empty", np.zeros((8, 8, 8), np.float32), np.zeros((8, 8, 8), np.uint8))
    _, labels = draw_patches([empty], [np.flatnonzero(empty.label)], (8, 8, 8), 4, np.random.default_rng(0))
    assert labels.shape == (4, 1, 8, 8, 8) and labels.max() == 0


def test_scores_against_counting() -> None:
    label = np.array([[0, 1, 1, 1], [0, 0, 2, 2]], np.uint8)
    predicted = np.array([[1, 1, 1, 0], [0, 0, 2, 0]], np.uint8)
    found = score(predicted, label, 3)
    assert found["dice_per_class"] == pytest.approx([2 * 2 / (3 + 3), 2 * 1 / (2 + 1)])
    assert found["iou_per_class"] == pytest.approx([2 / 4, 1 / 2])
    assert found["dice"] == pytest.approx(2 / 3) and found["iou"] == pytest.approx(0.5)


def test_a_class_that_is_not_there_scores_one_unless_it_is_predicted() -> None:
    label = np.array([[0, 1, 1, 0]], np.uint8)
    assert score(label, label, 3)["dice_per_class"] == [1, 1]
    assert score(label, label, 3)["iou_per_class"] == [1, 1]
    wrong = np.array([[2, 1, 1, 0]], np.uint8)
    assert score(wrong, label, 3)["dice_per_class"] == [1, 0]
    assert score(wrong, label, 3)["iou_per_class"] == [1, 0]


def test_a_scan_larger_than_a_patch_is_segmented_as_if_seen_whole() -> None:
    class Threshold(nn.Module):
        """Class 1 where a voxel is bright: needs no context, so windows must not matter."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full_like(images, 0.7), images * self.weight], 1)

    case = box_case(3, (37, 21, 16))
    assert np.array_equal(segment(Threshold(), case.image, SHAPE, 3), case.image > 0.7)


class Target:
    """A target of ten subjects, of whom the archive holds seven."""

    def __init__(self, root: Path) -> None:
        write_target(root, 10)
        self.images, self.labels = root / "images", root / "labels"
        self.workspace = Workspace.open(root / "workspace")
        write_run(self.workspace.run("default"))
        write_catalogue(self.workspace, {f"a{n}": self.images / f"sub-{n}.nii.gz" for n in range(7)})
        self.folder = self.workspace.transfer("boxes")

    def settings(self, **finetune: Any) -> Settings:
        few = {"num_labelled": 2, "num_test": 3, "num_trials": 2, "num_steps": 3, "batch_size": 2, **finetune}
        return settings_from({"finetune": {"patch_shape": list(SHAPE), **few}})

    def finetune(self, **finetune_settings: Any) -> dict[str, Any]:
        settings = self.settings(**finetune_settings)
        return finetune(self.images, self.labels, self.workspace, settings, "default", "boxes")

    def trial(self, start: str, number: int) -> dict[str, Any]:
        return read_json(self.folder / f"trial-{start}-{number}.json")


def test_from_labelled_scans_to_the_table(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target(tmp_path)
    manifest = target.finetune()
    _check_manifest(target, manifest)
    _check_trials_are_paired_and_do_not_leak(target)
    with np.load(target.folder / "example.npz") as example:
        assert set(example) == {"image", "label", *INITIALISATIONS}
        assert {array.shape for array in example.values()} == {(18, 16)} and example["label"].max() > 0
    _check_a_second_call_does_nothing(target, manifest, capsys)
    _check_it_goes_on_where_it_was_cut(target, manifest)


def _check_manifest(target: Target, manifest: dict[str, Any]) -> None:
    assert manifest["classes"] == [0, 1, 2] and manifest["run"] == "default"
    assert manifest["counts"] == {
        "labelled_scans": 10, "test_scans": 3, "pool_subjects": 7, "initialisations": 2, "trials": 2,
    }  # fmt: skip
    assert manifest["inputs"]["run"] == "made up"
    with (target.folder / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["initialisation"] for row in table] == list(INITIALISATIONS)
    for row, listed in zip(table, manifest["table"], strict=True):
        dice = [target.trial(row["initialisation"], n)["dice"] for n in range(2)]
        assert float(row["dice_mean"]) == listed["dice_mean"] == pytest.approx(np.mean(dice))
        assert listed["dice_sd"] == pytest.approx(np.std(dice, ddof=1))


def _check_trials_are_paired_and_do_not_leak(target: Target) -> None:
    held_out = {f"sub-{n}.nii.gz" for n in (7, 8, 9)}
    test_files = set()
    for number in range(2):
        random, ours = (target.trial(start, number) for start in INITIALISATIONS)
        assert random["labelled"] == ours["labelled"] and random["seed"] == ours["seed"]
        assert random["loss"] != ours["loss"]
        tested = {case["name"] for case in random["test"]}
        assert not tested & set(random["labelled"]) and len(tested) == 3
        assert tested == {case["name"] for case in ours["test"]}
        test_files |= tested
        for case in random["test"]:
            assert case["dice"] == pytest.approx(np.mean(case["dice_per_class"]))
    rows = {path.name: file_fingerprint(path) for path in target.images.iterdir()}
    training, _ = split_by_subject(read_catalogue(target.workspace.catalog), 0.2, 0)
    assert not {rows[name] for name in test_files} & {row["volume_id"] for row in training}
    assert test_files & held_out


def _check_a_second_call_does_nothing(
    target: Target, manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in target.folder.iterdir()}
    capsys.readouterr()
    assert target.finetune() == manifest
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in target.folder.iterdir()} == before
    with pytest.raises(WorkspaceError, match=r"finetune\.num_steps was 3 and is now 4"):
        target.finetune(num_steps=4)


def _check_it_goes_on_where_it_was_cut(target: Target, manifest: dict[str, Any]) -> None:
    """As if killed with one trial unfinished: that one alone is trained again, to the same result."""
    lost = target.folder / f"trial-{PRETRAINED}-1.json"
    result = read_json(lost)
    write_json(target.folder / "started.json", {key: manifest[key] for key in ("settings", "inputs")})
    for path in (lost, target.folder / "manifest.json", target.folder / "table.csv"):
        os.unlink(path)
    before = {path: path.stat().st_mtime_ns for path in target.folder.glob("trial-*.json")}
    again = target.finetune()
    assert len(before) == 3 and all(path.stat().st_mtime_ns == time for path, time in before.items())
    # Another process may sum in another order.
    about = {"seconds": 0, "loss": pytest.approx(result["loss"], rel=1e-4)}
    assert {**read_json(lost), "seconds": 0} == {**result, **about}
    assert [row["dice_mean"] for row in again["table"]] == [row["dice_mean"] for row in manifest["table"]]


def test_a_mistake_found_in_a_task_is_one_sentence(tmp_path: Path, ray_cluster: None) -> None:
    target = Target(tmp_path)
    for path in target.labels.iterdir():
        label = np.asarray(nibabel.load(path).dataobj)
        nibabel.save(nibabel.Nifti1Image(label * 2, np.eye(4)), path)
    with pytest.raises(ValueError, match=r"^the label maps hold the values \[0, 2, 4\]"):
        target.finetune()
    for path in target.labels.iterdir():
        nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), path)
    for path in (target.folder).glob("*"):
        path.unlink()
    with pytest.raises(ValueError) as error:
        target.finetune()
    assert str(error.value).startswith(str(target.labels)) and "\n" not in str(error.value)


def test_a_gpu_that_is_not_there_is_one_sentence(tmp_path: Path, ray_cluster: None) -> None:
    target = Target(tmp_path)
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    tree = target.settings().model_dump(mode="json")
    tree["pretraining"]["use_gpu"] = True
    with pytest.raises(SettingsError, match=r"pretraining\.use_gpu=true and the cluster has no GPU"):
        finetune(target.images, target.labels, target.workspace, settings_from(tree))


def test_without_the_run_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="run `raygenesis pretrain` first"):
        finetune(tmp_path, tmp_path, Workspace.open(tmp_path / "workspace"), settings_from({}))


def test_a_run_of_other_dimensions_is_refused_before_any_work(tmp_path: Path) -> None:
    target = Target(tmp_path)
    write_run(target.workspace.run("flat"), ndim=2)
    with pytest.raises(SettingsError, match=r"runs/flat holds a 2D network"):
        finetune(target.images, target.labels, target.workspace, target.settings(), "flat", "boxes")
    assert not target.folder.exists()


@needs_hippocampi
def test_random_weights_learn_the_real_hippocampus_from_five_scans() -> None:
    few = FinetuneSettings(num_labelled=5, num_test=3, num_trials=2, num_steps=40, batch_size=4, learning_rate=1e-2)
    settings = settings_from({"finetune": few.model_dump()})
    scans = find_labelled(HIPPOCAMPI / "images", HIPPOCAMPI / "labels", None)
    split = split_scans(scans, set(), settings)
    trial, spacing = split.trials[0], common_spacing(split.scans, settings)
    cases = {scan.name: read_case(scan, spacing, (32, 32, 32), IntensitySettings())[0] for scan in split.scans}
    torch.manual_seed(0)
    unet = UNet(3, Architecture(base_width=4))
    train_segmenter(unet, [cases[scan.name] for scan in trial.labelled], few, (32, 32, 32), trial.seed)
    tested = [cases[scan.name] for scan in split.test]
    dice = [score(segment(unet, case.image, (32, 32, 32), 8), case.label, 3)["dice"] for case in tested]
    assert np.mean(dice) > 0.4, dice
