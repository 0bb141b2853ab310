from __future__ import annotations

import pytest

from raygenesis.text.amounts import duration, several, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12.34, "12 s"), (119, "119 s"), (150, "2.5 min"), (10_800, "3.0 h"), (10**9, "11,574.1 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(512, "0.5 KiB"), (2**20, "1.0 MiB"), (1.5 * 2**30, "1.5 GiB"), (2**40, "1.0 TiB"), (2**51, "2,048.0 TiB")],
)
def test_sizes(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(("number", "text"), [(1, "1 core"), (0.5, "0.5 cores"), (4096, "4,096 cores")])
def test_numbers_of_things(number: float, text: str) -> None:
    assert several(number, "cores") == text
