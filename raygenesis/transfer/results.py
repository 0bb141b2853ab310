"""The trials of a target, as its folder holds them."""

from __future__ import annotations

import sys
from typing import Any

from raygenesis.workspace.files import Place, read_json
from raygenesis.workspace.manifest import Extent

# Rows by the number of labelled subjects and by initialisation.
Results = dict[int | str, dict[str, list[dict[str, Any]]]]


def results_in(folder: Place, extent: Extent | None) -> Results:
    """The trials of a target: by the number of labelled subjects, by initialisation, in their order.

    extent: what is compared, as the target's manifest says; what was compared before may still be there. All that
    there are when None, as of a target that is not finished.
    """
    paths: list[Place] = sorted(folder.glob("trial-*.json"))
    trials = [trial for path in paths if (trial := read_json(path)) is not None]
    trials.sort(key=lambda trial: trial["trial"])
    extent = extent or Extent(
        initialisations={trial["initialisation"]: "" for trial in trials},
        num_labelled=tuple(dict.fromkeys(trial["labelled"] for trial in trials)), num_trials=sys.maxsize,
    )  # fmt: skip
    found: Results = {}
    for labelled in extent.num_labelled:
        for start in extent.initialisations:
            chosen = [
                trial for trial in trials
                if (trial["labelled"], trial["initialisation"]) == (labelled, start)
                and trial["trial"] < extent.num_trials
            ]  # fmt: skip
            if chosen:
                found.setdefault(labelled, {})[start] = chosen
    return found
