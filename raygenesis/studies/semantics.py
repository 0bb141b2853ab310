"""What semantics add: each restoration task with and without them (paper Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raygenesis.transfer.metrics import PRIMARY, case_scores
from raygenesis.transfer.statistics import Trials, _corrected, _over_trials, paired_by_subject

# What a reader must know of `semantics_of`.
SEMANTICS_NOTE = (
    "A gain, and its p, are not of semantics alone. Tasks with semantics learn from patterns, cubes at some places in "
    "the most alike patients; those without learn from random crops of all training scans. And of as many cubes, tasks "
    "with semantics spend some on classification alone, which leaves fewer to restoration."
)


def semantics_of(results: Mapping[int | str, Mapping[str, Trials]], task: str) -> list[dict[str, Any]]:
    """How each restoration task with semantics differs from that without (paper Fig. 2; `SEMANTICS_NOTE`).

    results: by the number of labelled subjects, by initialisation. p-values are corrected by Holm within each number.
    """
    primary = PRIMARY[task]
    rows = []
    for labelled, starts in results.items():
        pairs = [(name, f"{name}+semantics") for name in starts if f"{name}+semantics" in starts]
        if "models-genesis" in starts and "models-genesis+semantics" not in starts and "semantic-genesis" in starts:
            pairs.append(("models-genesis", "semantic-genesis"))
        found = {}
        for without, with_semantics in pairs:
            ours, theirs = (
                np.array([trial["figures"][primary.name] for trial in starts[name]])
                for name in (with_semantics, without)
            )
            told = [case_scores(task, [trial["test"] for trial in starts[name]]) for name in (with_semantics, without)]
            p_subjects = paired_by_subject(told[0], told[1])
            found[without, with_semantics] = ((ours, theirs), _over_trials(ours, theirs, primary.sign, p_subjects))
        corrected = _corrected({pair: row for pair, (_, row) in found.items()})
        for (without, with_semantics), (figures, _) in found.items():
            row = corrected[without, with_semantics]
            rows.append(
                {
                    "labelled": labelled, "without": without, "with": with_semantics, "metric": primary.name,
                    "mean without": float(figures[1].mean()), "mean with": float(figures[0].mean()),
                    "gain": row.difference, "g": row.effect_size, "p trials": row.p_holm,
                    "p subjects": row.p_subjects_holm,
                }
            )  # fmt: skip
    return rows
