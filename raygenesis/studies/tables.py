"""The tables of a study: initialisations by targets, what semantics add, and the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raygenesis.studies.agreement import AGREEMENT_NOTE
from raygenesis.studies.semantics import SEMANTICS_NOTE
from raygenesis.text.charts import Chart
from raygenesis.text.tables import Rows, markdown
from raygenesis.transfer.metrics import TITLES
from raygenesis.transfer.statistics import Comparison
from raygenesis.transfer.table import LEGEND, mean_and_deviation


def by_target(tables: Mapping[str, Sequence[Comparison]]) -> list[dict[str, str]]:
    """A row an initialisation, a column a target and number of labelled subjects (paper Table 2).

    tables: of each target.
    """
    rows: dict[str, dict[str, str]] = {}
    for target, table in tables.items():
        for row in table:
            column = f"{target}, {row.labelled} labelled: {TITLES[row.metric]}"
            texts = rows.setdefault(row.initialisation, {"initialisation": row.initialisation})
            texts[column] = mean_and_deviation(row)
    return list(rows.values())


def with_titles(rows: Rows) -> Rows:
    """Rows with a `metric` by its title instead of its name."""
    return [{**row, "metric": TITLES[row["metric"]]} for row in rows]


@dataclass(frozen=True)
class StudyTables:
    """The tables and figures of a study.

    overview: of `by_target`. semantics: of `Gain.as_row`. agreement: of `Agreement.as_row`. cubes: that each
    pretraining has seen. papers: of each target, of `beside_ours`. figures: by their files' names.
    """

    overview: Rows
    semantics: Rows = ()
    agreement: Rows = ()
    cubes: Mapping[str, int] = field(default_factory=dict)
    papers: Mapping[str, Rows] = field(default_factory=dict)
    figures: Mapping[str, Chart] = field(default_factory=dict)


def study_in_markdown(study: StudyTables) -> str:
    """All tables of a study, each with what a reader must know of it, and its figures."""
    pretrained = [
        {"initialisation": name, "cubes seen over all epochs": number} for name, number in study.cubes.items()
    ]
    parts = [markdown(study.overview), LEGEND]
    parts += [f"![{chart.alt}]({file})" for file, chart in study.figures.items()]
    parts += [markdown(with_titles(study.semantics)), SEMANTICS_NOTE] if study.semantics else []
    parts += [markdown(study.agreement), AGREEMENT_NOTE] if study.agreement else []
    parts += [markdown(pretrained)] if pretrained else []
    parts += [
        f"{title}, beside the paper's Table 2 (%):\n\n{markdown(table)}"
        for title, table in study.papers.items()
        if table
    ]
    return "\n\n".join(parts) + "\n"
