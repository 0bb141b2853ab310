"""Who of a target's subjects pretraining has learnt from, and so must not be tested on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raygenesis.archive.catalogue import is_held_out, read_columns
from raygenesis.archive.identity import open_identity
from raygenesis.archive.intake import scan_fingerprint
from raygenesis.files import read_json
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING
from raygenesis.settings import ArchiveSettings, Settings
from raygenesis.transfer.examples import Example
from raygenesis.workspace import Workspace


def archive_settings(workspace: Workspace) -> ArchiveSettings | None:
    """Those that the workspace's archive was made with; None where it does not say."""
    manifest = read_json(workspace.archive / "manifest.json")
    return None if manifest is None else ArchiveSettings.model_validate(manifest["settings"]["archive"])


def seen_subjects(examples: Sequence[Example], workspace: Workspace, settings: Settings) -> set[str]:
    """Subjects whose scan's very files, or whose name, are among the volumes that the workspace trains on.

    Empty where the workspace has no archive. What published weights were trained on is not known here.
    """
    if not workspace.catalog.is_file():
        return set()
    table = read_columns(workspace.catalog, ["volume_id", "subject_id", "source_bytes"])
    volumes, subjects = (table[name].combine_chunks() for name in ("volume_id", "subject_id"))
    held_out = is_held_out(volumes, subjects, settings.validation_fraction, settings.seed)
    seen = set(volumes.filter(pa.array(~held_out)).to_pylist())
    for store in (workspace.patterns, workspace.crops):
        if (store / "manifest.json").is_file():
            # What the encoder saw, should the seed or the archive have changed since.
            seen |= set(read_patterns(store, ["volume_id"], predicate(TRAINING))["volume_id"].to_pylist())
    # A scan of several volumes (time points) has their number behind its fingerprint.
    scans = {volume.partition("-")[0] for volume in seen}
    # Only files of a known size can be known files: the others need no hashing.
    sizes = set(table["source_bytes"].unique().to_pylist())
    names = set(subjects.filter(pc.is_in(volumes, value_set=pa.array(seen, pa.string()))).to_pylist())
    made_with = archive_settings(workspace) or settings.archive
    identity = open_identity(workspace, made_with.keep_ids)
    fingerprints: dict[tuple[Path, ...], str | None] = {}

    def fingerprint(paths: tuple[Path, ...]) -> str | None:
        if paths not in fingerprints:
            is_known = sum(path.stat().st_size for path in paths) in sizes
            fingerprints[paths] = scan_fingerprint(paths) if is_known else None
        return fingerprints[paths]

    return {
        example.subject
        for example in examples
        if identity.subject(example.subject) in names or fingerprint(example.image.paths) in scans
    }
