"""Patients as columns: the catalogue's split, who can be cropped, and references among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue, split_by_subject
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.patients import Patients, check_counts, choose_references, load_patients
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.settings import DiscoverySettings, Scale, Settings
from raygenesis.workspace.files import write_json, write_table
from raygenesis.workspace.workspace import Workspace

# Scans on a line, at 0, 1, 2 …; those of the last four subjects are held out. Subjects b and h have two scans.
SUBJECTS = list("abbcdefghhij")
HELD_OUT = np.array([subject in "ghij" for subject in SUBJECTS])
TOO_SMALL = 4  # subject d


def patients() -> Patients:
    ids = [f"{number:02d}" for number in range(len(SUBJECTS))]
    numbered = np.unique(SUBJECTS, return_inverse=True)[1]
    is_there = np.ones(len(SUBJECTS), bool)
    return Patients(ids, numbered, HELD_OUT, np.arange(len(SUBJECTS)) != TOO_SMALL, is_there)


def settings(neighbours: int = 4, held_out: int = 3, references: int = 2, **chosen: object) -> Settings:
    discovery = DiscoverySettings(
        num_references=references, num_neighbours=neighbours, num_validation_neighbours=held_out, **chosen
    )
    return Settings(discovery=discovery)


def embedded(folder: Path, ids: list[str], vectors: np.ndarray, failed: frozenset[str] = frozenset()) -> Embeddings:
    """Embeddings in parts of five volumes."""
    folder.mkdir(exist_ok=True)
    for start in range(0, len(ids), 5):
        some, rows = ids[start : start + 5], np.float32(vectors[start : start + 5])
        table = pa.table(
            {
                "volume_id": pa.array(some, pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(rows.ravel(), vectors.shape[1]),
                "failure": ["damaged" if name in failed else "" for name in some],
            }
        )
        write_table(folder / f"part-{start:09d}.parquet", table)
    return Embeddings(folder)


# --- references -----------------------------------------------------------------------------------


def on_a_line(folder: Path) -> Embeddings:
    return embedded(folder, patients().ids, np.arange(len(SUBJECTS))[:, None] * np.ones((1, 3)))


def test_references_are_training_subjects_of_their_own_large_enough_and_the_same_as_more_are_asked_for(tmp_path):
    known, table = patients(), on_a_line(tmp_path)
    five = choose_references(known, table, 0.0, settings(references=5))
    assert {SUBJECTS[number] for number in five} == set("abcef")
    assert TOO_SMALL not in five
    for fewer in range(1, 5):
        assert choose_references(known, table, 0.0, settings(references=fewer)) == five[:fewer]
    others = [settings().model_copy(update={"seed": seed}) for seed in range(20)]
    seeds = {choose_references(known, table, 0.0, chosen)[0] for chosen in others}
    assert len(seeds) > 3


def farthest_first(vectors: np.ndarray, first: int, among: list[int], count: int) -> list[int]:
    """By a plain loop."""
    chosen = [first]
    while len(chosen) < count:
        gaps = {n: min(np.linalg.norm(vectors[n] - vectors[one]) for one in chosen) for n in among if n not in chosen}
        chosen.append(max(gaps, key=gaps.get))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_spread_references_are_each_the_farthest_from_those_before(tmp_path, seed):
    vectors = np.random.default_rng(seed).standard_normal((40, 6)).astype(np.float32)
    everyone = np.ones(40, bool)
    held_out = np.arange(40) % 4 == 0
    known = Patients([f"{n:02d}" for n in range(40)], np.arange(40), held_out, everyone, everyone)
    table = embedded(tmp_path, known.ids, vectors)
    chosen = settings(references=8, reference_choice="spread").model_copy(update={"seed": seed})
    eight = choose_references(known, table, 0.0, chosen)
    assert eight == farthest_first(vectors, eight[0], np.flatnonzero(~held_out).tolist(), 8)
    drawn = choose_references(known, table, 0.0, settings(references=8).model_copy(update={"seed": seed}))
    assert eight[0] == drawn[0] and eight != drawn
    gaps = [
        min(np.linalg.norm(vectors[a] - vectors[b]) for a in some for b in some if a != b) for some in (eight, drawn)
    ]
    assert gaps[0] > gaps[1]
    for fewer in range(1, 8):
        asked = settings(references=fewer, reference_choice="spread").model_copy(update={"seed": seed})
        assert choose_references(known, table, 0.0, asked) == eight[:fewer]


@pytest.mark.parametrize("choice", ["spread", "random"])
def test_copies_of_a_reference_are_no_further_references(tmp_path, choice):
    vectors = np.ones((len(SUBJECTS), 3), np.float32)
    vectors[[SUBJECTS.index("a"), SUBJECTS.index("b")]] = 4
    table = embedded(tmp_path, patients().ids, vectors)
    chosen = choose_references(patients(), table, 0.5, settings(references=5, reference_choice=choice))
    assert len(chosen) == 2 and len({SUBJECTS[number] in "ab" for number in chosen}) == 2


# --- counting -------------------------------------------------------------------------------------


def count(people: Patients, chosen: Settings) -> None:
    where = "that the archive has with scans large enough to crop"
    check_counts(people.num_subjects(TRAINING), people.num_subjects(VALIDATION), where, chosen)


def test_what_is_asked_for_is_counted_in_subjects_with_a_large_enough_scan():
    count(patients(), settings(neighbours=5, held_out=4, references=5))
    for counts, sentence in (
        ({"neighbours": 6}, "discovery.num_neighbours=6 is more than the 5 training subjects"),
        ({"references": 6}, "discovery.num_references=6 is more than the 5 training subjects"),
        ({"held_out": 5}, "discovery.num_validation_neighbours=5 is more than the 4 held-out subjects"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            count(patients(), settings(**counts))


# --- loading --------------------------------------------------------------------------------------

NUM_VOLUMES = 24
CHOSEN = settings(scales=(Scale(extent_mm=(20, 20, 20)),)).model_copy(update={"validation_fraction": 0.3})
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
    known = load_patients(workspace, CHOSEN)
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
    known = load_patients(workspace, CHOSEN)
    gone = [number for number, name in enumerate(known.names(range(len(known.ids)))) if name in GONE]
    assert len(gone) == 2 and not known.is_there[gone].any()
    for split in (TRAINING, VALIDATION):
        assert not known.eligible(split)[gone].any()
    for choice in ("random", "spread"):
        asked = settings(references=10, reference_choice=choice, scales=CHOSEN.discovery.scales)
        asked = asked.model_copy(update={"validation_fraction": 0.3})
        assert not set(choose_references(known, Embeddings(workspace.embeddings), 0.0, asked)) & set(gone)


@pytest.mark.parametrize("folder", ["autoencoder", "pca"])
def test_settings_that_would_hold_out_others_than_the_encoder_did_are_refused(workspace, folder):
    (workspace.root / folder).mkdir()
    made = {"settings": {"seed": 5, "validation_fraction": 0.3}}
    write_json(workspace.root / folder / "manifest.json", made)
    with pytest.raises(SettingsError, match=rf"seed=0 would hold out other subjects than .*{folder}, made with seed=5"):
        load_patients(workspace, CHOSEN)
    load_patients(workspace, CHOSEN.model_copy(update={"seed": 5}))


def test_a_split_without_any_embedding_is_refused(workspace):
    rows = read_catalogue(workspace.catalog, ndim=3)
    _, held_out = split_by_subject(rows, 0.3, 0)
    ids = [row["volume_id"] for row in rows]
    failed = frozenset(row["volume_id"] for row in held_out)
    for path in workspace.embeddings.iterdir():
        path.unlink()
    embedded(workspace.embeddings, ids, np.ones((len(ids), 3)), failed)
    with pytest.raises(WorkspaceError, match=r"no validation volume has an embedding: see .*failures\.parquet"):
        load_patients(workspace, CHOSEN)


def test_a_copy_of_a_reference_is_no_second_reference(tmp_path):
    known = patients()
    table = on_a_line(tmp_path)
    first, second, _ = choose_references(known, table, 0.0, settings(references=3))
    far = float(np.linalg.norm(table.take(np.array([first])) - table.take(np.array([second]))))
    chosen = choose_references(known, table, far, settings(references=3))
    assert chosen[0] == first and second not in chosen
