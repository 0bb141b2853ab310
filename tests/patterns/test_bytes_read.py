"""What a selection does not need is not read: bytes counted by the operating system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raygenesis import PatternDataset
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING
from raygenesis.patterns.writer import part_path
from raygenesis.training.file_samples import StoredPatterns
from raygenesis.training.order import held_out_batches
from tests.support.stores import StorePlan

K, C = 16, 32
NOISE = [np.random.default_rng(seed).random((24, 24, 24), np.float32) for seed in range(8)]
PLAN = StorePlan(
    references=1, coordinates=C, neighbours=K, held_out=4, scales=2, shape=(24, 24, 24), ranks_per_part=4,
    cube=lambda row, shape: NOISE[row["pattern_id"] % 8],
)  # fmt: skip


def bytes_so_far() -> int:
    """Bytes that this process's reads have returned, by the kernel's count (of all threads, page cache included)."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patterns")
    PLAN.write(folder)
    return folder


def bytes_read(store: Path, columns: tuple[str, ...], **selection: Any) -> tuple[int, int]:
    """Bytes read to select training patterns, and rows found."""
    before = bytes_so_far()
    table = read_patterns(store, columns, predicate(TRAINING, **selection))
    return bytes_so_far() - before, table.num_rows


COLUMNS = ("pattern_id", "label", "cube")


def size_of_parts(store: Path, parts: range) -> int:
    return sum(part_path(store, part).stat().st_size for part in parts)


def test_the_count_is_of_the_files(store: Path) -> None:
    before = bytes_so_far()
    content = part_path(store, 0).read_bytes()
    assert len(content) <= bytes_so_far() - before < 1.01 * len(content) + 2**14


def test_a_quarter_of_k_and_c_reads_a_sixteenth(store: Path) -> None:
    everything, num_all = bytes_read(store, COLUMNS)
    quarter, num_quarter = bytes_read(store, COLUMNS, num_neighbours=K // 4, num_coordinates=C // 4)
    assert num_quarter * 16 == num_all == K * C * 2
    assert everything > 0.95 * size_of_parts(store, range(4))
    assert quarter < 0.1 * everything  # 0.0625 and a footer a part


def test_of_a_part_that_is_ruled_out_only_the_footer_is_read(store: Path) -> None:
    num_bytes, num_rows = bytes_read(store, COLUMNS, num_neighbours=4)
    assert num_rows == 4 * C * 2
    needed, others = size_of_parts(store, range(1)), size_of_parts(store, range(1, 5))
    assert 0.95 * needed < num_bytes < needed + 0.03 * others


def test_the_samples_of_training_and_the_dataset_read_no_more(store: Path) -> None:
    everything, _ = bytes_read(store, COLUMNS)
    before = bytes_so_far()
    samples = StoredPatterns(store, TRAINING, K // 4, C // 4).open("pattern_id", PLAN.shape)
    rows = held_out_batches(len(samples), 16, layout=samples.layout)
    num_rows = sum(len(batch.steps) for batch in samples.stream([rows]))
    between = bytes_so_far()
    dataset = PatternDataset(store, TRAINING, K // 4, C // 4)
    for number in range(len(dataset)):
        dataset[number]
    assert num_rows == len(dataset) == K * C * 2 // 16
    assert between - before < 0.11 * everything
    assert bytes_so_far() - between < 0.12 * everything


def test_cells_that_nobody_asks_for_are_not_read(store: Path) -> None:
    everything, _ = bytes_read(store, COLUMNS)
    labels, num_rows = bytes_read(store, ("pattern_id", "label"))
    assert num_rows == K * C * 2
    assert labels < 0.05 * everything
