"""The plan of a comparison, in YAML: which initialisations, on which targets, and how much pretraining each gets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from raygenesis.errors import SettingsError
from raygenesis.pretraining.pretexts import PRETEXTS
from raygenesis.settings import Count, Section, read_mapping, validation_fault
from raygenesis.transfer.initialisations import NAME, is_file, named
from raygenesis.transfer.statistics import RANDOM
from raygenesis.transfer.targets.description import Description, described, read_description


class PlannedInitialisation(Section):
    """One initialisation: a pretext task that is pretrained here, or what `--from` takes.

    name: what tables call it; as `weights` or `pretext` when None.
    """

    name: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    pretext: str | None = None
    settings: dict[str, Any] = Field({}, description="Below `pretraining`.")
    weights: str | None = None

    @property
    def title(self) -> str:
        return self.name or self.pretext or named(self.weights or "")[0]

    @model_validator(mode="after")
    def _is_one_of_both(self) -> PlannedInitialisation:
        if (self.pretext is None) == (self.weights is None):
            raise ValueError("initialisations: give each either a `pretext` or `weights` (random, a run, or a file)")
        if self.pretext is not None and self.pretext not in PRETEXTS:
            raise ValueError(
                f"initialisations: pretext {self.pretext!r} is unknown: choose one of {', '.join(PRETEXTS)}"
            )
        if self.weights is not None and self.settings:
            raise ValueError(f"initialisations: {self.title} is not pretrained here: `settings` belong to a `pretext`")
        return self


def _start(value: Any) -> Any:
    """A plain word is a pretext task, `random`, a run, or a file of weights; NAME=… gives it a name."""
    if not isinstance(value, str):
        return value
    name, source = named(value)
    return {"name": name, "pretext" if source in PRETEXTS else "weights": source}


class StudyPlan(Section):
    """cubes: that each pretraining learns from, to an epoch. targets: by name, each a file or a description."""

    initialisations: Annotated[
        tuple[Annotated[PlannedInitialisation, BeforeValidator(_start)], ...], Field(min_length=2)
    ]
    cubes: Count
    targets: Annotated[dict[str, str | dict[str, Any]], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> StudyPlan:
        titles = [start.title for start in self.initialisations]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"initialisations: two are called {title!r}: give one of them another `name`")
        return self


def read_plan(path: Path) -> tuple[StudyPlan, dict[str, Description]]:
    """A plan's file, and the targets it names; paths are meant from its folder. Raises SettingsError."""
    tree = read_mapping(path, "plan")
    try:
        plan = StudyPlan.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(f"{path}: {validation_fault(error, StudyPlan)}") from None
    folder = path.parent.absolute()
    targets = {}
    for name, target in plan.targets.items():
        where = f"{path}, target {name}"
        targets[name] = (
            described(target, folder, where) if isinstance(target, dict) else read_description(folder / target)
        )
    starts = [
        start.model_copy(update={"weights": str(folder / Path(start.weights).expanduser()), "name": start.title})
        if start.weights not in (None, RANDOM) and is_file(start.weights) and "://" not in start.weights
        else start
        for start in plan.initialisations
    ]
    return plan.model_copy(update={"initialisations": tuple(starts)}), targets
