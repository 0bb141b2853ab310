"""The paper's Table 2: what its authors reached on the same targets (means and s.d. of ten trials, in %)."""

from __future__ import annotations

from collections.abc import Iterable

from raygenesis.transfer.metrics import TITLES
from raygenesis.transfer.statistics import Comparison

# The figure of each target, by the target's code; and mean and s.d. of each initialisation, by our names.
FIGURES = {"NCC": "auc", "LCS": "iou", "NCS": "iou", "BMS": "iou"}
TABLE_2: dict[str, dict[str, tuple[float, float]]] = {
    name: dict(zip(FIGURES, values, strict=True))
    for name, values in {
        "random": ((94.25, 5.07), (74.60, 4.57), (74.05, 1.97), (59.87, 4.04)),
        "niftynet": ((94.14, 4.57), (83.23, 1.05), (52.98, 2.05), (60.78, 1.60)),
        "medicalnet": ((95.80, 0.51), (83.32, 0.85), (75.68, 0.32), (66.09, 1.35)),
        "i3d": ((98.26, 0.27), (70.65, 4.26), (71.31, 0.37), (67.83, 0.75)),
        "auto-encoder": ((88.43, 10.25), (78.16, 2.07), (75.10, 0.91), (56.36, 5.32)),
        "in-painting": ((91.46, 2.97), (81.36, 4.83), (75.86, 0.26), (61.38, 3.84)),
        "patch-shuffling": ((91.93, 2.32), (82.82, 2.35), (75.74, 0.51), (52.95, 6.92)),
        "rubiks-cube": ((95.56, 1.57), (76.07, 0.20), (70.37, 1.13), (62.75, 1.93)),
        "models-genesis": ((98.07, 0.59), (78.78, 3.11), (77.41, 0.40), (67.96, 1.29)),
        "self-classification": ((97.41, 0.32), (83.61, 2.19), (76.23, 0.42), (66.02, 0.83)),
        "semantic-genesis": ((98.47, 0.22), (85.60, 1.94), (77.24, 0.68), (68.80, 0.30)),
    }.items()
}


def beside_ours(code: str, table: Iterable[Comparison]) -> list[dict[str, str]]:
    """A row an initialisation where the target is one of the paper's: our mean figure (%), the paper's mean ± s.d.

    code: of the target, as `Layout` has it. table: the comparisons of one number of labelled subjects.
    """
    if code not in FIGURES:
        return []
    rows, metric = [], FIGURES[code]
    for row in table:
        theirs = TABLE_2.get(row.initialisation, {}).get(code)
        rows.append(
            {
                "initialisation": row.initialisation, f"{TITLES[metric]} here": f"{100 * row.figures[metric]:.2f}",
                "paper": f"{theirs[0]:.2f} ± {theirs[1]:.2f}" if theirs else "–",
            }
        )  # fmt: skip
    return rows
