"""Finding scans: the files below a folder, and the DICOM series among them by what their headers say."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raygenesis.archive.formats.dicom_header import Header, read_header
from raygenesis.archive.formats.readers import DICOM, SUFFIXES, format_named, format_of
from raygenesis.archive.formats.slices import are_slices_of_a_stack
from raygenesis.errors import PassingError, RaygenesisError, ScanError
from raygenesis.text.names import MAX_PATH, inner_path, printable, reason_text
from raygenesis.workspace.faults import lasting_reason, patiently
from raygenesis.workspace.fingerprint import digest

# Ends of names that are no scans where no format claims them, so that nobody opens a million files to see.
NO_SCANS = (
    ".json", ".csv", ".tsv", ".txt", ".md", ".xml", ".html", ".pdf", ".yaml", ".yml", ".bval", ".bvec", ".raw",
    ".zraw", ".log", ".py", ".parquet", ".zip", ".tar", ".gz", ".xlsx", ".docx",
)  # fmt: skip

# Formats that users may expect to be read, and what to do with them.
NOT_READ = {
    ".hdr": "Analyze and NIfTI pairs (.hdr, .img) are not read: save each as a single .nii",
    ".nhdr": "NRRD with a separate data file (.nhdr) is not read: save it as a single .nrrd",
}

# Ends of names that DICOM files often have.
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class ScanFile:
    """A file below the scans folder: its path there, with "/", and what shows that it has changed."""

    path: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Scan:
    """What is decoded at once: a file and its companions, or the files of a DICOM series.

    patient: DICOM's patient id. series: DICOM's series, or what names one of several; it may grow by a file that comes
    first.
    """

    files: tuple[ScanFile, ...]
    patient: str = ""
    series: str = ""

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", reason_text(self.reason))


@dataclass(frozen=True)
class Survey:
    """What a folder holds.

    scans: in order of path. aside: files set aside, likewise. num_others: how many other files there are. headers: what
    those of its DICOM files say that can be read.
    """

    scans: tuple[Scan, ...]
    aside: tuple[SetAside, ...]
    num_others: int
    headers: Mapping[ScanFile, Header]

    @property
    def num_found(self) -> int:
        """Scans and files set aside."""
        return len(self.scans) + len(self.aside)

    @property
    def listing(self) -> str:
        """Digest of the scans' paths, sizes and modification times."""
        files = [asdict(file) for scan in self.scans for file in scan.files]
        return digest([files, [file.source for file in self.aside]])


def without_ending(path: str) -> str:
    """A file's path without its ending; of `.nii.gz` both parts go."""
    return re.sub(r"(\.nii)?\.[A-Za-z]+$", "", path)


ReadHeaders = Callable[[Path, Sequence[ScanFile]], Iterable[Header | str]]


def read_headers(root: Path, files: Sequence[ScanFile]) -> Iterator[Header | str]:
    """The header of each DICOM file, or the reason why it cannot be read."""
    a_file = f"a file in {root}"
    for file in files:
        try:
            yield patiently(partial(read_header, root / file.path), a_file)
        except (ScanError, OSError, PassingError) as error:
            yield lasting_reason(error, a_file)
        except MemoryError:
            yield "its header does not fit in memory"


def require_folder(folder: Path) -> None:
    """Raise ScanError if a folder of scans is missing, or is a bucket's URL, of which a path has lost a slash."""
    if url := re.match(r"([a-z0-9]+):/", str(folder)):
        raise ScanError(
            f"--scans {url[1]}://{str(folder)[url.end() :]} is not supported: mount the bucket or copy it first"
        )
    if not folder.is_dir():
        raise ScanError(f"scans folder {folder} does not exist or is not a folder: give the one that holds the scans")


def survey(folder: Path, read: ReadHeaders = read_headers) -> Survey:
    """Every scan below a folder. Raises ScanError if the folder is missing or holds none.

    Hidden files and folders are left out (DataLad keeps a second name of every scan below `.git`), and links that
    lead out of the folder are not followed. `read` reads the headers of many DICOM files, in their order.
    """
    require_folder(folder)
    root = folder.resolve()
    scans: list[Scan] = []
    aside: list[SetAside] = []
    slices: list[ScanFile] = []
    num_others = 0
    for path in sorted(_files(root, aside)):
        found = _recognise(path, root)
        if isinstance(found, Scan):
            scans.append(found)
        elif isinstance(found, ScanFile):
            slices.append(found)
        elif isinstance(found, SetAside):
            aside.append(found)
        else:
            num_others += 1
    headers = dict(zip(slices, read(root, slices), strict=True))
    series, not_images = _series(headers)
    scans += series
    aside += not_images
    if not scans and not aside:
        raise ScanError(f"no scan found in {folder}: expected DICOM, or files ending in {', '.join(SUFFIXES)}")
    scans.sort(key=lambda scan: scan.source)
    aside.sort(key=lambda file: file.source)
    readable = {file: header for file, header in headers.items() if isinstance(header, Header)}
    return Survey(tuple(scans), tuple(aside), num_others, readable)


def _recognise(path: Path, root: Path) -> Scan | ScanFile | SetAside | None:
    """A file as a scan, as a file of some DICOM series, or as set aside; None if it does not look like a scan."""
    source, lower = path.relative_to(root).as_posix(), path.name.lower()
    known = format_named(path.name)
    if known is None and lower.endswith(NO_SCANS):
        return None
    reason = _refusal(path, root) or (NOT_READ.get(path.suffix.lower()) if known is None else None)
    if reason is not None:
        return SetAside(_shown(source), reason)
    a_file = f"a file in {root}"
    try:
        known = known or patiently(partial(format_of, path), a_file)
        if known is None:
            is_misnamed = lower.endswith(DICOM_SUFFIXES)
            return SetAside(source, "not DICOM, whatever its name says") if is_misnamed else None
        if known is DICOM:
            return _file(path, root)
        companions = [part for part in known.companions(path) if part.is_file()]
        if reason := next(filter(None, (_refusal(part, root) for part in companions)), None):
            return SetAside(source, reason)
        return Scan(tuple(_file(part, root) for part in (path, *companions)))
    except (ScanError, OSError, PassingError) as error:
        return SetAside(source, lasting_reason(error, a_file))


def _files(root: Path, aside: list[SetAside]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        below = os.path.relpath(error.filename or root, root)
        aside.append(SetAside(_shown(below), f"a folder that {lasting_reason(error, root)}"))

    for folder, below, names in os.walk(root, onerror=unreadable):
        linked = [name for name in below if Path(folder, name).is_symlink() and not name.startswith(".")]
        for name in linked:
            source = os.path.relpath(Path(folder, name), root)
            aside.append(SetAside(_shown(source), "a linked folder, and those are not followed"))
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
        inner_path(path.relative_to(root).as_posix())
    except UnicodeEncodeError:
        return "its name is not UTF-8, and tables cannot hold it: rename it"
    except RaygenesisError:
        return "its name has a backslash, a line break or another character that is not shown: rename it"
    return None


def _shown(source: str) -> str:
    return printable(source.encode(errors="replace").decode(), MAX_PATH)


def _file(path: Path, root: Path) -> ScanFile:
    stat = path.stat()
    return ScanFile(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)


def _series(headers: Mapping[ScanFile, Header | str]) -> tuple[list[Scan], list[SetAside]]:
    """Files by series; projections each for itself; what is no image set aside, one row a series and reason."""
    scans, aside = [], []
    groups: dict[tuple[str, str], list[ScanFile]] = defaultdict(list)
    lone: dict[ScanFile, Header] = {}
    no_images: dict[tuple[str, str], list[ScanFile]] = defaultdict(list)
    for file, header in headers.items():
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
    for (series, patient), members in groups.items():
        header = headers[members[0]]
        if len(members) == 1 and isinstance(header, Header) and header.stack:
            lone[members[0]] = header
        else:
            scans.append(Scan(tuple(members), patient, series))
    return scans + _joined(lone), aside


def _joined(lone: Mapping[ScanFile, Header]) -> list[Scan]:
    """Slices whose series UID is theirs alone: those of one stack as one scan, as some anonymisers tear it up.

    Those of a stack share a patient, all that `Header.stack` is of and, unless each has its own, a frame of reference;
    where two stacks share even these, a folder.
    """
    scans = []
    for (patient, stack), members in _by(lone, lambda file: (lone[file].patient, lone[file].stack)).items():
        frames = _by(members, lambda file: lone[file].frame_of_reference)
        for group in [members] if len(frames) == len(members) else frames.values():
            whole = [group] if _is_stack(group, lone, num_each=1) else _by(group, _folder).values()
            for part in whole:
                if len(part) > 1 and _is_stack(part, lone):
                    name = f"{stack} {lone[part[0]].frame_of_reference} {_folder(part[0])}"
                    scans.append(Scan(tuple(part), patient, name))
                else:
                    scans += [Scan((file,), patient, lone[file].series) for file in part]
    return scans


def _by(files: Iterable[ScanFile], key: Callable[[ScanFile], Any]) -> dict[Any, list[ScanFile]]:
    groups: dict[Any, list[ScanFile]] = {}
    for file in files:
        groups.setdefault(key(file), []).append(file)
    return groups


def _is_stack(files: Sequence[ScanFile], headers: Mapping[ScanFile, Header], num_each: int | None = None) -> bool:
    """Whether slices lie as those of a stack do, at each place `num_each` where that is given."""
    depths = [headers[file].depth_mm for file in files]
    is_each = num_each is None or len(set(depths)) * num_each == len(depths)
    return is_each and are_slices_of_a_stack(depths)


def _folder(file: ScanFile) -> str:
    return file.path.rpartition("/")[0]
