"""Reading from the archive and bringing scans into it, against what a user would pick instead, in turn, in one run.

Everything is read once before it is timed. Whatever decodes or reads alone is pinned to one core.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import zarr
from numpy.typing import NDArray
from scipy import ndimage

import raygenesis  # noqa: F401  # first: it gives Ray its settings
from raygenesis.archive.catalogue import read_catalogue
from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.ingest import ingest
from raygenesis.archive.intake.take_in import take_in
from raygenesis.archive.source import Part, parts_of
from raygenesis.archive.store import read_regions, write_volume
from raygenesis.archive.volume import Volume
from raygenesis.cluster.streams import read_parts
from raygenesis.discovery.coarse_scans import coarse_cubes
from raygenesis.settings import ArchiveSettings, IntensitySettings, load_settings
from raygenesis.workspace.workspace import Workspace
from tests.support.data import HEADS, SHARED

ROUNDS, NUM_CROPS, NUM_HEADS = 5, 44, 48
COARSE_SHAPE = (32, 32, 32)
NUM_STREAMED = 20_000
CT = SHARED / "lidc-ct" / "LIDC-IDRI-0001"


def main() -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{platform.machine()}, {os.cpu_count()} cores, commit {commit or 'none'}; medians of {ROUNDS} rounds, warm")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        series = _series(folder)
        _reading(folder, series)
        _bringing_in("a CT series of DICOM files", folder / "ct", [series])
        heads = [[path] for path in sorted(HEADS.glob("*.nii.gz"))[:NUM_HEADS]] or _synthetic_heads(folder)
        _bringing_in(f"{len(heads)} heads, .nii.gz", folder / "heads", heads)
        _streaming(folder, [paths[0] for paths in heads])


def _series(folder: Path) -> list[Path]:
    paths = sorted(CT.rglob("*.dcm"))
    if paths:
        return paths
    print(f"no CT at {CT}: a simulated one instead")
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 300, (133, 512, 512)), 1)
    image = sitk.GetImageFromArray(noise.astype(np.int16))
    sitk.WriteImage(image, str(folder / "ct.mha"))
    return [folder / "ct.mha"]


def _synthetic_heads(folder: Path) -> list[list[Path]]:
    print(f"no heads at {HEADS}: simulated ones instead")
    generator = np.random.default_rng(0)
    for number in range(NUM_HEADS):
        voxels = ndimage.gaussian_filter(generator.normal(0, 90, (120, 120, 90)), 1)
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), np.eye(4)), folder / f"{number}.nii.gz")
    return [[folder / f"{number}.nii.gz"] for number in range(NUM_HEADS)]


@contextmanager
def _one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _race(entries: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each entry, all of them once a round."""
    for run in entries.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(ROUNDS):
        for name, run in entries.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _print(title: str, found: dict[str, float], num_bytes: int, ours: str) -> None:
    print(f"\n{title}")
    for name, seconds in found.items():
        share = "" if name == ours else f"   {ours} is {seconds / found[ours]:.2f} × as fast"
        print(f"  {name:34s} {seconds * 1e3:9.1f} ms {num_bytes / seconds / 2**20:9.0f} MiB/s{share}")


def _reading(folder: Path, series: list[Path]) -> None:
    """Whole volumes and crops."""
    import torchio
    from monai.transforms import LoadImage

    volume = read_scan(series)[0]
    voxels = np.ascontiguousarray(volume.voxels)
    np.save(folder / "ct.npy", voxels)
    nibabel.save(nibabel.Nifti1Image(voxels.T, volume.affine), folder / "ct.nii.gz")
    archived = folder / "ct.ome.zarr"
    write_volume(archived, Volume(voxels, volume.affine), {}, ArchiveSettings())
    everything = (slice(None),) * 3
    load = LoadImage(image_only=True)
    regions = list(_regions(voxels.shape))

    def with_zarr(*chosen: tuple[slice, ...]) -> list[NDArray[Any]]:
        array = zarr.open_array(archived / "0", mode="r")
        return [array[region] for region in chosen]

    def with_monai(*chosen: tuple[slice, ...]) -> list[NDArray[Any]]:
        whole = load(folder / "ct.nii.gz").numpy().T
        return [whole[region] for region in chosen]

    def with_torchio(*chosen: tuple[slice, ...]) -> list[NDArray[Any]]:
        whole = torchio.ScalarImage(folder / "ct.nii.gz").numpy()[0].T
        return [whole[region] for region in chosen]

    def from_memmap() -> list[NDArray[Any]]:
        mapped = np.load(folder / "ct.npy", mmap_mode="r")
        return [np.array(mapped[region]) for region in regions]

    def ours(*chosen: tuple[slice, ...]) -> list[NDArray[Any]]:
        return read_regions(archived, 0, chosen)

    with _one_core():
        whole = _race(
            {
                "archive": lambda: ours(everything), "np.load": lambda: np.load(folder / "ct.npy"),
                "zarr-python, same files": lambda: with_zarr(everything),
                "MONAI LoadImage, .nii.gz": lambda: with_monai(everything),
                "TorchIO ScalarImage, .nii.gz": lambda: with_torchio(everything),
            }
        )  # fmt: skip
        crops = _race(
            {
                "archive": lambda: ours(*regions), "np.memmap": from_memmap,
                "zarr-python, same files": lambda: with_zarr(*regions),
                "MONAI LoadImage, then crop": lambda: with_monai(*regions),
                "TorchIO ScalarImage, then crop": lambda: with_torchio(*regions),
            }
        )  # fmt: skip
    of_all_cores = _race({"archive": lambda: ours(*regions), "np.memmap": from_memmap})
    size = " × ".join(str(side) for side in voxels.shape)
    _print(f"a whole CT of {size} {voxels.dtype}, one core", whole, voxels.nbytes, "archive")
    wanted = sum(int(np.prod([part.stop - part.start for part in region])) for region in regions)
    title = f"{NUM_CROPS} crops of it of 48 to 128 voxels a side"
    _print(f"{title}, one core", crops, wanted * voxels.itemsize, "archive")
    _print(f"{title}, {os.cpu_count()} cores", of_all_cores, wanted * voxels.itemsize, "archive")


def _regions(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    generator = np.random.default_rng(0)
    for _ in range(NUM_CROPS):
        sides = [min(int(side), length) for side, length in zip(generator.integers(48, 129, 3), shape, strict=True)]
        starts = [int(generator.integers(n - side + 1)) for n, side in zip(shape, sides, strict=True)]
        yield tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))


def _bringing_in(title: str, folder: Path, scans: list[list[Path]]) -> None:
    """The work of ingest on a scan against its decoder alone."""
    rounds = iter(range(1000))

    def ours() -> None:
        volumes = folder / str(next(rounds)) / "volumes"
        volumes.mkdir(parents=True)
        for paths in scans:
            outcome = take_in(paths, volumes, ArchiveSettings())
            assert outcome.records, outcome

    def only_decoded() -> None:
        for paths in scans:
            read_scan(paths)

    def with_simpleitk() -> None:
        for paths in scans:
            if len(paths) > 1:
                reader = sitk.ImageSeriesReader()
                reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(paths[0].parent)))
                sitk.GetArrayFromImage(reader.Execute())
            else:
                sitk.GetArrayFromImage(sitk.ReadImage(str(paths[0])))

    with _one_core():
        found = _race(
            {"take in (decode, hash, store)": ours, "SimpleITK, decode only": with_simpleitk,
             "our readers, decode only": only_decoded}
        )  # fmt: skip
    num_bytes = sum(read_scan(paths)[0].voxels.nbytes for paths in scans)
    _print(f"ingest of {title}, MiB of voxels, one core", found, num_bytes, "take in (decode, hash, store)")


def _streaming(folder: Path, heads: list[Path]) -> None:
    """The coarse level of a whole archive through Ray Data, against decoding it in a plain loop."""

    scans = folder / "scans"
    scans.mkdir()
    for path in heads:
        shutil.copy(path, scans)
    workspace = Workspace.open(folder / "workspace")
    settings = load_settings("cpu-small")
    begin = time.perf_counter()
    ingest(scans, workspace, settings)
    cold = time.perf_counter() - begin
    rows = read_catalogue(workspace.catalog)
    # The archive many times over, so that there is a steady state to time beside Ray's start of a run.
    many = rows * (NUM_STREAMED // len(rows))
    parts = parts_of(many, 128)
    source = coarse_cubes(workspace.volumes, parts, COARSE_SHAPE, IntensitySettings())
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        shares = [(workspace.volumes, part) for part in parts[:cores]]
        list(pool.map(_decode_part, shares))  # imports, and files into memory
        begin = time.perf_counter()
        list(pool.map(_decode_part, shares))
        alone = (time.perf_counter() - begin) / (ROUNDS * sum(len(part[1]) for _, part in shares)) * len(many)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        dataset = read_parts(source)
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        assert sum(batch.num_rows for batch in batches) == len(many)
        seconds.append(time.perf_counter() - begin)
    under_ray = statistics.median(seconds)
    print(f"\ningest of {len(rows)} heads as a command, Ray's start included: {cold:.1f} s")
    print(f"streaming the coarse level of {len(many)} volumes as cubes of {' × '.join(map(str, COARSE_SHAPE))}")
    print(f"  {cores} processes that do nothing else {len(many) / alone:9.0f} volumes/s")
    print(f"  Ray Data                         {len(many) / under_ray:9.0f} volumes/s")
    print(f"  share of the time that is reading and decoding: {alone / under_ray:.2f}")


def _decode_part(share: tuple[Path, Part]) -> None:
    volumes, part = share
    (task,) = coarse_cubes(volumes, [part], COARSE_SHAPE, IntensitySettings()).get_read_tasks(1)
    for _ in range(ROUNDS):
        list(task())


if __name__ == "__main__":
    main()
