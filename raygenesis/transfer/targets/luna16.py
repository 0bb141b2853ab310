"""LUNA16: `subset0` … `subset9` of MetaImage scans, and `candidates_V2.csv`: is a candidate a nodule?"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from raygenesis.archive.formats.metaimage import data_file
from raygenesis.errors import ScanError
from raygenesis.settings.streams import NEGATIVES
from raygenesis.transfer.examples import (
    CLASSIFICATION,
    TEST,
    TRAIN,
    VALIDATION,
    Example,
    ImageFile,
    Problem,
    Region,
    Target,
)
from raygenesis.transfer.targets.csv_tables import rows
from raygenesis.transfer.targets.listing import by_name, files_below, require_examples

TABLE = "candidates_V2.csv"
COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class")
CLASSES = ("no nodule", "nodule")
SPLITS = (*[TRAIN] * 5, *[VALIDATION] * 2, *[TEST] * 3)
SUBSET = re.compile(r"subset(\d)")

# x y z in RAS+ mm, and the class.
Candidate = tuple[float, float, float, int]


def read(
    folder: Path,
    *,
    extent_mm: tuple[float, float, float] = (40.0, 45.0, 45.0),
    max_negatives_per_scan: int | None = 20,
    seed: int = 0,
) -> Target:
    """Candidates as regions of `extent_mm` (z y x) round them.

    Subsets 0–4 are for training, 5–6 for validation and 7–9 for testing. Every nodule is kept, and of a scan's other
    candidates a sample of `max_negatives_per_scan` (all if None) that depends on the scan and the seed alone. The
    subject is the scan, as the owners name no patients. Raises ScanError.
    """
    paths = [path for path in files_below(folder, ".mhd") if _subset(folder, path) is not None]
    scans, problems = by_name(folder, paths, lambda path: path.stem)
    candidates, bad_rows = _candidates(folder / TABLE)
    examples: list[Example] = []
    for uid, path in scans.items():
        try:
            if uid not in candidates:
                raise ScanError(f"{TABLE} has no candidate of it")
            voxels = data_file(path)
            image = ImageFile((path, voxels) if voxels else (path,))  # both, as the archive knows a scan by both
        except ScanError as error:
            problems.append(Problem(path.relative_to(folder).as_posix(), str(error)))
            continue
        split = SPLITS[_subset(folder, path) or 0]
        for number, (*centre, value) in _sampled(uid, candidates[uid], max_negatives_per_scan, seed):
            region = Region((centre[0], centre[1], centre[2]), extent_mm)
            examples.append(Example(f"{uid}/{number:04d}", uid, image, value=value, region=region, split=split))
    alone = sorted(candidates.keys() - scans.keys())
    problems += [Problem(uid, f"{TABLE} names it, and no subset holds its .mhd") for uid in alone]
    problems += bad_rows
    window = (-1000.0, 1000.0)
    return require_examples(folder, Target(CLASSIFICATION, 3, CLASSES, tuple(examples), tuple(problems), window))


def _subset(folder: Path, path: Path) -> int | None:
    """Number of the subset that a file lies in; masks of the lungs bear the same names in other folders."""
    found = [SUBSET.fullmatch(part) for part in path.relative_to(folder).parts]
    return next((int(match[1]) for match in found if match), None)


def _candidates(table: Path) -> tuple[dict[str, list[Candidate]], list[Problem]]:
    """Each scan's candidates in order of place; the table has LPS+ mm, as MetaImage headers do."""
    found: dict[str, list[Candidate]] = defaultdict(list)
    problems = []
    for where, (uid, *numbers, value) in rows(table, COLUMNS):
        try:
            x, y, z = map(float, numbers)
        except ValueError:
            x = y = z = math.nan
        if not all(map(math.isfinite, (x, y, z))):
            problems.append(Problem(where, f"{', '.join(numbers)} is not a place of three numbers"))
        elif value not in ("0", "1"):
            problems.append(Problem(where, f"class {value!r} is neither 0 nor 1"))
        else:
            found[uid].append((-x, -y, z, int(value)))
    return {uid: sorted(candidates) for uid, candidates in found.items()}, problems


def _sampled(
    uid: str, candidates: Sequence[Candidate], max_negatives: int | None, seed: int
) -> list[tuple[int, Candidate]]:
    """All nodules and at most so many others, with their numbers among the scan's candidates."""
    numbered = list(enumerate(candidates))
    negatives = [number for number, candidate in numbered if not candidate[-1]]
    if max_negatives is None or len(negatives) <= max_negatives:
        return numbered
    key = int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=4).digest(), "big")
    generator = NEGATIVES.generator(seed, key)
    kept = set(generator.permutation(negatives)[:max_negatives].tolist())
    return [(number, candidate) for number, candidate in numbered if candidate[-1] or number in kept]
