"""The plan of a study, in YAML: which initialisations, on which targets, and how much pretraining each gets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from raygenesis.errors import SettingsError
from raygenesis.pretraining.pretexts import PRETEXTS
from raygenesis.settings import Count, Section, read_mapping, validation_fault
from raygenesis.transfer.description import Description, parse_description, read_description
from raygenesis.transfer.initialisations import NAME, RANDOM, SEPARATOR, is_path, name_and_source, sources_in


class PlannedInitialisation(Section):
    """One initialisation: a pretext task to be pretrained, or weights as `--from` takes them.

    name: what tables call it; when None, it is called after `pretext` or `weights`.
    """

    name: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    pretext: str | None = None
    settings: dict[str, Any] = Field({}, description="Settings below `pretraining` for this pretext task.")
    seeds: Count = Field(1, description="Number of pretrainings, each with a seed of its own.")
    weights: str | None = None

    @property
    def title(self) -> str:
        return self.name or self.pretext or name_and_source(self.weights or "")[0]

    @model_validator(mode="after")
    def _is_one_of_both(self) -> PlannedInitialisation:
        if (self.pretext is None) == (self.weights is None):
            raise ValueError("initialisations: give each either a `pretext` or `weights` (random, a run, or a file)")
        if self.pretext is not None and self.pretext not in PRETEXTS:
            raise ValueError(
                f"initialisations: pretext {self.pretext!r} is unknown: choose one of {', '.join(PRETEXTS)}"
            )
        if self.weights is not None and (self.settings or self.seeds > 1):
            given = "`settings` belong" if self.settings else f"`seeds: {self.seeds}` belongs"
            raise ValueError(f"initialisations: {self.title} is not pretrained here: {given} to a `pretext`")
        return self


def _from_text(value: Any) -> Any:
    """A text is a pretext task, `random`, a run, or a file of weights; NAME=… gives it a name."""
    if not isinstance(value, str):
        return value
    name, source = name_and_source(value)
    return {"name": name, "pretext" if source in PRETEXTS else "weights": source}


class StudyPlan(Section):
    """What a study compares.

    cubes: how many each pretraining learns from, to the nearest whole epoch. targets: by name, each a file or a
    description.
    """

    initialisations: Annotated[
        tuple[Annotated[PlannedInitialisation, BeforeValidator(_from_text)], ...], Field(min_length=2)
    ]
    cubes: Count
    targets: Annotated[dict[str, str | dict[str, Any]], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> StudyPlan:
        titles = [each.title for each in self.initialisations]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"initialisations: two are called {title!r}: give one of them another `name`")
        return self


def read_plan(path: Path) -> tuple[StudyPlan, dict[str, Description]]:
    """Read a plan's file, and the targets by name; paths are relative to its folder. Raises SettingsError."""
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
            parse_description(target, folder, where) if isinstance(target, dict) else read_description(folder / target)
        )
    initialisations = [
        each.model_copy(update={"weights": _from_folder(each.weights, folder), "name": each.title})
        if each.weights not in (None, RANDOM)
        else each
        for each in plan.initialisations
    ]
    return plan.model_copy(update={"initialisations": tuple(initialisations)}), targets


def _from_folder(weights: str, folder: Path) -> str:
    """Sources of weights, whose relative paths are those from a folder."""
    return SEPARATOR.join(
        str(folder / Path(source).expanduser()) if is_path(source) and "://" not in source else source
        for source in sources_in(weights)
    )
