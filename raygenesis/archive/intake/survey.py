"""Finding scans: the files below a folder, and the DICOM series among them by what their headers say."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raygenesis.archive.formats import arrays, dicom, itk, pictures
from raygenesis.archive.formats.readers import FORMATS, format_of
from raygenesis.errors import ScanError

# Ends of names that are no scans, so that nobody opens a million of them to see.
NO_SCANS = (
    ".json", ".csv", ".tsv", ".txt", ".md", ".xml", ".html", ".pdf", ".yaml", ".yml", ".bval", ".bvec", ".raw",
    ".zraw", ".log", ".py", ".parquet", ".zip", ".tar", ".gz", ".xlsx", ".docx",
)  # fmt: skip

# Formats that users may expect to be read, and what to do with them.
NOT_READ = {
    ".hdr": "Analyze and NIfTI pairs (.hdr, .img) are not read: save each as a single .nii",
    ".nhdr": "NRRD with a separate data file (.nhdr) is not read: save it as a single .nrrd",
}
DICOM_HEAD_BYTES = 256
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class File:
    """A file below the scans folder."""

    path: str  # below the folder, with "/"
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Scan:
    """What is decoded at once: a file, with its data file where there is one, or the files of a DICOM series."""

    files: tuple[File, ...]
    patient: str = ""  # DICOM's patient id
    series: str = ""  # and series; a series may grow by a file that comes first

    @property
    def name(self) -> str:
        """What it is called from one survey to the next."""
        return self.series or self.source

    @property
    def source(self) -> str:
        """The path of its first file."""
        return self.files[0].path

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


@dataclass(frozen=True)
class SetAside:
    """A file that looks like a scan and is none, or none that can be read."""

    source: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """What a folder holds: scans by path, files set aside, and how many other files there are."""

    scans: tuple[Scan, ...]
    aside: tuple[SetAside, ...]
    num_others: int

    @property
    def num_found(self) -> int:
        """Scans and files set aside."""
        return len(self.scans) + len(self.aside)


def without_ending(path: str) -> str:
    """A file's path without its ending; of `.nii.gz` both parts go."""
    return re.sub(r"(\.nii)?\.[A-Za-z]+$", "", path)


ReadHeaders = Callable[[Path, Sequence[File]], Iterable[dicom.Header | str]]


def read_headers(root: Path, files: Sequence[File]) -> Iterator[dicom.Header | str]:
    """The header of each DICOM file, or the reason why it cannot be read."""
    for file in files:
        try:
            yield dicom.read_header(root / file.path)
        except ScanError as error:
            yield str(error)
        except OSError as error:
            yield f"cannot be read ({error.strerror or error})"
        except MemoryError:
            yield "its header does not fit in memory"


def survey(folder: Path, headers: ReadHeaders = read_headers) -> Survey:
    """Every scan below a folder. Raises ScanError if the folder is missing or holds none.

    Hidden files and folders are left out (DataLad keeps a second name of every scan below `.git`), and links that
    lead out of the folder are not followed. `headers` reads those of many DICOM files, in their order.
    """
    if re.match(r"[a-z0-9]+:/", str(folder)):
        raise ScanError(f"scans folder {folder}: scans are read from a folder of a mounted file system")
    if not folder.is_dir():
        raise ScanError(f"scans folder {folder} does not exist or is not a folder: give the one that holds the scans")
    root = folder.resolve()
    scans: list[Scan] = []
    aside: list[SetAside] = []
    slices: list[File] = []
    num_others = 0
    for path in sorted(_files(root, aside)):
        source = path.relative_to(root).as_posix()
        lower = path.name.lower()
        if not lower.endswith(tuple(FORMATS)) and lower.endswith(NO_SCANS):
            num_others += 1
            continue
        try:
            reason = _refusal(path, root) or NOT_READ.get(path.suffix.lower())
            if reason is not None:
                aside.append(SetAside(_printable(source), reason))
            elif format_of(path.name) is not None:
                scans.append(Scan(_with_data_file(path, root)))
            elif _is_dicom(path):
                slices.append(_file(path, root))
            elif lower.endswith(DICOM_SUFFIXES):
                aside.append(SetAside(source, "not DICOM, whatever its name says"))
            else:
                num_others += 1
        except ScanError as error:
            aside.append(SetAside(source, str(error)))
        except OSError as error:
            aside.append(SetAside(source, f"cannot be read ({error.strerror or error})"))
    series, not_images = _series(slices, headers(root, slices))
    scans += series
    aside += not_images
    if not scans and not aside:
        raise ScanError(f"no scan found in {folder}: expected DICOM, or files ending in {', '.join(FORMATS)}")
    scans.sort(key=lambda scan: scan.source)
    aside.sort(key=lambda file: file.source)
    return Survey(tuple(scans), tuple(aside), num_others)


def _files(root: Path, aside: list[SetAside]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        below = os.path.relpath(error.filename or root, root)
        aside.append(SetAside(_printable(below), f"a folder that cannot be read ({error.strerror})"))

    for folder, below, names in os.walk(root, onerror=unreadable):
        linked = [name for name in below if Path(folder, name).is_symlink() and not name.startswith(".")]
        for name in linked:
            source = os.path.relpath(Path(folder, name), root)
            aside.append(SetAside(_printable(source), "a linked folder, and those are not followed"))
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and (path.is_file() or _leads_nowhere(path)):
                yield path


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _refusal(path: Path, root: Path) -> str | None:
    """Why a path is not followed or cannot be written down."""
    if _leads_nowhere(path):
        return "a link to a file that is not there (git annex get?)"
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        return "a link that leads out of the scans folder"
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8, and tables cannot hold it: rename it"
    return None


def _printable(source: str) -> str:
    return source.encode(errors="replace").decode()


def _file(path: Path, root: Path) -> File:
    stat = path.stat()
    return File(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)


def _with_data_file(path: Path, root: Path) -> tuple[File, ...]:
    """A file, and the one of voxels or the side-car that belongs to it: a change in either is a change of the scan."""
    data = itk.data_file(path)
    side_car = path.with_suffix(".json") if format_of(path.name) in (arrays, pictures) else None
    parts = [path, *(part for part in (data, side_car) if part is not None and part.is_file())]
    return tuple(_file(part, root) for part in parts)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return dicom.looks_like_dicom(file.read(DICOM_HEAD_BYTES))


def _series(files: Sequence[File], headers: Iterable[dicom.Header | str]) -> tuple[list[Scan], list[SetAside]]:
    """Files by series; projections each for itself; what is no image set aside, one row a series and reason."""
    scans, aside = [], []
    groups: dict[tuple[str, str], list[File]] = defaultdict(list)
    no_images: dict[tuple[str, str], list[File]] = defaultdict(list)
    for file, header in zip(files, headers, strict=True):
        if isinstance(header, str):
            aside.append(SetAside(file.path, header))
        elif header.aside:
            no_images[header.series, header.aside].append(file)
        elif header.is_projection:
            scans.append(Scan((file,), header.patient))
        else:
            groups[header.series, header.patient].append(file)
    for (_, reason), members in no_images.items():
        more = f" (and {len(members) - 1} more files of its series)" if len(members) > 1 else ""
        aside.append(SetAside(members[0].path, f"{reason}{more}"))
    scans += [Scan(tuple(members), patient, series) for (series, patient), members in groups.items()]
    return scans, aside
