"""The plan: every pattern once, numbered for good, each scan in one part, and nothing left to chance."""

import numpy as np
import pyarrow.compute as pc
import pytest

from raygenesis.discovery.coordinates import Frame, corresponding
from raygenesis.discovery.cubes import size_mm
from raygenesis.discovery.pattern_boxes import pattern_number, patterns_of
from raygenesis.discovery.visits import VISIT, Visit, plan_visits
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.settings import DiscoverySettings, Scale

R, C, K, V = 2, 3, 6, 4
SCALES = (Scale(extent_mm=(20, 24, 28)), Scale(extent_mm=(20, 24, 28), extent_jitter=0.2, shift_mm=3))


def volume(name, shape=(40, 60, 50), spacing=(2.0, 1.0, 1.5)):
    return {"volume_id": name, "shape": list(shape), "spacing_mm": list(spacing)}


# Reference 1 is the second neighbour of reference 0; the two share further neighbours.
TRAINING_VOLUMES = [volume(f"t{n}", (40 + n, 60, 50 - n)) for n in range(9)]
HELD_OUT = [volume(f"v{n}", (45, 55 + n, 60)) for n in range(5)]
ORDERS = {0: [0, 3, 1, 5, 2, 4, 7, 8], 1: [3, 0, 6, 1, 8, 2, 5, 4]}
HELD_OUT_ORDERS = {0: [2, 0, 4, 1, 3], 1: [1, 2, 3, 0, 4]}
CENTRES = [np.random.default_rng(n).uniform(30, 45, (5, 3)) for n in range(R)]


def frame(row):
    return Frame(size_mm(row), size_mm(row) / 2)


def settings_of(**chosen):
    return DiscoverySettings(cube_shape=(8, 8, 8), **{"scales": SCALES, "patterns_per_part": 30, **chosen})


def visits(r=R, c=C, k=K, v=V, **chosen):
    settings = settings_of(**chosen)
    neighbours = [
        {TRAINING: [f"t{m}" for m in ORDERS[n][:k]], VALIDATION: [f"v{m}" for m in HELD_OUT_ORDERS[n][:v]]}
        for n in range(r)
    ]
    return plan_visits(neighbours, c * len(settings.scales), settings.patterns_per_part).to_pylist()


def planned(r=R, c=C, k=K, v=V, seed=0, **chosen):
    """The patterns of every visit, and the part that each is stored in."""
    settings = settings_of(**chosen)
    rows = {row["volume_id"]: row for row in TRAINING_VOLUMES + HELD_OUT}
    found = []
    for visit in visits(r, c, k, v, **chosen):
        reference, there = TRAINING_VOLUMES[ORDERS[visit["reference"]][0]], rows[visit["volume_id"]]
        centres = corresponding(
            CENTRES[visit["reference"]][:c], frame(reference), frame(there), settings.correspondence
        )
        found += [{**row, "part": visit["part"]} for row in patterns_of(visit, there, centres, settings, seed)]
    return found


def by_id(rows):
    return {row["pattern_id"]: row for row in rows}


def test_every_reference_neighbour_coordinate_and_scale_is_planned_once():
    rows = planned()
    assert list(rows[0]) == [name for name in PATTERN.names if name != "cube"] + ["part"]
    keys = ["split", "reference", "rank", "coordinate", "scale"]
    found = [tuple(row[key] for key in keys) for row in rows]
    ranks = [(TRAINING, rank) for rank in range(K)] + [(VALIDATION, rank) for rank in range(1, V + 1)]
    assert sorted(found) == sorted(
        (split, r, rank, c, s) for split, rank in ranks for r in range(R) for c in range(C) for s in range(len(SCALES))
    )


@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (2, 5, 7, 3), (1, 4, 8, 5)])
def test_nothing_is_lost_whatever_the_counts(counts):
    """The published code dropped the last row of each fold, and saved only multiples of 50 classes."""
    r, c, k, v = counts
    rows = planned(*counts)
    assert len(by_id(rows)) == len(rows) == r * c * (k + v) * len(SCALES)
    assert {row["label"] for row in rows} == set(range(r * c))


def test_a_plan_of_any_number_of_classes_is_whole():
    """The published code saved nothing unless the classes were a multiple of 50."""
    for count in (1, 7, 49, 50, 51):
        table = plan_visits([{TRAINING: [f"t{n}"], VALIDATION: []} for n in range(count)], 2, 30)
        assert (
            table.schema == VISIT
            and list(Visit.__annotations__) == VISIT.names
            and sorted(table["reference"].to_pylist()) == list(range(count))
        )


def test_a_visit_s_type_has_the_columns_of_the_schema():
    assert list(Visit.__annotations__) == VISIT.names


def test_ranks_follow_the_neighbours_and_rank_0_is_the_reference_itself():
    for row in planned():
        if row["split"] == TRAINING:
            assert row["volume_id"] == f"t{ORDERS[row['reference']][row['rank']]}"
        else:
            assert row["volume_id"] == f"v{HELD_OUT_ORDERS[row['reference']][row['rank'] - 1]}"


def test_labels_are_reference_times_c_plus_coordinate():
    for row in planned():
        assert row["label"] == row["reference"] * C + row["coordinate"]


def test_numbers_are_unique_and_a_pattern_keeps_its_number_and_place_as_r_k_and_c_grow():
    small, large = by_id(planned(r=1, c=2, k=3, v=2)), by_id(planned(r=2, c=5, k=8, v=5))
    assert len(large) == 2 * 5 * (8 + 5) * 2
    assert small.keys() < large.keys()
    for number, row in small.items():
        assert {**row, "label": 0, "part": 0} == {**large[number], "label": 0, "part": 0}


def test_numbers_stay_unique_at_the_ends_of_their_ranges():
    ends = [(s, r, k, c, z) for s in (False, True) for r in (0, 2**16 - 1) for k in (0, 2**24 - 1)
            for c in (0, 2**15 - 1) for z in (0, 2**7 - 1)]  # fmt: skip
    numbers = {pattern_number(*end) for end in ends}
    assert len(numbers) == len(ends)
    assert max(numbers) < 2**63


@pytest.mark.parametrize("patterns_per_part", [1, 30, 50, 10_000])
def test_every_volume_is_in_one_part_and_splits_never_share_one(patterns_per_part):
    rows = planned(patterns_per_part=patterns_per_part)
    parts_of, splits_of, sizes = {}, {}, {}
    for row in rows:
        parts_of.setdefault(row["volume_id"], set()).add(row["part"])
        splits_of.setdefault(row["part"], set()).add(row["split"])
        sizes[row["part"]] = sizes.get(row["part"], 0) + 1
    assert all(len(parts) == 1 for parts in parts_of.values())
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert sorted(sizes) == list(range(len(sizes)))
    volumes_of = {part: sum(part in parts for parts in parts_of.values()) for part in sizes}
    # A part is too large only where one volume alone is.
    assert all(size <= patterns_per_part or volumes_of[part] == 1 for part, size in sizes.items())
    if patterns_per_part == 10_000:
        assert len(sizes) == 2
    if patterns_per_part == 1:
        assert len(sizes) == len(parts_of)


def test_visits_lie_in_reading_order_with_the_nearest_first():
    rows = visits()
    order = [(row["part"], row["rank"], row["reference"]) for row in rows]
    assert order == sorted(order)
    within = [(row["coordinate"], row["scale"]) for row in planned(r=1, k=1, v=0)]
    assert within == sorted(within)
    nearest = {}
    for row in rows:
        key = (row["split"], row["part"])
        nearest[key] = min(nearest.get(key, 99), row["rank"])
    for split in (TRAINING, VALIDATION):
        ranks = [rank for (where, _), rank in sorted(nearest.items()) if where == split]
        assert ranks == sorted(ranks)


def test_the_same_plan_each_time_and_another_jitter_with_another_seed():
    assert planned() == planned()
    one, other = by_id(planned()), by_id(planned(seed=1))
    assert one.keys() == other.keys()
    for number, row in one.items():
        assert (row["origin_mm"] == other[number]["origin_mm"]) == (row["scale"] == 0)


def test_patterns_without_jitter_lie_at_the_corresponding_coordinate():
    for how in ("relative", "physical"):
        for row in planned(correspondence=how, scales=(Scale(extent_mm=(8, 10, 12)),)):
            reference = TRAINING_VOLUMES[ORDERS[row["reference"]][0]]
            there = next(v for v in TRAINING_VOLUMES + HELD_OUT if v["volume_id"] == row["volume_id"])
            centre = CENTRES[row["reference"]][row["coordinate"]]
            expected = corresponding(centre, frame(reference), frame(there), how)
            np.testing.assert_allclose(np.array(row["origin_mm"]) + np.array(row["extent_mm"]) / 2, expected)
            assert row["extent_mm"] == [8, 10, 12]


def test_jitter_stays_within_its_bounds_in_plane_and_spares_z():
    roomy = (Scale(extent_mm=(8, 10, 12), extent_jitter=0.2, shift_mm=3),)
    extents, shifts = [], []
    for row in planned(c=5, k=8, v=5, scales=roomy, correspondence="physical"):
        reference = TRAINING_VOLUMES[ORDERS[row["reference"]][0]]
        there = next(v for v in TRAINING_VOLUMES + HELD_OUT if v["volume_id"] == row["volume_id"])
        centre = CENTRES[row["reference"]][row["coordinate"]] + (size_mm(there) - size_mm(reference)) / 2
        extents.append(np.array(row["extent_mm"]) / (8, 10, 12))
        shifts.append(np.array(row["origin_mm"]) + np.array(row["extent_mm"]) / 2 - centre)
    extents, shifts = np.array(extents), np.array(shifts)
    np.testing.assert_allclose(extents[:, 0], 1)
    np.testing.assert_allclose(extents[:, 1], extents[:, 2])
    np.testing.assert_allclose(shifts[:, 0], 0, atol=1e-9)
    assert 0.8 <= extents[:, 1].min() < 0.84 and 1.16 < extents[:, 1].max() <= 1.2
    assert -3 <= shifts[:, 1:].min() < -2.7 and 2.7 < shifts[:, 1:].max() <= 3
    assert abs(np.corrcoef(shifts[:, 1], shifts[:, 2])[0, 1]) < 0.3


def test_boxes_lie_inside_their_scans_in_mm_and_in_voxels():
    wide = (Scale(extent_mm=(60, 40, 50), extent_jitter=0.2, shift_mm=5),)
    sizes = {v["volume_id"]: size_mm(v) for v in TRAINING_VOLUMES + HELD_OUT}
    touching = 0
    for row in planned(scales=wide):
        origin, extent = np.array(row["origin_mm"]), np.array(row["extent_mm"])
        assert (origin >= 0).all() and (origin + extent <= sizes[row["volume_id"]] + 1e-9).all()
        np.testing.assert_allclose(np.array(row["origin_voxels"]) * (2.0, 1.0, 1.5), origin)
        np.testing.assert_allclose(np.array(row["extent_voxels"]) * (2.0, 1.0, 1.5), extent)
        touching += bool((origin == 0).any())
    assert touching  # some did stick out before they were moved


def test_flat_images_are_jittered_along_both_axes():
    flat = {"volume_id": "t0", "shape": [300, 200], "spacing_mm": [1.0, 1.0]}
    chosen = DiscoverySettings(cube_shape=(8, 8), scales=(Scale(extent_mm=(50, 40), extent_jitter=0.2, shift_mm=9),))
    visit = {"part": 0, "split": TRAINING, "reference": 0, "rank": 0, "volume_id": "t0"}
    rows = patterns_of(visit, flat, np.full((20, 2), 100.0), chosen, 0)
    origins, extents = (np.array([row[name] for row in rows]) for name in ("origin_mm", "extent_mm"))
    assert (np.std(origins + extents / 2, axis=0) > 2).all()
    assert (np.std(extents, axis=0) > 2).all()


def test_jitter_follows_from_the_seed_alone_not_from_the_global_generators():
    """The published code seeded one of the two random generators that it drew from."""
    import random

    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        random.seed(seed)
        found.append(planned())
    assert found[0] == found[1]


def test_a_scan_of_more_patterns_than_fit_in_memory_has_several_parts():
    """Many references, coordinates and scales ask for tens of GB of cubes of a scan that they all share."""
    everyone = [f"s{number}" for number in range(5)]
    neighbours = [{TRAINING: [*everyone[n:], *everyone[:n]], VALIDATION: ["v"]} for n in range(5)]
    whole = plan_visits(neighbours, 10, 50)
    assert plan_visits(neighbours, 10, 50, most_in_memory=50).equals(whole)  # a scan of five visits is one part
    plan = plan_visits(neighbours, 10, 50, most_in_memory=20)
    assert np.bincount(whole["part"]).tolist() == [5] * 6
    assert np.bincount(plan["part"]).max() == 2  # visits of ten patterns
    without_part = ["split", "reference", "rank", "volume_id"]
    order = [(name, "ascending") for name in without_part]
    assert plan.select(without_part).sort_by(order).equals(whole.select(without_part).sort_by(order))
    assert {len(set(plan.filter(pc.equal(plan["volume_id"], name))["part"].to_pylist())) for name in everyone} == {3}
    single = plan_visits(neighbours, 10, 50, most_in_memory=3)
    assert np.bincount(single["part"]).tolist() == [1] * 30  # no visit is divided
