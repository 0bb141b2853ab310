"""The subjects of a target that pretraining has learnt from, who must not be tested on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raygenesis.archive.catalogue import is_held_out, read_columns
from raygenesis.archive.intake.identity import Identity, open_identity
from raygenesis.archive.intake.take_in import earlier_fingerprint, scan_fingerprint
from raygenesis.cluster.progress import say
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING
from raygenesis.transfer.cases import IMAGES
from raygenesis.transfer.examples import Example
from raygenesis.transfer.runs import Run, archive_settings
from raygenesis.workspace.faults import patiently
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest_files import MANIFEST
from raygenesis.workspace.workspace import Workspace

EARLIER_DIGITS = 16  # of a scan's name in format 1 of the archive


@dataclass(frozen=True)
class Origin:
    """Where weights come from: the workspace, and the settings that decided which of its subjects were held out.

    keep_ids: of the archive, unless its manifest says otherwise.
    """

    workspace: Workspace
    ndim: int
    validation_fraction: float
    seed: int
    keep_ids: bool


def seen_subjects(examples: Sequence[Example], own: Origin, runs: Sequence[Run] = ()) -> set[str]:
    """Subjects among those of the examples that pretraining has learnt from, here or where the `runs` lie.

    own: the workspace that the target's results go to, and settings that also count for runs without their own.

    They are recognised by their scans' very files, or by their names, among the volumes of the training split. A line
    in the log names the weights of which the training subjects are unknown: published ones, and runs without their
    workspace. Raises PassingError where a file cannot be reached.
    """
    origins = [own]
    for run in runs:
        if run.workspace is not None and (run.workspace.catalog.is_file() or _stores(run.workspace)):
            used, origin = run.settings, replace(own, workspace=run.workspace)
            if used is not None:
                keep_ids = used.archive.keep_ids
                origin = Origin(run.workspace, used.ndim, used.validation_fraction, used.seed, keep_ids)
            origins.append(origin)
        else:
            say(
                "finetune",
                f"warning: whom {run.name} was pretrained on cannot be checked, as there is no archive with the "
                "weights: see to it that nobody of them is tested on",
            )
    name_of = functools.cache(_name_of)
    seen = set()
    distinct = {(each.workspace, each.validation_fraction, each.seed): each for each in origins}
    for origin in distinct.values():
        seen |= _seen_in(origin, origin.workspace == own.workspace, examples, name_of)
    return seen


def _seen_in(
    origin: Origin, is_own: bool, examples: Sequence[Example], name_of: Callable[[tuple[Path, ...], int], str]
) -> set[str]:
    workspace = origin.workspace
    seen: set[str] = set()
    for store in _stores(workspace):
        # What the encoder saw, should the seed or the archive have changed since.
        seen |= set(read_patterns(store, ["volume_id"], predicate(TRAINING))["volume_id"].to_pylist())
    names, sizes, identity = set(), None, None
    if workspace.catalog.is_file():
        table = read_columns(workspace.catalog, ["volume_id", "subject_id", "source_bytes", "shape"])
        # In a mixed archive only volumes of the training's own dimensions are used and split.
        table = table.filter(pc.equal(pc.list_value_length(table["shape"]), origin.ndim))
        volumes, subjects = (table[name].combine_chunks() for name in ("volume_id", "subject_id"))
        held_out = is_held_out(volumes, subjects, origin.validation_fraction, origin.seed)
        seen |= set(volumes.filter(pa.array(~held_out)).to_pylist())
        names = set(subjects.filter(pc.is_in(volumes, value_set=pa.array(seen, pa.string()))).to_pylist())
        # Only files of a known size can be known files: the others need not be hashed.
        sizes = set(table["source_bytes"].unique().to_pylist())
        archive = archive_settings(workspace)
        keep_ids = origin.keep_ids if archive is None else archive.keep_ids
        identity = _identity(workspace, keep_ids, is_own)
    # A scan of several volumes (time points) has their number behind its fingerprint.
    scans = {volume.partition("-")[0] for volume in seen}
    lengths = {len(scan) for scan in scans}

    def is_seen(example: Example) -> bool:
        if identity is not None and identity.subject(example.subject) in names:
            return True
        paths = example.image.paths
        may_be_known = bool(scans) and (sizes is None or sum(path.stat().st_size for path in paths) in sizes)
        return may_be_known and any(name_of(paths, num_digits) in scans for num_digits in lengths)

    return {each.subject for each in examples if patiently(functools.partial(is_seen, each), IMAGES)}


def _name_of(paths: tuple[Path, ...], num_digits: int) -> str:
    """What an archive whose names of scans are so long calls the scan of these files."""
    return earlier_fingerprint(paths) if num_digits == EARLIER_DIGITS else scan_fingerprint(paths)


def _stores(workspace: Workspace) -> list[Place]:
    return [store for store in (workspace.patterns, workspace.crops) if (store / MANIFEST).is_file()]


def _identity(workspace: Workspace, keep_ids: bool, is_own: bool) -> Identity | None:
    """What names the workspace's subjects; None for another workspace whose key was not shared with its archive."""
    if keep_ids or is_own or (workspace.private / "key").is_file():
        return open_identity(workspace, keep_ids)
    say("finetune", f"warning: without {workspace.private}/key its subjects are known by their files, not by name")
    return None
