"""How DICOM's pixels are stored: what is not read is named, and pixels that are floats are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from raygenesis.archive.formats.dicom import read_series, read_series_geometry
from raygenesis.archive.formats.dicom_header import read_header
from raygenesis.archive.formats.readers import read_scan
from raygenesis.errors import ScanError
from tests.support.dicom_series import (
    CT8_SHAPE,
    SECRETS,
    STUDY,
    assert_geometry,
    ct8,
    only,
    real,
    refusal,
    run_length_encoded,
    shown,
    write_all,
)


def with_syntax(folder: Path, syntax: str, slices: list[Dataset], written: str = ExplicitVRLittleEndian) -> list[Path]:
    """Files under another transfer syntax than the one that they are written in, which pydicom would not write."""
    paths = write_all(folder, slices, written)
    marked = written.encode() + b"\0" * (len(written) % 2)
    element = len(marked).to_bytes(2, "little")
    name = syntax.encode() + b"\0" * (len(syntax) % 2)
    for path in paths:
        content = path.read_bytes()
        assert content.count(b"UI" + element + marked) == 1
        changed = content.replace(b"UI" + element + marked, b"UI" + len(name).to_bytes(2, "little") + name)
        group = int.from_bytes(changed[140:144], "little") + len(name) - len(marked)
        path.write_bytes(changed[:140] + group.to_bytes(4, "little") + changed[144:])
    return paths


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        ("1.2.840.10008.1.2.4.201", "its compression, HTJ2K, is not supported: expected none, RLE, JPEG"),
        ("1.2.840.10008.1.2.4.203", "its compression, HTJ2K, is not supported"),
        ("1.2.840.10008.1.2.4.111", "its compression, JPEG XL, is not supported"),
        ("1.2.840.10008.1.2.4.102", "its compression, MPEG-4 AVC/H.264 High Profile"),
        ("1.2.840.10008.1.2.4.94", "its compression, JPIP Referenced, is not supported"),
        ("1.2.840.10008.1.2.4.999", "its compression, 1.2.840.10008.1.2.4.999, is not supported"),
        ("1.2.840.113619.5.2", "its transfer syntax, 1.2.840.113619.5.2, is a maker's own and not supported"),
        ("Canary^Jane", "the header is cut short or damaged: its transfer syntax is no UID"),
    ],
)
@pytest.mark.parametrize("is_packed", [True, False])
def test_what_is_not_decoded_is_named(tmp_path: Path, syntax: str, words: str, is_packed: bool) -> None:
    if is_packed:
        paths = with_syntax(tmp_path, syntax, run_length_encoded(), "1.2.840.10008.1.2.5")
    else:
        paths = with_syntax(tmp_path, syntax, ct8())
    assert words in refusal(paths)
    with pytest.raises(ScanError) as error:
        read_series_geometry(paths)
    assert words in str(error.value) and not any(secret in str(error.value) for secret in SECRETS)


def test_a_maker_s_own_syntax_is_named_where_values_have_no_type(tmp_path: Path) -> None:
    paths = with_syntax(tmp_path, "1.2.840.113619.5.2", ct8(), ImplicitVRLittleEndian)
    assert "1.2.840.113619.5.2" in refusal(paths)
    assert read_header(paths[0]).series == f"{STUDY}.1"


def maps(dtype: str, voxels: np.ndarray | None = None, **tags: object) -> list[Dataset]:
    """A parametric map of floats, which has no integers' tags."""
    values = np.random.default_rng(0).normal(size=CT8_SHAPE) if voxels is None else voxels
    slices = ct8(np.zeros(CT8_SHAPE, np.int16), Modality="MR", **tags)
    for one, pixels in zip(slices, values.astype(dtype), strict=True):
        for name in ("PixelData", "PixelRepresentation", "BitsStored", "HighBit", "RescaleSlope", "RescaleIntercept"):
            delattr(one, name)
        one.BitsAllocated = 8 * np.dtype(dtype).itemsize
        name = "FloatPixelData" if one.BitsAllocated == 32 else "DoubleFloatPixelData"
        setattr(one, name, pixels.tobytes())
    return slices


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("size", [4, 8])
def test_parametric_maps_are_read(tmp_path: Path, size: int, syntax: str) -> None:
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    voxels = np.random.default_rng(0).normal(size=CT8_SHAPE)
    paths = write_all(tmp_path, maps(f"{order}f{size}"), syntax)
    volume = only(read_scan(paths))
    assert volume.voxels.dtype == np.float32 and (volume.slope, volume.intercept) == (1, 0)
    assert np.array_equal(shown(volume.voxels), voxels.astype(np.float32))
    assert volume.corrections == (("64-bit values kept as 32-bit ones",) if size == 8 else ())
    assert_geometry(paths, [volume])


def test_a_parametric_map_has_a_mapping_and_padding(tmp_path: Path) -> None:
    item, code = Dataset(), Dataset()
    item.RealWorldValueSlope, item.RealWorldValueIntercept = 0.5, -1.0
    code.CodeValue = "mm2/s"
    item.MeasurementUnitsCodeSequence = Sequence([code])
    voxels = np.random.default_rng(0).normal(size=CT8_SHAPE).astype(np.float32)
    outside = np.random.default_rng(1).random(CT8_SHAPE) < 0.25
    for name, padding in (("value", -99.5), ("nan", np.nan)):
        tags = {"FloatPixelPaddingValue": padding, "RealWorldValueMappingSequence": Sequence([item])}
        slices = maps("<f4", np.where(outside, padding, voxels), **tags)
        volume = only(read_scan(write_all(tmp_path / name, slices)))
        assert volume.valid is not None and np.array_equal(shown(volume.valid), ~outside)
        smallest = voxels[~outside].min()
        assert np.allclose(shown(real(volume)), np.where(outside, smallest, voxels) * 0.5 - 1, atol=1e-6)
        assert "real-world mapping applied (mm2/s)" in volume.corrections


def test_a_parametric_map_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    slices = maps("<f4")
    slices[2].FloatPixelData = slices[2].FloatPixelData[:100]
    assert "1,280 bytes of pixels, more than the file can hold" in refusal(write_all(tmp_path, slices))
    slices[2].FloatPixelData, slices[2].PatientComments = bytes(100), "x" * 2000
    assert "cut short: 100 of 1,280 bytes" in refusal(write_all(tmp_path, slices))
    slices[2].FloatPixelData = b""
    assert "missing or cut short" in refusal(write_all(tmp_path, slices))


def test_slices_of_floats_and_of_integers_are_one_volume_of_floats(tmp_path: Path) -> None:
    slices = [*maps("<f4")[:4], *ct8()[4:]]
    volume = only(read_series(write_all(tmp_path, slices)))
    assert volume.voxels.dtype == np.float32 and "slices of 2 types stored as float32" in volume.corrections
