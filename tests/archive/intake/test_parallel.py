"""Scans into the archive in tasks, which reserve memory for what headers claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from raygenesis.archive.intake import parallel
from raygenesis.archive.intake.survey import survey
from raygenesis.settings import ArchiveSettings
from raygenesis.workspace.workspace import Workspace
from tests.support.nifti import make_scans, write_nifti


def noting(notes: Path) -> Any:
    """`take_in_block` that notes the memory reserved for it and its room; a closure, which workers get as it is."""
    take_in_block = parallel.take_in_block

    def take_in_block_and_note(block: pa.Table, **arguments: Any) -> pa.Table:
        memory = ray.get_runtime_context().get_assigned_resources().get("memory", 0)
        names = " ".join(Path(path).name for files in block["files"].to_pylist() for path in files)
        with notes.open("a") as file:
            file.write(f"{memory:.0f} {arguments['room']} {names}\n")
        return take_in_block(block, **arguments)

    return take_in_block_and_note


@pytest.mark.usefixtures("ray_cluster")
def test_memory_is_reserved_by_the_headers_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that unpacks to much is put off, and decoded where its memory is reserved; others are not."""
    scans = make_scans(tmp_path / "scans", 2)
    packed = write_nifti(scans / "packed.nii.gz", (np.arange(40**3) // 8000).astype(np.int16).reshape(40, 40, 40))
    claimed = 2 * 40**3
    assert packed.stat().st_size < claimed / 10
    monkeypatch.setattr(parallel, "LARGE_VOXELS", claimed - 1)
    monkeypatch.setattr(parallel, "take_in_block", noting(tmp_path / "notes"))
    found = survey(scans)
    workspace = Workspace.open(tmp_path / "workspace")
    outcomes = parallel.take_in_all(scans, found.scans, workspace, ArchiveSettings())
    assert all(len(outcome.records) == 1 and not outcome.claimed_bytes for outcome in outcomes.values())
    notes = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    assert [note[:2] for note in notes if "packed.nii.gz" in note] == [
        [notes[0][0], str(claimed - 1)], [str(parallel.MEMORY_PER_VOXEL_BYTE * claimed), str(claimed)]
    ]  # fmt: skip
    # Once tasks have ended, Ray Data itself reserves what one puts out: some hundred bytes here.
    assert all(int(note[0]) < claimed / 10 for note in notes if note[1] == str(claimed - 1))
    assert {note[2] for note in notes if note[1] == str(claimed)} == {"packed.nii.gz"}
