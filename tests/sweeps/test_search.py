"""Which points are proposed: reproducible, none twice, and from results alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raygenesis.sweeps.search import Next, Search, TrialOutcome, search_of
from raygenesis.sweeps.space import Point, Range, Space

WIDE = Space({"learning_rate": Range(1e-4, 1e-1, log=True), "base_width": Range(2, 16), "corruption": ("none", None)})


def score(point: Point) -> TrialOutcome:
    return TrialOutcome(-abs(point["base_width"] - 9.0))


def all_of(search: Search, outcome_of: Callable[[Point], TrialOutcome | None] = score) -> list[Point]:
    points = []
    while (point := search.next(outcome_of)) is not Next.DONE:
        assert point is not Next.WAIT
        points.append(point)
    return points


def test_a_grid_is_every_point_in_order() -> None:
    space = Space({"a": (1, 2), "b": ("x",)})
    assert all_of(search_of("grid", space, 1, 0, 1, "max")) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_points_are_those_of_the_seed_within_the_space(kind: str) -> None:
    first, again, other = (all_of(search_of(kind, WIDE, 12, seed, 2, "max")) for seed in (0, 0, 1))
    assert first == again != other and len(first) == 12
    assert all(1e-4 <= point["learning_rate"] <= 1e-1 and isinstance(point["base_width"], int) for point in first)
    assert {point["corruption"] for point in first} == {"none", None}


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_small_space_is_exhausted_and_no_point_comes_twice(kind: str) -> None:
    space = Space({"base_width": Range(2, 8, step=2), "corruption": ("none", "in-painting")})
    points = all_of(search_of(kind, space, 100, 0, 1, "max"))
    assert len(points) == len({tuple(point.values()) for point in points}) == 8


def test_tpe_looks_where_results_were_good() -> None:
    space = Space({"base_width": Range(1, 1000)})
    for mode, sign in (("max", -1), ("min", 1)):

        def apart_from_300(point: Point, sign: int = sign) -> TrialOutcome:
            return TrialOutcome(sign * abs(point["base_width"] - 300.0))

        tpe = all_of(search_of("tpe", space, 40, 0, 1, mode), apart_from_300)
        random = all_of(search_of("random", space, 40, 0, 1, mode))
        apart = [sorted(abs(point["base_width"] - 300) for point in points)[20] for points in (tpe, random)]
        assert apart[0] < apart[1] / 2  # half of the points are nearer than this


def test_tpe_waits_for_the_results_that_it_counts_on_whichever_trial_ends_first() -> None:
    """With three trials at once, in any order of ending, it proposes the same points."""

    def run(order: Callable[[list[Point]], Point]) -> list[Point]:
        search, running, ended, points = search_of("tpe", WIDE, 12, 0, 3, "max"), [], [], []
        while True:
            point = search.next(lambda asked: score(asked) if asked in ended else None)
            if point is Next.DONE:
                return points
            if point is Next.WAIT or len(running) == 3:
                running.remove(done := order(running))
                ended.append(done)
            if isinstance(point, dict):
                points.append(point)
                running.append(point)

    assert run(lambda running: running[0]) == run(lambda running: running[-1])


def test_failed_and_stopped_points_are_told_apart() -> None:
    plain = all_of(search_of("tpe", WIDE, 15, 0, 1, "max"))
    failed = all_of(search_of("tpe", WIDE, 15, 0, 1, "max"), lambda _: TrialOutcome(None))
    stopped = all_of(search_of("tpe", WIDE, 15, 0, 1, "max"), lambda p: TrialOutcome(score(p).value, False, 3))
    assert len(failed) == len(stopped) == 15 and plain != failed
