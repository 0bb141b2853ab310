"""Small targets, runs and archives, for the tests of what is learnt from them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import torch

from raygenesis.archive.catalogue import CATALOGUE
from raygenesis.archive.identity import open_identity
from raygenesis.archive.intake import file_fingerprint
from raygenesis.pretraining.networks import Architecture, PretextNetwork
from raygenesis.pretraining.weights import export
from raygenesis.transfer.cases import Case
from raygenesis.workspace import Workspace, write_json, write_table

SHAPE = (16, 16, 16)


def box_case(seed: int, shape: tuple[int, ...] = (20, 18, 16)) -> Case:
    """Noise with a bright box (class 1) and a dark one (class 2) in it."""
    generator = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for value in (1, 2):
        corner = [int(generator.integers(0, side - 7)) for side in shape]
        label[tuple(slice(begin, begin + 7) for begin in corner)] = value
    image = np.choose(label, (0.5, 0.9, 0.1)) + generator.normal(0, 0.05, shape)
    return Case(f"case-{seed}", f"subject-{seed}", image.clip(0, 1).astype(np.float16), label)


def write_boxes(folder: Path, num_subjects: int) -> None:
    """`images/sub-<n>.nii.gz` and `labels/sub-<n>.nii.gz`."""
    for name, of_case in (("images", lambda case: (case.image * 1000).astype(np.int16)), ("labels", lambda c: c.label)):
        (folder / name).mkdir(parents=True)
        for n in range(num_subjects):
            nibabel.save(nibabel.Nifti1Image(of_case(box_case(n)).T, np.eye(4)), folder / name / f"sub-{n}.nii.gz")


def write_sizes(folder: Path, num_subjects: int) -> None:
    """`images/sub-<n>.nii.gz` with a bright ball each, and `values.csv`: its radius, and whether it is big."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,radius,size"]
    generator = np.random.default_rng(0)
    z, y, x = np.indices(SHAPE) - 7.5
    for n in range(num_subjects):
        radius = 3.0 + 4.0 * (7 * n % num_subjects) / num_subjects  # in no order
        voxels = 1000.0 * (z**2 + y**2 + x**2 < radius**2) + generator.normal(0, 30, SHAPE)
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), np.eye(4)), folder / "images" / f"sub-{n}.nii.gz")
        rows.append(f"sub-{n},{radius:.3f},{'big' if radius >= 5 else 'small'}")
    (folder / "values.csv").write_text("\n".join(rows) + "\n")


def network(ndim: int = 3) -> PretextNetwork:
    torch.manual_seed(7)
    return PretextNetwork(Architecture(ndim=ndim, base_width=2, head="classification", num_classes=8))


def write_run(folder: Path, ndim: int = 3) -> Path:
    """What pretraining would leave."""
    folder.mkdir(parents=True)
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
