"""Headers of lines of text: one parser decides what they say, and no file is opened but the one beside them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from raygenesis.archive.formats.readers import read_scan, read_scan_geometry
from raygenesis.archive.intake.survey import survey
from raygenesis.errors import ScanError
from tests.support.nifti import grey
from tests.support.opened import watching
from tests.support.scan_files import one, refusal

SUFFIXES = (".nrrd", ".mha", ".mhd")
QUICK, THOROUGH = 150, 3400  # mutated headers of each kind
SHAPE = (4, 5, 6)
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\n"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of scans; beside it, outside, a canary of as many bytes as any header here may claim."""
    (tmp_path / "outside.bin").write_bytes(bytes([201]) * 2**16)
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.nrrd", NRRD + "content: x\rdata file: {canary}\n"),
        ("a.nrrd", NRRD + "content: x\r\rdata file: {canary}\n\n"),
        ("a.nrrd", NRRD + "content: x\0data file: {canary}\n"),
        ("a.nrrd", NRRD + "Data File: {canary}\n"),
        ("a.nrrd", NRRD + "key:=value\rdatafile: {canary}\n"),
        ("a.nrrd", NRRD + "data file: {canary}%d 1 1 1\n"),
        ("a.nrrd", NRRD + "data file: LIST\n{canary}\n"),
        ("a.mha", META + "Comment = x\rElementDataFile = {canary}\nElementDataFile = LOCAL"),
        ("a.mha", META + "Comment = " + 490 * "x" + "ElementDataFile = {canary}\nElementDataFile = LOCAL"),
        ("a.mha", META + "ElementSpacing = 1 1\nElementDataFile = {canary}\nElementDataFile = LOCAL"),
        ("a.mhd", META + "Comment = x\rElementDataFile = {canary}\nElementDataFile = a.raw"),
        ("a.mhd", META + "ElementDataFile = {canary}"),
    ],
)
def test_no_header_leads_outside(scans: Path, name: str, header: str) -> None:
    canary = scans.parent / "outside.bin"
    (scans / "a.raw").write_bytes(grey((4, 4, 4), np.uint8).tobytes())
    text = header.format(canary=canary) + "\n"
    (scans / name).write_bytes(text.encode() + (b"\n" if name == "a.nrrd" else b"") + (scans / "a.raw").read_bytes())
    with watching(canary) as was_opened:
        for read in (read_scan, read_scan_geometry, lambda paths: survey(paths[0].parent)):
            try:
                found = read([scans / name])
            except ScanError:
                continue
            assert read is not read_scan or 201 not in found[0].voxels
        assert not was_opened()


def seed(folder: Path, suffix: str) -> tuple[bytes, bytes]:
    """Header and voxels of a small scan as ITK writes it, in `folder`."""
    image = sitk.GetImageFromArray(grey(SHAPE, np.uint8) % 200)  # 201 is the canary's
    image.SetSpacing([0.5, 0.8, 2.5])
    sitk.WriteImage(image, folder / f"scan{suffix}")
    content = (folder / f"scan{suffix}").read_bytes()
    size = 0 if suffix == ".mhd" else int(np.prod(SHAPE))
    return content[: len(content) - size], content[len(content) - size :]


def mutated(header: bytes, generator: np.random.Generator, tokens: list[bytes]) -> bytes:
    """One to four changes of a header: a token put in, or lines doubled, exchanged or cut, or a byte changed."""
    for _ in range(int(generator.integers(1, 5))):
        lines = header.splitlines(keepends=True)
        place, kind = int(generator.integers(len(header) + 1)), int(generator.integers(6))
        first, second = generator.integers(len(lines) or 1, size=2).tolist()
        if kind < 3:
            header = header[:place] + tokens[int(generator.integers(len(tokens)))] + header[place:]
        elif kind == 3 and lines:
            header = b"".join([*lines[:first], lines[second], *lines[first:]])
        elif kind == 4 and lines:
            lines[first], lines[second] = lines[second], lines[first]
            header = b"".join(lines)
        elif header:
            place = min(place, len(header) - 1)
            header = header[:place] + bytes([int(generator.integers(256))]) + header[place + 1 :]
    return header


def read_mutated(scans: Path, suffix: str, count: int) -> int:
    """Read scans of mutated headers, that try to name the canary; returns how many could be read."""
    canary = scans.parent / "outside.bin"
    outside = [str(canary).encode(), b"../outside.bin", b"../%s.bin 1 1 1", b"/dev/zero", b"LIST"]
    ends = [b"\r", b"\n", b"\r\n", b"\0", b"\v", b"\f", b"\x85", b"\n\n", b"\r\r", b" ", b"\t", 500 * b"x"]
    names = [b"data file: ", b"datafile: ", b"Data File : ", b"ElementDataFile = ", b"ElementDataFile: ", b"key:="]
    other = [b"line skip: 9", b"byte skip: -1", b"HeaderSize = -1", b"CompressedData = True", b"encoding: gzip", b"#"]
    whole = [end + name + path + last for end in ends[:4] for name in names for path in outside for last in ends[:4]]
    tokens = [*outside, *ends, *names, *other, *whole]
    header, voxels = seed(scans, suffix)
    num_read = 0
    with watching(canary) as was_opened:
        for number in range(count):
            content = mutated(header, np.random.default_rng([number, SUFFIXES.index(suffix)]), tokens)
            (scans / f"scan{suffix}").write_bytes(content + voxels)
            try:
                read_scan_geometry([scans / f"scan{suffix}"])
                (volume,) = read_scan([scans / f"scan{suffix}"], max_bytes=2**20)
            except ScanError:
                pass
            else:
                num_read += 1
                assert 201 not in volume.voxels, content
            assert not was_opened(), content
    return num_read


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_mutated_header_opens_a_file_outside(scans: Path, suffix: str) -> None:
    assert 0 < read_mutated(scans, suffix, QUICK) < QUICK


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_none_of_ten_thousand_headers_opens_a_file_outside(scans: Path, suffix: str) -> None:
    read_mutated(scans, suffix, THOROUGH)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_read_of_a_mutated_header_is_what_itk_reads(scans: Path, suffix: str) -> None:
    """Changes that name no file: where both readers take a header, they find the same voxels in the same places."""
    tokens = [b"\n", b" ", b"\t", b"\r\n", b"1", b"2", b"-", b".", b"# x\n", b"Comment = y\n", b"key:=value\n", b"0"]
    header, voxels = seed(scans, suffix)
    path, num_alike = scans / f"scan{suffix}", 0
    for number in range(QUICK):
        path.write_bytes(mutated(header, np.random.default_rng([number, 7]), tokens) + voxels)
        try:
            (volume,) = read_scan([path], max_bytes=2**20)
            image = sitk.ReadImage(path, imageIO="NrrdImageIO" if suffix == ".nrrd" else "MetaImageIO")
        except (ScanError, RuntimeError):
            continue
        num_alike += 1
        assert np.array_equal(np.sort(volume.voxels, None), np.sort(sitk.GetArrayViewFromImage(image), None))
        assert sorted(volume.spacing_mm) == pytest.approx(sorted(image.GetSpacing())), path.read_bytes()
        middle = np.subtract(image.GetSize(), 1) / 2
        place = np.array(image.TransformContinuousIndexToPhysicalPoint(middle.tolist())) * [-1, -1, 1]
        ours = volume.affine @ [*np.subtract(volume.shape[::-1], 1) / 2, 1]
        assert ours[:3] == pytest.approx(place, abs=1e-4)
    assert num_alike > QUICK / 20


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_ends_of_both_kinds_comments_and_keys_are_read(scans: Path, ending: str) -> None:
    voxels = grey((4, 4, 4), np.uint8)
    header = f'{NRRD}# a comment: data file\nkey:=data file: x\nspacings: 1 2 3\nlabels: "a" "b" "c"\n\n'
    (scans / "a.nrrd").write_bytes(header.replace("\n", ending).encode() + voxels.tobytes())
    assert one(scans / "a.nrrd").spacing_mm == (3, 2, 1)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (NRRD.replace("sizes: 4 4 4", "sizes: 4 4"), "sizes is not 3 values"),
        (NRRD + "sizes: 4 4 4\n", "sizes twice"),
        (NRRD.replace("dimension: 3", "dimension: 99"), "dimension is 99: expected 1 to 16"),
        (NRRD.replace("raw", "bzip2"), "encoding is not supported"),
        (NRRD + "space directions: (1,0,0) (0,1,0) x\n", "space directions is not 3 vectors"),
    ],
)
def test_a_field_that_is_not_as_the_format_has_it_is_named(scans: Path, header: str, reason: str) -> None:
    (scans / "a.nrrd").write_bytes(header.encode() + b"\n" + bytes(64))
    assert reason in refusal(scans / "a.nrrd")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd", "a.nii", "a.nii.gz", "a.npy", "a.png", "a.dcm"])
def test_a_pipe_is_never_opened(scans: Path, name: str) -> None:
    """Opening it would wait for ever for a writer; a device may do worse."""
    os.mkfifo(scans / name)
    assert "not a regular file" in refusal(scans / name)
    with pytest.raises(ScanError, match="not a regular file"):
        read_scan_geometry([scans / name])
    with pytest.raises(ScanError, match="no scan found"):
        survey(scans)


def test_companions_are_no_pipes_and_lie_in_the_folder(scans: Path) -> None:
    np.save(scans / "a.npy", grey((4, 4, 4)))
    os.mkfifo(scans / "a.json")
    assert "not a regular file" in refusal(scans / "a.npy")
    (scans / "a.json").unlink()
    (scans.parent / "outside.json").write_text('{"spacing_mm": [1, 1, 1]}')
    (scans / "a.json").symlink_to("../outside.json")
    (scans / "a.mhd").write_text(META + "ElementDataFile = a.raw\n")
    os.mkfifo(scans / "a.raw")
    found = {file.source: file.reason for file in survey(scans).aside}
    assert found["a.npy"] == "a link that leads out of the scans folder"
    assert "must name one file beside the header" in found["a.mhd"]
