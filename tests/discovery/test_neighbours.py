"""References and neighbours among patients of whom everything is known; no Ray, no files but the shards."""

from __future__ import annotations

import numpy as np
import pytest

from raygenesis.config import DiscoverySettings, IndexSettings, Settings
from raygenesis.discovery.index import build_shard
from raygenesis.discovery.neighbours import Patients, check_counts, choose_references, find_neighbours
from raygenesis.errors import SettingsError
from raygenesis.patterns.schema import TRAINING, VALIDATION

# Scans on a line, at 0, 1, 2 …; those of the last four subjects are held out. Subjects b and h have two scans.
SUBJECTS = list("abbcdefghhij")
HELD_OUT = np.array([subject in "ghij" for subject in SUBJECTS])
TOO_SMALL = 4  # subject d


def patients() -> Patients:
    rows = [{"volume_id": f"{number:02d}", "subject_id": subject} for number, subject in enumerate(SUBJECTS)]
    vectors = np.zeros((len(rows), 3), np.float32)
    vectors[:, 0] = np.arange(len(rows))
    splits = {TRAINING: np.flatnonzero(~HELD_OUT), VALIDATION: np.flatnonzero(HELD_OUT)}
    return Patients(rows, vectors, splits, np.arange(len(rows)) != TOO_SMALL)


def settings(method: str = "exact", neighbours: int = 4, held_out: int = 3, references: int = 2) -> Settings:
    discovery = DiscoverySettings(
        num_references=references, num_neighbours=neighbours, num_validation_neighbours=held_out
    )
    return Settings(discovery=discovery, index=IndexSettings(method=method, exact_limit=5))


@pytest.mark.parametrize("method", ["exact", "hnsw", "auto"])
def test_neighbours_go_by_distance_one_scan_a_subject_and_pass_over_the_small(method, tmp_path):
    known, shards = patients(), {}
    for split, members in known.splits.items():
        shards[split] = [tmp_path / f"{split}-{start}" for start in range(0, len(members), 3)]
        for number, path in enumerate(shards[split]):
            build_shard(path, known.vectors[members][number * 3 : number * 3 + 3], number * 3, IndexSettings(), 0)

    def found(split, reference, **counts):
        return find_neighbours(known, split, reference, shards[split], settings(method, **counts))

    # Of subject b scan 2 is nearer to scan 3 than scan 1; scan 4 is too small, so 5 comes next.
    assert found(TRAINING, 3, neighbours=3) == [3, 2, 5]
    assert found(TRAINING, 0, neighbours=5) == [0, 1, 3, 5, 6]
    assert found(TRAINING, 2, neighbours=2) == [2, 3]  # not scan 1, which is of the reference's own subject
    assert found(TRAINING, 6, neighbours=1) == [6]
    assert found(VALIDATION, 0) == [7, 8, 10]
    assert found(VALIDATION, 6, held_out=4) == [7, 8, 10, 11]


def test_references_are_training_subjects_of_their_own_large_enough_and_the_same_as_more_are_asked_for():
    known = patients()
    five = choose_references(known, settings(references=5))
    assert {SUBJECTS[number] for number in five} == set("abcef")
    assert TOO_SMALL not in five
    for fewer in range(1, 5):
        assert choose_references(known, settings(references=fewer)) == five[:fewer]
    seeds = {choose_references(known, settings().model_copy(update={"seed": seed}))[0] for seed in range(20)}
    assert len(seeds) > 3


def count(people, chosen):
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
