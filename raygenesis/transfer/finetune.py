"""Fine-tune: few labelled scans → segmentation networks, one Ray task per initialisation and trial → a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import yaml
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from raygenesis import cluster
from raygenesis.config import FinetuneSettings, Settings
from raygenesis.errors import RaygenesisError, SettingsError
from raygenesis.pretraining.networks import UNet
from raygenesis.pretraining.weights import load_network, load_unet
from raygenesis.progress import progress, say
from raygenesis.settings import settings_from
from raygenesis.transfer.segmentation import score, segment, train_segmenter
from raygenesis.transfer.statistics import Comparison, compare
from raygenesis.transfer.target import (
    Case,
    LabelledScan,
    Split,
    Trial,
    check_classes,
    common_spacing,
    find_labelled,
    pretrained_on,
    read_case,
    split_scans,
)  # fmt: skip
from raygenesis.workspace import Stage, Stopwatch, Workspace, digest, manifest_of, publish, read_json, write_json

RANDOM, PRETRAINED = "random", "pretrained"
INITIALISATIONS = (RANDOM, PRETRAINED)


@dataclass(frozen=True)
class Target:
    """What the trials of a target task have in common."""

    folder: Path  # where results go
    run_folder: Path  # of the pretrained network
    num_classes: int  # background included
    patch_shape: tuple[int, ...]
    settings: FinetuneSettings
    num_threads: int
    device: str


def finetune(
    images: Path, labels: Path, workspace: Workspace, settings: Settings, run: str = "default", name: str | None = None
) -> dict[str, Any]:
    """Few-shot segmentation of a target from random weights and from a pretrained run; returns the manifest.

    Results go to `transfer/<name>/` (the run's name by default). Trials that an interrupted call finished are kept.
    """
    pretrained = manifest_of(workspace.run(run), "pretrain")
    settings = _as_pretrained(settings, workspace.run(run))
    scans = find_labelled(images, labels, settings.archive.subject_pattern)
    folder = workspace.transfer(name or run)
    stage = Stage(folder, _chosen(settings), {"run": pretrained["fingerprint"], "target": digest_of(scans)})
    if stage.is_finished():
        say("finetune", f"nothing to do: the table is in {folder}")
        return manifest_of(folder, "finetune")
    watch = Stopwatch()
    split = split_scans(scans, pretrained_on(scans, workspace, settings), settings)
    spacing = common_spacing(scans, settings)
    _check_network(workspace.run(run), settings)
    _say_plan(scans, split, spacing)
    with stage.claimed():
        _run_missing_trials(folder, workspace.run(run), split, spacing, settings)
        results = {
            start: [_read_trial(folder, start, trial, split) for trial in split.trials] for start in INITIALISATIONS
        }
        table = compare(results, RANDOM)
        publish(folder / "table.csv", lambda aside: aside.write_text(_as_csv(table)))
        _join_examples(folder)
        counts = {
            "labelled_scans": len(scans), "test_scans": len(split.test), "pool_subjects": split.num_pool_subjects,
            "initialisations": len(INITIALISATIONS), "trials": len(split.trials),
        }  # fmt: skip
        manifest = stage.finish(
            counts, watch.seconds, classes=results[RANDOM][0]["classes"], spacing_mm=list(spacing), run=run,
            table=[asdict(row) for row in table],
        )  # fmt: skip
        _summarise(table, manifest, folder)
        return manifest


def _as_pretrained(settings: Settings, run_folder: Path) -> Settings:
    """The settings, with intensity, cube shape, split and subjects as the run's `config.yaml` has them."""
    path = run_folder / "config.yaml"
    if not path.is_file():
        return settings
    run = settings_from(yaml.safe_load(path.read_text()))
    shared = {"intensity": run.intensity, "discovery": run.discovery, "validation_fraction": run.validation_fraction}
    if settings.archive.subject_pattern is None:
        shared["archive"] = run.archive
    return settings.model_copy(update=shared)


def _run_missing_trials(
    folder: Path, run_folder: Path, split: Split, spacing_mm: Sequence[float], settings: Settings
) -> None:
    missing = [
        (start, trial)
        for trial in split.trials
        for start in INITIALISATIONS
        if _read_trial(folder, start, trial, split) is None
    ]
    if not missing:
        return
    cluster.connect()
    use_gpu = settings.pretraining.use_gpu
    _check_gpu(use_gpu)
    patch_shape = patch_shape_of(settings)
    cases, num_classes = read_cases(split.scans, spacing_mm, patch_shape, settings)
    concurrent = min(len(missing), int(ray.cluster_resources()["CPU"]))
    target = Target(
        folder, run_folder, num_classes, patch_shape, settings.finetune, cluster.threads_per_worker(concurrent),
        "cuda" if use_gpu else "cpu",
    )  # fmt: skip
    options = {"num_cpus": 1, "num_gpus": 1 if use_gpu else 0, "runtime_env": cluster.TRAINING_ENVIRONMENT}
    task = ray.remote(**options)(run_trial)
    test = [cases[scan.name] for scan in split.test]
    pending = [
        task.remote(target, start, trial, [cases[scan.name] for scan in trial.labelled], test)
        for start, trial in missing
    ]
    with progress("finetune", len(pending), "trials") as ticker:
        while pending:
            (done,), pending = ray.wait(pending, num_returns=1)
            ticker.advance(note=_get(done))


def read_cases(
    scans: Sequence[LabelledScan], spacing_mm: Sequence[float], patch_shape: Sequence[int], settings: Settings
) -> tuple[dict[str, ray.ObjectRef], int]:
    """Every case read once, into Ray's object store, by name; and the number of classes."""
    read = ray.remote(num_cpus=1, num_returns=2)(read_case)
    references = [read.remote(scan, spacing_mm, patch_shape, settings.intensity) for scan in scans]
    values = set().union(*(_get(held) for _, held in references))
    return {scan.name: case for scan, (case, _) in zip(scans, references, strict=True)}, check_classes(values)


def run_trial(
    target: Target, start: str, trial: Trial, labelled: Sequence[ray.ObjectRef], test: Sequence[ray.ObjectRef]
) -> str:
    """Fine-tune and test one network, leave `trial-<start>-<n>.json` and tell the Dice. References are to cases."""
    torch.set_num_threads(target.num_threads)
    watch = Stopwatch()
    learnt, tested = [ray.get(case) for case in labelled], []
    unet = build_unet(start, target.run_folder, target.num_classes, trial.seed)
    losses = train_segmenter(unet, learnt, target.settings, target.patch_shape, trial.seed, target.device)
    for reference in test:
        case = ray.get(reference)
        predicted = segment(unet, case.image, target.patch_shape, target.settings.batch_size)
        if trial.number == 0 and not tested:
            _write_example(_example_path(target.folder, start), case, predicted)
        tested.append({"name": case.name, **score(predicted, case.label, target.num_classes)})
    result = {
        "initialisation": start, "trial": trial.number, "seed": trial.seed, "classes": list(range(target.num_classes)),
        "dice": float(np.mean([case["dice"] for case in tested])),
        "iou": float(np.mean([case["iou"] for case in tested])),
        "loss": float(np.mean(losses[-10:])), "seconds": round(watch.seconds, 3),
        "labelled": [case.name for case in learnt], "test": tested,
    }  # fmt: skip
    write_json(_trial_path(target.folder, start, trial.number), result)
    return f"{start} Dice {result['dice']:.3f}"


def build_unet(start: str, run_folder: Path, num_classes: int, seed: int) -> UNet:
    """The run's network with a new output layer, or random weights in the same architecture.

    The output layer's weights depend on the seed alone, so that initialisations start alike where they can.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for a decoder that the run does not have
        unet = load_unet(run_folder, num_classes)
        last = unet.decoder.get_submodule(unet.decoder.last)
        torch.manual_seed(seed)
        last.reset_parameters()
        if start == RANDOM:
            for module in unet.modules():
                if hasattr(module, "reset_parameters") and module is not last:
                    module.reset_parameters()
    return unet


def _write_example(path: Path, case: Case, predicted: NDArray[np.uint8]) -> None:
    """The slice of a case with the most foreground: image float32, label and prediction uint8 [y, x]."""
    at = int((case.label > 0).sum((1, 2)).argmax()) if case.label.ndim == 3 else ...
    slices = {"image": case.image[at], "label": case.label[at], "prediction": predicted[at]}
    publish(path, lambda aside: _save_arrays(aside, slices))


def _join_examples(folder: Path) -> None:
    """`example.npz`: image, label, and each initialisation's prediction under its name."""
    joined = {}
    for start in INITIALISATIONS:
        with np.load(_example_path(folder, start)) as arrays:
            joined |= {"image": arrays["image"], "label": arrays["label"], start: arrays["prediction"]}
    publish(folder / "example.npz", lambda aside: _save_arrays(aside, joined))


def _save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add its suffix to it
        np.savez_compressed(file, **arrays)


def _chosen(settings: Settings) -> dict[str, Any]:
    """The settings that decide the results."""
    chosen = settings.model_dump(mode="json", include={"finetune", "intensity", "seed", "validation_fraction"})
    chosen["finetune"]["patch_shape"] = list(patch_shape_of(settings))
    return {**chosen, "subject_pattern": settings.archive.subject_pattern}


def patch_shape_of(settings: Settings) -> tuple[int, ...]:
    """Voxels z y x (2D: y x) of a training patch."""
    return settings.finetune.patch_shape or settings.discovery.cube_shape


def digest_of(scans: Sequence[LabelledScan]) -> str:
    """Identity of a target: its scans' names and sizes."""
    return digest([[scan.name, scan.image.stat().st_size, scan.label.stat().st_size] for scan in scans])


def _trial_path(folder: Path, start: str, number: int) -> Path:
    return folder / f"trial-{start}-{number}.json"


def _example_path(folder: Path, start: str) -> Path:
    return folder / f"example-{start}.npz"


def _read_trial(folder: Path, start: str, trial: Trial, split: Split) -> dict[str, Any] | None:
    """A finished trial's result, or None when there is none of this very draw."""
    result = read_json(_trial_path(folder, start, trial.number))
    names = ([scan.name for scan in scans] for scans in (trial.labelled, split.test))
    if result is None or [result["labelled"], [case["name"] for case in result["test"]]] != list(names):
        return None
    return result


def _get(reference: ray.ObjectRef) -> Any:
    """A task's answer; a user's mistake found there is one sentence here too."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaygenesisError):
            raise error.cause from None
        raise


def _check_network(run_folder: Path, settings: Settings) -> None:
    ndim = load_network(run_folder).architecture.ndim
    if ndim != settings.ndim:
        raise SettingsError(
            f"{run_folder} holds a {ndim}D network and discovery.cube_shape={list(settings.discovery.cube_shape)} has "
            f"{settings.ndim} sides: give the preset that the run was made with"
        )


def _check_gpu(use_gpu: bool) -> None:
    if use_gpu and not ray.cluster_resources().get("GPU"):
        raise SettingsError(
            "pretraining.use_gpu=true and the cluster has no GPU: set pretraining.use_gpu=false or join a cluster "
            "with GPUs"
        )


def _say_plan(scans: Sequence[LabelledScan], split: Split, spacing_mm: Sequence[float]) -> None:
    subjects = len({scan.subject for scan in split.test})
    labelled = len({scan.subject for scan in split.trials[0].labelled})
    step = "×".join(f"{side:.2g}" for side in spacing_mm)
    say(
        "finetune",
        f"{len(scans)} labelled scans, resampled to {step} mm; {len(INITIALISATIONS)} initialisations × "
        f"{len(split.trials)} trials: {labelled} of {split.num_pool_subjects} subjects learnt from, {subjects} others, "
        "unseen in pretraining, tested on",
    )


def _as_csv(table: Sequence[Comparison]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Comparison)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in table)
    return text.getvalue()


def _summarise(table: Sequence[Comparison], manifest: Mapping[str, Any], folder: Path) -> None:
    say("finetune", f"{'start':18s} {'Dice':>13s} {'IoU':>13s}  difference       p  p paired  s/trial")
    for row in table:
        say(
            "finetune",
            f"{row.initialisation:18s} {row.dice_mean:.3f} ± {row.dice_sd:.3f} {row.iou_mean:.3f} ± {row.iou_sd:.3f}  "
            f"{_cell(row.difference_to_random, '+.3f'):>10s} {_cell(row.p_value, '.3f'):>7s} "
            f"{_cell(row.p_value_paired, '.3f'):>9s} {row.seconds_per_trial:8.1f}",
        )
    say(
        "finetune",
        f"mean ± s.d. of {manifest['counts']['trials']} trials on {manifest['counts']['test_scans']} test scans, "
        f"{manifest['seconds']:.1f} s → {folder}",
    )


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
