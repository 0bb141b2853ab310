"""Damaged copies of small scans of every format, read one after another in a process of their own.

    python -m tests.support.mutations FORMAT FIRST LAST FOLDER

Prints a line before each reading, so that whoever started it knows which damage crashed or hung the process, and
last of all how many were read, how many refused, and the process's peak memory.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from raygenesis.archive.formats.readers import read_scan, read_scan_geometry
from raygenesis.archive.intake.survey import survey
from raygenesis.errors import ScanError
from tests.support import dicom_series
from tests.support.data import SHARED
from tests.support.deep_png import deep_png
from tests.support.nifti import grey, nifti_bytes

Files = dict[str, bytes]


def _itk(name: str, compressed: bool = False) -> Files:
    folder = Path(SCRATCH, "seed")
    folder.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(grey((6, 7, 8))), str(folder / name), compressed)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _picture(kind: str, dtype: str = "u1") -> Files:
    out = io.BytesIO()
    Image.fromarray(grey((24, 20), dtype)).save(out, kind)
    return {f"scan.{kind.lower()}": out.getvalue()}


def _deep_picture(colours: int, samples: int) -> Files:
    pixels = np.random.default_rng(0).integers(0, 65536, (24, 20, samples)).astype(np.uint16)
    return {"scan.png": deep_png(pixels, colours)}


def _sheared() -> Files:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 1.0
    return {"scan.nii": nifti_bytes(grey((5, 6, 7)), affine)}


def _array(packed: bool) -> Files:
    out = io.BytesIO()
    (np.savez_compressed if packed else np.save)(out, grey((5, 6, 7)))
    side_car = json.dumps({"spacing_mm": [1, 2, 3]}).encode()
    return {"scan.npz" if packed else "scan.npy": out.getvalue(), "scan.json": side_car}


def _dicom(compressed: bool = False) -> Files:
    folder = Path(SCRATCH, "seed")
    folder.mkdir(parents=True, exist_ok=True)
    slices = dicom_series.run_length_encoded() if compressed else dicom_series.series()
    dicom_series.write_all(folder, slices, *([RLELossless] if compressed else []))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _values() -> Files:
    """A series with padding and a modality LUT."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [300, 0, 16], list(range(300))
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    folder = Path(SCRATCH, "seed")
    folder.mkdir(parents=True, exist_ok=True)
    tags = {"PixelPaddingValue": 7, "PixelPaddingRangeLimit": 20, "ModalityLUTSequence": Sequence([table])}
    dicom_series.write_all(folder, dicom_series.series(dicom_series.grey() % 300, **tags))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _frames() -> Files:
    """One file of frames without places of their own."""
    voxels = dicom_series.ct8_voxels()
    data = dicom_series.ct8(NumberOfFrames=8, SpacingBetweenSlices=2.5, PixelData=voxels.tobytes())[0]
    folder = Path(SCRATCH, "seed")
    folder.mkdir(parents=True, exist_ok=True)
    return {"frames.dcm": dicom_series.write(folder / "frames.dcm", data).read_bytes()}


def _torn() -> Files:
    """A map of floats whose slices have a series UID each, and two acquisitions."""
    slices = dicom_series.ct8(Modality="MR")
    for number, one in enumerate(slices):
        one.SeriesInstanceUID, one.AcquisitionNumber, one.BitsAllocated = f"1.2.3.{number}", 1 + number // 4, 32
        one.FloatPixelData = np.frombuffer(one.PixelData, np.int16).astype(np.float32).tobytes()
        for name in ("PixelData", "PixelRepresentation", "BitsStored", "HighBit"):
            delattr(one, name)
    folder = Path(SCRATCH, "seed")
    dicom_series.write_all(folder, slices)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _real(name: str) -> Files:
    paths = sorted((SHARED / "odd-dicom" / name / "001").iterdir())
    return {path.name: path.read_bytes() for path in paths}


FORMATS: dict[str, Callable[[], Files]] = {
    "nifti": lambda: {"scan.nii": nifti_bytes(grey((5, 6, 7)))},
    "nifti-gz": lambda: {"scan.nii.gz": gzip.compress(nifti_bytes(grey((5, 6, 7))), 1, mtime=0)},
    "metaimage": lambda: _itk("scan.mha"),
    "metaimage-pair": lambda: _itk("scan.mhd", compressed=True),
    "nrrd": lambda: _itk("scan.nrrd", compressed=True),
    "npy": lambda: _array(False),
    "npz": lambda: _array(True),
    "png": lambda: _picture("PNG", "u2"),
    "png-deep": lambda: _deep_picture(2, 3),
    "png-deep-alpha": lambda: _deep_picture(4, 2),
    "nifti-sheared": _sheared,
    "jpeg": lambda: _picture("JPEG"),
    "dicom": _dicom,
    "dicom-rle": lambda: _dicom(compressed=True),
    "dicom-values": _values,
    "dicom-frames": _frames,
    "dicom-torn": _torn,
    "dicom-jpegls": lambda: _real("compressed_jpegls"),
    "dicom-j2k": lambda: _real("compressed_j2k"),
    "dicom-jpeg": lambda: _real("compressed_jpeg"),
    "dicom-multiframe": lambda: _real("siemens_multiframe/anatomical"),
}
NEED_REAL = ("dicom-jpegls", "dicom-j2k", "dicom-jpeg", "dicom-multiframe")


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """One to eight changes: bytes exchanged, bits turned, parts cut, doubled, blanked or moved."""
    data = bytearray(content)
    for _ in range(int(generator.integers(1, 9))):
        if len(data) < 2:
            break
        # Half of the changes near the begin, where headers are.
        most = min(len(data), 400) if generator.random() < 0.5 else len(data)
        place, length = int(generator.integers(most)), int(generator.integers(1, 33))
        kind = int(generator.integers(7))
        if kind == 0:
            data[place] = int(generator.integers(256))
        elif kind == 1:
            data[place] ^= 1 << int(generator.integers(8))
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            data[place : place + length] = generator.choice([b"\0", b"\xff", b"\x7f"]) * length
        elif kind == 5:
            data[place : place + 4] = int(generator.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**16])).to_bytes(4, "little")
        else:
            del data[place:]
    return bytes(data)


def write_damaged(files: Files, number: int, folder: Path) -> None:
    """The seed's files in `folder`, one of them damaged as the number says."""
    generator = np.random.default_rng(number)
    chosen = sorted(files)[int(generator.integers(len(files)))]
    for name, content in files.items():
        if name == chosen:
            # Within a gzip stream, whose checksum would refuse every damage to itself.
            if name.endswith(".gz") and number % 2:
                content = gzip.compress(damaged(gzip.decompress(content), generator), 1)
            else:
                content = damaged(content, generator)
        (folder / name).write_bytes(content)


def read_all(folder: Path) -> bool:
    """Survey a folder and read every scan in it; whether all could be read. Only ScanError may be raised."""
    try:
        found = survey(folder)
        for scan in found.scans:
            paths = [folder / file.path for file in scan.files]
            read_scan_geometry(paths)
            for volume in read_scan(paths, max_bytes=2**28):
                assert np.isfinite(volume.voxels.astype(np.float64).sum()) and np.isfinite(volume.affine).all()
        return not found.aside
    except ScanError:
        return False


def main(name: str, first: int, last: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    files = FORMATS[name]()
    folder.mkdir(parents=True, exist_ok=True)
    counts = [0, 0]
    for number in range(first, last):
        print(f"{name} {number}", flush=True)
        write_damaged(files, number, folder)
        counts[read_all(folder)] += 1
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    (peak_kib,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
    print(json.dumps({"refused": counts[0], "read": counts[1], "peak_mib": int(peak_kib) // 1024}))


if __name__ == "__main__":
    SCRATCH = Path(sys.argv[4])
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), SCRATCH / "scans")
