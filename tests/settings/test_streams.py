"""Named streams give the numbers that NumPy gives for their seed and key, and no two streams of a run share them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from raygenesis.settings import streams
from raygenesis.settings.streams import Stream

STREAMS = {name: value for name, value in vars(streams).items() if isinstance(value, Stream)}


def plain(entropy: object, key: tuple[int, ...] = ()) -> list[float]:
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=key)).random(4).tolist()


@pytest.mark.parametrize(
    ("name", "numbers", "entropy", "key"),
    [
        ("REFERENCES", (), 7, (1,)),
        ("COORDINATES", (4,), 7, (2, 4)),
        ("RECALL_QUERIES", (), 7, (3,)),
        ("TYPICAL_DISTANCE", (), 7, (5,)),
        ("RANDOM_PATIENTS", (4,), 7, (6, 4)),
        ("RANDOM_CROPS", (2**63,), 7, (8, 2**63)),
        ("PATTERNS", (0, 5, 1), 7, (0, 5, 1)),
        ("ENCODER_SCANS", (900,), [7, 900], ()),
        ("TRIAL_SUBJECTS", (3,), [7, 3], ()),
        ("NEGATIVES", (2**31,), 7, (2**31,)),
        ("POPULATION_SUBJECTS", (12, 2), 7, (12, 2)),
    ],
)
def test_a_stream_keeps_its_numbers_for_good(name, numbers, entropy, key):
    assert STREAMS[name].generator(7, *numbers).random(4).tolist() == plain(entropy, key)


def test_a_stream_of_the_seed_alone_is_numpys_own_of_that_seed():
    for name in ("SHUFFLE_BANK", "SWEEP_SEEDS", "TEST_SUBJECTS", "LABELLED_BATCHES", "RESAMPLES", "MAPPED_SCANS"):
        expected = np.random.default_rng(7).random(4).tolist()
        assert STREAMS[name].generator(7).random(4).tolist() == expected
    own = STREAMS["SWEEP_SEEDS"].sequence(7).generate_state(3)
    assert own.tolist() == np.random.SeedSequence(7).generate_state(3).tolist()


def test_prefixes_differ_and_a_stream_refuses_other_numbers_than_it_names():
    prefixes = [stream.prefix for stream in STREAMS.values() if stream.prefix]
    assert len(set(prefixes)) == len(prefixes)
    with pytest.raises(ValueError, match="needs 1 numbers, not 0"):
        streams.COORDINATES.generator(0)


def test_every_stream_is_used_where_it_says_and_nothing_else_seeds_numpy():
    package = Path(streams.__file__).parents[1]
    for name, stream in STREAMS.items():
        file = re.search(r"\(([\w/]+\.py)\)$", stream.draws)
        assert file is not None and re.search(rf"\b{name}\b", (package / file[1]).read_text()), (name, stream.draws)
    seeding = re.compile(r"SeedSequence\(|default_rng\(|np\.random\.seed|RandomState\(")
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if seeding.search(path.read_text())}
    # The second is handed sequences that were spawned from a stream.
    assert found == {"settings/streams.py", "pretraining/corruption_steps.py"}
