"""What is true of every format."""

from __future__ import annotations

import builtins
import errno
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raygenesis.archive.formats import readers
from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.intake.survey import survey
from tests.support import dicom_series
from tests.support.nifti import write_nifti
from tests.support.scan_files import one, refusal, write_array


class Failing(io.FileIO):
    """A file of which some bytes cannot be read."""

    lost, fault = range(0), Exception()

    def readinto(self, buffer: Any) -> int:
        if self.tell() < self.lost.stop and self.tell() + len(buffer) > self.lost.start:
            raise self.fault
        return super().readinto(buffer)


def written(path: Path) -> Path:
    """Noise in the format that the name says."""
    noise = np.random.default_rng(0).integers(0, 2**12, (60, 50, 40)).astype(np.uint16)
    if path.suffix == ".gz":
        return write_nifti(path, noise)
    if path.suffix == ".png":
        Image.fromarray(noise[0]).save(path)
        return path
    if path.suffix == ".dcm":
        return dicom_series.write(path, dicom_series.a_slice(noise[0]))
    return write_array(path, noise, {"spacing_mm": [1, 1, 1]})


@pytest.mark.parametrize("fault", [OSError(errno.ESTALE, "Stale file handle"), MemoryError()])
@pytest.mark.parametrize("start", [0, 1024])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz", "a.png", "a.dcm"])
def test_what_is_not_the_file_s_fault_is_not_called_damage(tmp_path, monkeypatch, name, start, fault) -> None:
    """Where a file server is lost, or memory is short, the scan is to be tried again."""
    path = written(tmp_path / name)
    read_scan([path])  # all is well
    monkeypatch.setattr(Failing, "lost", range(start, start + 2000))  # not the end, where a .npz begins
    monkeypatch.setattr(Failing, "fault", fault)

    def opening(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        is_it = str(file) == str(path) and mode == "rb"
        return io.BufferedReader(Failing(file), 512) if is_it else as_ever(file, mode, *more, **options)

    as_ever = open
    monkeypatch.setattr(builtins, "open", opening)
    monkeypatch.setattr(io, "open", opening)
    with pytest.raises(type(fault)) as raised:
        read_scan([path])
    assert raised.value is fault


def test_every_format_has_a_name_of_its_own_or_is_known_by_its_bytes() -> None:
    assert len(set(readers.SUFFIXES)) == len(readers.SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in readers.SUFFIXES)
    assert [known for known in readers.FORMATS if not known.suffixes] == [readers.DICOM]


def test_the_readme_s_example_is_a_format_once_it_is_in_the_table(tmp_path, monkeypatch) -> None:
    readme = Path(readers.__file__).parents[1] / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    monkeypatch.setattr(readers, "FORMATS", (*readers.FORMATS, names["Cube"]()))
    voxels = np.random.default_rng(0).integers(0, 256, (64, 64, 64)).astype(np.uint8)
    (tmp_path / "a.CUBE").write_bytes(voxels.tobytes())
    (tmp_path / "short.cube").write_bytes(b"short")
    (tmp_path / "a.json").write_text("{}")
    found = survey(tmp_path)
    assert [scan.source for scan in found.scans] == ["a.CUBE", "short.cube"]
    assert np.array_equal(one(tmp_path / "a.CUBE").voxels, voxels)
    assert refusal(tmp_path / "short.cube") == "it has 5 bytes instead of 262144"
