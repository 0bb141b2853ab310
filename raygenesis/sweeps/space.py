"""Which settings a sweep varies, and over what: read from SPACE.yaml and checked before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from raygenesis.errors import SettingsError
from raygenesis.settings import (
    EXECUTION_SETTINGS,
    PretrainingSettings,
    Settings,
    SweepSettings,
    read_yaml,
    settings_from,
)
from raygenesis.workspace.manifest import StoreCounts

# Values of the settings below `pretraining`, by their names there.
Point = dict[str, Any]

SECTION = "pretraining"
EPOCH_KEYS = ("num_classification_epochs", "num_joint_epochs")
RANGE_KEYS = ("low", "high", "log", "step")
MOST_CORNERS = 1024


@dataclass(frozen=True)
class Range:
    """From low to high, both included; whole numbers where the setting takes only those."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Space:
    """Choices or a range for each setting that is varied; `where` names the space in messages."""

    axes: Mapping[str, tuple[Any, ...] | Range]
    where: str = "the space"

    @property
    def tree(self) -> dict[str, Any]:
        """The space as SPACE.yaml would have it."""
        return {
            f"{SECTION}.{key}": asdict(axis) if isinstance(axis, Range) else list(axis)
            for key, axis in self.axes.items()
        }

    @property
    def varied(self) -> list[str]:
        """Settings of which there is more than one value."""
        return [key for key, axis in self.axes.items() if isinstance(axis, Range) or len(axis) > 1]

    @property
    def size(self) -> int | None:
        """Number of points, None where a range has no steps."""
        total = 1
        for axis in self.axes.values():
            if not isinstance(axis, Range):
                total *= len(axis)
            elif axis.step is not None or isinstance(axis.low, int):
                total *= int((axis.high - axis.low) / (axis.step or 1) + 1e-9) + 1
            else:
                return None
        return total

    def ends(self, key: str) -> tuple[Any, ...]:
        """The choices of a setting, or the ends of its range."""
        axis = self.axes[key]
        return (axis.low, axis.high) if isinstance(axis, Range) else axis

    def corners(self) -> Iterator[Point]:
        """All combinations of choices and of the ends of ranges; of a space without ranges, all points."""
        for values in itertools.product(*map(self.ends, self.axes)):
            yield dict(zip(self.axes, values, strict=True))


def default_space(counts: StoreCounts) -> Space:
    """λcls × {K/2, K} × {C/2, C} of a store of these counts."""
    held = {"neighbours": counts.neighbours, "coordinates": counts.coordinates}
    halves = {key: tuple(sorted({max(1, number // 2), number})) for key, number in held.items()}
    return Space(
        {
            "lambda_cls": (0.01, 0.1), "num_neighbours": halves["neighbours"], "num_coordinates": halves["coordinates"],
        }
    )  # fmt: skip


def read_space(path: Path, search: str) -> Space:
    """The space in a file: dotted keys, each with a list of choices or `{low: …, high: …}`.

    Raises SettingsError, one sentence with the file and the key, if it is no space, or a value is none that the
    setting takes, or a grid search is to have a range.
    """
    tree = read_yaml(path, "--space")
    if not isinstance(tree, dict) or not tree:
        raise SettingsError(
            f"{path} must map settings to lists of values or ranges, such as `{SECTION}.lambda_cls: [0.01, 0.1]`"
        )
    try:
        return Space({_name(key): _axis(key, given, search) for key, given in tree.items()}, str(path))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def at_point(settings: Settings, point: Point, counts: StoreCounts) -> Settings:
    """The settings with one point's pretraining, on a store of these counts: what `best.yaml` holds."""
    tree = settings.model_dump(mode="json")
    tree["discovery"] |= {"num_neighbours": counts.neighbours, "num_coordinates": counts.coordinates}
    tree[SECTION] |= point
    return settings_from(tree)


def in_trial(point: Point, sweep: SweepSettings) -> Point:
    """A point as its trials train it: as many epochs as the sweep says unless the space varies them, one worker."""
    return {**{key: getattr(sweep, key) for key in EPOCH_KEYS}, "num_workers": 1, **point}


def most_epochs(space: Space, sweep: SweepSettings) -> int:
    """Epochs of the trial that lasts longest."""
    return sum(max(space.ends(key)) if key in space.axes else getattr(sweep, key) for key in EPOCH_KEYS)


def _name(key: Any) -> str:
    """The setting's name below `pretraining`. Raises SettingsError if there is none or it cannot vary."""
    parts = str(key).split(".")
    model: Any = Settings
    for depth, part in enumerate(parts):
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            settings_from(_nested(parts[: depth + 1]))  # tells what is near
            raise SettingsError(f"unknown setting {str(key)!r}: {'.'.join(parts[:depth])} is a value")
        model = field.annotation
    if isinstance(model, type) and issubclass(model, BaseModel):
        first = next(iter(model.model_fields))
        raise SettingsError(f"{key} is a section: name one of its settings, as in {key}.{first}")
    if key in ("seed", "pretraining.seed"):
        raise SettingsError(f"{key}: sweep.num_seeds trains each point with several seeds and reports their spread")
    if parts[0] != SECTION:
        raise SettingsError(
            f"{key} cannot vary within a sweep: all points share one pattern store and one target, so only settings "
            f"below {SECTION} can; give {key} to the whole sweep, or make another workspace"
        )
    if parts[1] in EXECUTION_SETTINGS:
        raise SettingsError(
            f"{key} cannot vary within a sweep: it only says how a run is executed, and a trial is one process "
            "(sweep.num_gpus gives it GPUs)"
        )
    return parts[1]


def _nested(parts: list[str]) -> dict[str, Any]:
    tree: Any = None
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def _axis(key: str, given: Any, search: str) -> tuple[Any, ...] | Range:
    if isinstance(given, list):
        if not given:
            raise SettingsError(f"{key} has no values: list at least one, or leave it out")
        return tuple(dict.fromkeys(_validated(key, value) for value in given))
    if not isinstance(given, dict):
        raise SettingsError(f"{key}={given!r}: give a list of values, or a range as {{low: …, high: …}}")
    if search == "grid":
        raise SettingsError(
            f"{key} is a range, and a grid would have no end: list values, or set sweep.search=random or tpe"
        )
    unknown = [name for name in given if name not in RANGE_KEYS]
    missing = [name for name in ("low", "high") if name not in given]
    if unknown or missing:
        what = f"has no {' and no '.join(missing)}" if missing else f"knows no {unknown[0]!r}"
        raise SettingsError(f"{key}: a range {what}: give low and high, and log: true or a step if you like")
    low, high = (_validated(key, given[name]) for name in ("low", "high"))
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        raise SettingsError(f"{key} takes no numbers between two others: list its values")
    if low >= high:
        raise SettingsError(f"{key}: low={low} must be below high={high}")
    log, step = given.get("log", False), given.get("step")
    if not isinstance(log, bool):
        raise SettingsError(f"{key}: log={log!r} must be true or false")
    if log and (step is not None or low <= 0):
        raise SettingsError(f"{key}: a range with log: true takes no step and begins above 0")
    if step is not None:
        step = _validated_step(key, step, low)
        high = low + int((high - low) / step + 1e-9) * step
    return Range(low, high, log, step)


def _validated_step(key: str, step: Any, low: float) -> float:
    whole = isinstance(low, int)
    try:
        step = TypeAdapter(int if whole else float).validate_python(step)
    except ValidationError:
        step = 0
    if not 0 < step < float("inf"):
        raise SettingsError(f"{key}: its step must be a {'whole ' if whole else ''}number above 0")
    return step


def _validated(key: str, value: Any) -> Any:
    """The value as the setting holds it. Raises SettingsError if it takes no such value."""
    field = PretrainingSettings.model_fields[key.split(".")[1]]
    described: Any = Annotated[field.annotation, field]
    try:
        return TypeAdapter(described).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise SettingsError(f"{key}={value!r} is not allowed: {message[0].lower()}{message[1:]}") from None
