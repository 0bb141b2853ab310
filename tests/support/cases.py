"""Cases, examples and files of weights made of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from raygenesis.archive.volume import Volume
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.native import save_network
from raygenesis.settings import FinetuneSettings, IntensitySettings
from raygenesis.transfer.cases import Case, CaseGrid, Form
from raygenesis.transfer.examples import Example
from raygenesis.transfer.setup import TrialSetup
from raygenesis.workspace.manifest import RunCounts, RunManifest
from raygenesis.workspace.manifest_files import write_manifest


@dataclass(frozen=True, eq=False)
class InMemory:
    """An image, or a label map, that is there already."""

    content: Any
    paths: tuple[Path, ...] = (Path("nowhere.nii.gz"),)

    def read(self, image: Volume | None = None) -> Any:
        return self.content


NOWHERE = InMemory(None)


def example(subject: str, value: Any = None, name: str | None = None, split: str | None = None) -> Example:
    """Without an image: for draws."""
    return Example(name or f"{subject}.nii.gz", subject, NOWHERE, value=value, split=split)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Voxels [x, y, z], 1 mm each, with axes towards right, anterior and superior, or as `affine` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def box_case(seed: int, shape: Sequence[int] = (20, 18, 16)) -> Case:
    """Noise with a bright box (class 1) and a dark one (class 2) in it."""
    generator = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for value in (1, 2):
        corner = [int(generator.integers(0, side - 7)) for side in shape]
        label[tuple(slice(begin, begin + 7) for begin in corner)] = value
    image = np.choose(label, (0.5, 0.9, 0.1)) + generator.normal(0, 0.05, shape)
    grid = CaseGrid(tuple(shape), np.eye(4), tuple(slice(0, side) for side in shape))
    return Case(f"case-{seed}.nii.gz", f"case-{seed}", image.clip(0, 1).astype(np.float16), label, grid=grid)


def grey_case(seed: int, value: Any, grey: float, shape: Sequence[int] = (8, 8, 8)) -> Case:
    """Noise round a grey that tells its value."""
    image = grey + np.random.default_rng(seed).normal(0, 0.05, shape)
    return Case(f"case-{seed}", f"case-{seed}", image.clip(0, 1).astype(np.float16), value=value)


def form(**changed: Any) -> Form:
    given = {
        "is_segmentation": True, "input_shape": (8, 8, 8), "spacing_mm": (1.0, 1.0, 1.0),
        "intensity": IntensitySettings(window=(0.0, 100.0)),
    }  # fmt: skip
    return Form(**given | changed)


def setup_of(task: str, settings: FinetuneSettings, num_classes: int = 1, **changed: Any) -> TrialSetup:
    """What trials have in common; changed: of the form."""
    return TrialSetup(task, num_classes, form(**{"is_segmentation": task == "segmentation", **changed}), settings)


def write_run(folder: Path, **architecture: Any) -> PretextNetwork:
    """What pretraining leaves: weights of its own, no two networks alike by chance."""
    folder.mkdir(parents=True)
    torch.manual_seed(7)
    given = {"base_width": 2, "head": "classification", "num_classes": 8}
    network = PretextNetwork(Architecture(**given | architecture))
    save_network(network, folder, {})
    manifest = RunManifest(
        fingerprint=f"of {folder.name}", counts=RunCounts(epochs=1, patterns=8, classes=8), architecture={},
        store="patterns", epoch=0, accuracy=None, chance=None, restoration_mse=None, identity_mse=None,
        mean_image_mse=None, embedding_variance=1.0, effective_rank=1.0, retrieval=None, retrieval_untrained=None,
    )  # fmt: skip
    write_manifest(folder, manifest)
    return network


def flat(module: torch.nn.Module) -> torch.Tensor:
    """All weights and statistics in one vector."""
    return torch.cat([value.double().flatten() for value in module.state_dict().values()])
