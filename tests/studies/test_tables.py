"""The tables of a study."""

from __future__ import annotations

from dataclasses import replace

from raygenesis.studies.tables import StudyTables, by_target, study_in_markdown, with_titles
from raygenesis.transfer.score_charts import score_charts
from tests.support.trials import TABLE, compared, trials


def test_a_column_a_target_and_number_of_labelled() -> None:
    both = [replace(each, labelled=labelled) for labelled in (5, "10%") for each in TABLE]
    table = by_target({"boxes": both, "balls": both})
    assert [each["initialisation"] for each in table] == ["random", "far_off", "ours"]
    assert list(table[0])[1:] == [
        "boxes, 5 labelled: Dice", "boxes, 10% labelled: Dice", "balls, 5 labelled: Dice", "balls, 10% labelled: Dice",
    ]  # fmt: skip
    assert table[2]["balls, 10% labelled: Dice"] == "**0.600 ± 0.010**"


def test_figures_are_written_as_people_write_them() -> None:
    for metric, title in (("auc", "AUC"), ("mae", "mean absolute error"), ("dice", "Dice")):
        (across,) = by_target({"sex": [compared("ours", metric=metric)]})
        assert list(across)[1] == f"sex, 5 labelled: {title}"
        assert with_titles([{"metric": metric, "gain": 0.1}]) == [{"metric": title, "gain": 0.1}]


def test_what_else_differs_is_told_with_what_semantics_change() -> None:
    row = {"target": "liver", "without": "in-painting", "with": "in-painting+semantics", "metric": "dice", "gain": 0.05}
    with_semantics, without = (
        study_in_markdown(StudyTables([{"initialisation": "random"}], table, cubes={"mine": 40}))
        for table in ([row], [])
    )
    _, table, note = with_semantics.partition("| liver    | in-painting |")
    assert table and "random crops of all training scans" in note and "fewer to restoration" in note
    assert "random crops" not in without and without.startswith("| initialisation")
    assert "| mine             | 40" in without


def test_figures_and_what_predicts_fine_tuning_stand_in_the_file_with_words() -> None:
    five, nine = ({n: {"random": [replace(each, subjects=n) for each in trials([0.5, 0.6])]}} for n in (5, 9))
    (chart,) = score_charts("boxes in heads", five | nine)
    agreement = [{"target": "boxes", "measure": "effective rank", "runs": 6, "Spearman correlation": 0.5}]
    whole = StudyTables([{"initialisation": "random"}], agreement=agreement, figures={"figures/boxes.svg": chart})
    text = study_in_markdown(whole)
    assert f"![{chart.alt}](figures/boxes.svg)" in text
    _, table, note = text.partition("| effective rank |")
    assert table and "one in twenty" in note
    assert "Spearman" not in study_in_markdown(replace(whole, agreement=()))
