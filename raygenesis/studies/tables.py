"""The tables of a study: initialisations by targets, what semantics add, and the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raygenesis.studies.semantics import SEMANTICS_NOTE
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


def study_in_markdown(overview: Rows, semantics: Rows, cubes: Mapping[str, int], papers: Mapping[str, Rows]) -> str:
    """All tables of a study, each with what a reader must know of it.

    overview: of `by_target`. semantics: of `Gain.as_row`. cubes: that each pretraining has seen. papers: of each
    target, of `beside_ours`.
    """
    pretrained = [{"initialisation": name, "cubes seen over all epochs": number} for name, number in cubes.items()]
    parts = [markdown(overview), LEGEND]
    parts += [markdown(with_titles(semantics)), SEMANTICS_NOTE] if semantics else []
    parts += [markdown(pretrained)] if pretrained else []
    parts += [
        f"{title}, beside the paper's Table 2 (%):\n\n{markdown(table)}" for title, table in papers.items() if table
    ]
    return "\n\n".join(parts) + "\n"
