"""Patients as columns: the catalogue's split, and who can be cropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue, split_by_subject
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.patients import Patients, check_counts, load_patients
from raygenesis.discovery.references import choose_references
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.settings import DiscoverySettings, Scale
from raygenesis.workspace.files import write_table
from raygenesis.workspace.manifest import AutoencoderCounts, AutoencoderManifest, ComponentsCounts, ComponentsManifest
from raygenesis.workspace.manifest_files import write_manifest
from raygenesis.workspace.workspace import Workspace
from tests.support.patients import discovery_settings, embedded, patients

# --- counting -------------------------------------------------------------------------------------


def count(people: Patients, chosen: DiscoverySettings) -> None:
    where = "that the archive has with scans large enough to crop"
    check_counts(people.num_subjects(TRAINING), people.num_subjects(VALIDATION), where, chosen)


def test_what_is_asked_for_is_counted_in_subjects_with_a_large_enough_scan():
    count(patients(), discovery_settings(neighbours=5, held_out=4, references=5))
    for counts, sentence in (
        ({"neighbours": 6}, "discovery.num_neighbours=6 is more than the 5 training subjects"),
        ({"references": 6}, "discovery.num_references=6 is more than the 5 training subjects"),
        ({"held_out": 5}, "discovery.num_validation_neighbours=5 is more than the 4 held-out subjects"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            count(patients(), discovery_settings(**counts))


# --- loading --------------------------------------------------------------------------------------

NUM_VOLUMES = 24
CHOSEN = discovery_settings(scales=(Scale(extent_mm=(20, 20, 20)),))
FAILED, GONE, FLAT, SMALL = "03", {"05", "11"}, "08", "09"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """24 scans of 18 subjects: one without an embedding, one a picture, one small; two embedded ones were pruned."""
    made = Workspace.open(tmp_path)
    made.archive.mkdir()
    rows = [
        {
            "volume_id": f"{number:02d}", "subject_id": f"s{number % 18}", "source": f"{number}.nii",
            "shape": [20, 30] if f"{number:02d}" == FLAT else [9 if f"{number:02d}" == SMALL else 10, 20, 20],
            "spacing_mm": [2.0, 1.0, 1.0][: 2 if f"{number:02d}" == FLAT else 3],
        }
        for number in range(NUM_VOLUMES)
    ]  # fmt: skip
    rows = [row for row in rows if row["volume_id"] not in GONE]
    write_table(made.catalog, pa.Table.from_pylist(rows, CATALOGUE))
    # Numbers do not follow the catalogue's order: the last volumes came first.
    ids = [f"{number:02d}" for number in [*range(14, NUM_VOLUMES), *range(14)] if f"{number:02d}" != FLAT]
    embedded(made.embeddings, ids, np.random.default_rng(0).random((len(ids), 3)), frozenset({FAILED}))
    return made


def test_the_split_is_the_catalogues_whatever_was_embedded_and_in_whatever_order(workspace):
    known = load_patients(workspace, CHOSEN, 0.3, 0)
    assert known.names(range(len(known.ids))) == Embeddings(workspace.embeddings).ids().to_pylist()
    rows = read_catalogue(workspace.catalog, ndim=3)
    for split, members in zip((TRAINING, VALIDATION), split_by_subject(rows, 0.3, 0), strict=True):
        expected = {row["volume_id"] for row in members} - {FAILED, SMALL}
        assert set(known.names(np.flatnonzero(known.eligible(split)))) == expected
        subjects = {row["subject_id"] for row in members if row["volume_id"] in expected}
        assert known.num_subjects(split) == len(subjects)
    number_of = {name: number for number, name in enumerate(known.names(range(len(known.ids))))}
    assert known.subjects[number_of["01"]] == known.subjects[number_of["19"]] != known.subjects[number_of["02"]]
    assert not known.is_roomy[number_of[SMALL]] and known.is_roomy[number_of["10"]]  # 18 mm, and 20, which just fits


def test_volumes_that_the_archive_no_longer_has_are_never_chosen(workspace):
    known = load_patients(workspace, CHOSEN, 0.3, 0)
    gone = [number for number, name in enumerate(known.names(range(len(known.ids)))) if name in GONE]
    assert len(gone) == 2 and not known.is_there[gone].any()
    for split in (TRAINING, VALIDATION):
        assert not known.eligible(split)[gone].any()
    for choice in ("random", "spread"):
        asked = discovery_settings(references=10, reference_choice=choice, scales=CHOSEN.scales)
        assert not set(choose_references(known, Embeddings(workspace.embeddings), 0.0, asked, 0)) & set(gone)


@pytest.mark.parametrize("folder", ["autoencoder", "pca"])
def test_settings_that_would_hold_out_others_than_the_encoder_did_are_refused(workspace, folder):
    (workspace.root / folder).mkdir()
    trained = {"settings": {"seed": 5, "validation_fraction": 0.3}, "val_mse": 0.1}
    if folder == "autoencoder":
        counts = AutoencoderCounts(training=1, validation=1, epochs=1)
        write_manifest(workspace.autoencoder, AutoencoderManifest(counts=counts, **trained))
    else:
        fitted = ComponentsCounts(components=1, training=2, validation=1)
        write_manifest(workspace.pca, ComponentsManifest(counts=fitted, **trained))
    with pytest.raises(SettingsError, match=rf"seed=0 would hold out other subjects than .*{folder}, made with seed=5"):
        load_patients(workspace, CHOSEN, 0.3, 0)
    load_patients(workspace, CHOSEN, 0.3, 5)


def test_a_split_without_any_embedding_is_refused(workspace):
    rows = read_catalogue(workspace.catalog, ndim=3)
    _, held_out = split_by_subject(rows, 0.3, 0)
    ids = [row["volume_id"] for row in rows]
    failed = frozenset(row["volume_id"] for row in held_out)
    for path in workspace.embeddings.iterdir():
        path.unlink()
    embedded(workspace.embeddings, ids, np.ones((len(ids), 3)), failed)
    with pytest.raises(WorkspaceError, match=r"no validation volume has an embedding: see .*failures\.parquet"):
        load_patients(workspace, CHOSEN, 0.3, 0)
