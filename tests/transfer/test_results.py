"""A target's trials: what is compared of those that are there."""

from __future__ import annotations

from pathlib import Path

from raygenesis.transfer.results import results_in
from raygenesis.workspace.files import write_json


def test_what_was_compared_before_is_left_out_and_without_an_extent_nothing_is(tmp_path: Path) -> None:
    for start in ("ours", "random"):
        for labelled in (5, "10%"):
            for number in (10, 2, 0):
                trial = {"initialisation": start, "labelled": labelled, "trial": number}
                write_json(tmp_path / f"trial-{start}-{labelled}-{number}.json", trial)
    everything = results_in(tmp_path, None)
    assert {labelled: set(starts) for labelled, starts in everything.items()} == {
        5: {"ours", "random"}, "10%": {"ours", "random"},
    }  # fmt: skip
    assert [trial["trial"] for trial in everything[5]["ours"]] == [0, 2, 10]
    extent = {"initialisations": {"random": "", "ours": "", "lost": ""}, "num_labelled": [5], "num_trials": 3}
    compared = results_in(tmp_path, extent)
    assert list(compared) == [5] and list(compared[5]) == ["random", "ours"]
    assert [trial["trial"] for trial in compared[5]["ours"]] == [0, 2]
