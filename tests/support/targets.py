"""Small targets and archives, for the tests of what is learnt from them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa

from raygenesis.archive.catalogue import CATALOGUE
from raygenesis.archive.intake.identity import open_identity
from raygenesis.workspace.files import blake2b_of, write_table
from raygenesis.workspace.workspace import Workspace
from tests.support.cases import box_case

SHAPE = (16, 16, 16)


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


def write_catalogue(workspace: Workspace, scans: dict[str, Path]) -> None:
    """An archive of these scans: subject → file."""
    rows = [
        {"volume_id": blake2b_of(path), "subject_id": subject, "source": path.name,
         "source_bytes": path.stat().st_size, "shape": [16, 16, 16]}
        for subject, path in scans.items()
    ]  # fmt: skip
    workspace.archive.mkdir(parents=True)
    open_identity(workspace, keep_ids=False)
    write_table(workspace.catalog, pa.Table.from_pylist(rows, CATALOGUE))
