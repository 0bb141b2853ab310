"""The paper's Table 2."""

from __future__ import annotations

import pytest

from raygenesis.studies.paper import FIGURES, TABLE_2, beside_ours
from raygenesis.transfer.targets.layouts import LAYOUTS
from tests.support.trials import compared


def test_every_target_of_the_paper_can_be_read() -> None:
    assert set(FIGURES) <= {layout.code for layout in LAYOUTS.values()}


@pytest.mark.parametrize(
    ("code", "best"),
    [("NCC", "semantic-genesis"), ("LCS", "semantic-genesis"), ("NCS", "models-genesis"), ("BMS", "semantic-genesis")],
)
def test_the_paper_prints_these_in_bold(code: str, best: str) -> None:
    assert max(TABLE_2, key=lambda name: TABLE_2[name][code][0]) == best


def test_ours_beside_the_papers() -> None:
    rows = beside_ours(
        "NCC", [compared("random", figures={"auc": 0.9, "accuracy": 0.5}), compared("mine", figures={"auc": 0.91234})]
    )
    assert rows == [
        {"initialisation": "random", "AUC here": "90.00", "paper": "94.25 ± 5.07"},
        {"initialisation": "mine", "AUC here": "91.23", "paper": "–"},
    ]
    (liver,) = beside_ours("LCS", [compared("semantic-genesis", figures={"dice": 0.9, "iou": 0.8})])
    assert liver == {"initialisation": "semantic-genesis", "IoU here": "80.00", "paper": "85.60 ± 1.94"}


def test_a_target_that_is_not_the_papers_has_no_such_table() -> None:
    assert beside_ours("DXC", [compared("random", figures={"auc": 0.8})]) == []
