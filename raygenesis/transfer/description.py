"""The description of a target task in YAML: a user's own images and labels, or a published set in its layout."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator, validate_call

from raygenesis.errors import ScanError, SettingsError
from raygenesis.settings import Section, Settings, read_mapping, settings_from, validation_fault
from raygenesis.transfer.examples import SEGMENTATION, Target
from raygenesis.transfer.targets.layouts import LAYOUTS
from raygenesis.transfer.targets.own_files import Columns, OwnFiles, read_label_maps, read_table
from raygenesis.workspace.manifest import Tree


class Description(Section):
    """Either `layout` and `folder`, or `task`, `images` and `labels`; paths are relative to the file's folder.

    symmetric_axes: along which images may be mirrored in training, as sides do not matter. settings: what this target
    changes below `finetune`.
    """

    layout: str | None = None
    folder: Path | None = None
    options: dict[str, Any] = Field({}, description="Options of the layout, by name.")
    task: Literal["segmentation", "classification", "regression"] | None = None
    images: Path | None = None
    labels: Path | None = None
    ndim: Literal[2, 3] = 3
    classes: tuple[str | int, ...] | None = None
    key_column: str = "image"
    value_column: str | None = None
    subject_column: str | None = None
    subject_pattern: str | None = None
    split: Path | None = None
    empty_masks: Literal["leave-out", "keep"] = "leave-out"
    window: tuple[float, float] | None = None
    symmetric_axes: tuple[Literal["x", "y", "z"], ...] = ()
    settings: dict[str, Any] = Field({}, description="Settings below `finetune` that this target changes.")

    @model_validator(mode="after")
    def _axes_differ(self) -> Description:
        if len(set(self.symmetric_axes)) < len(self.symmetric_axes):
            raise ValueError(f"symmetric_axes: {list(self.symmetric_axes)} names an axis twice: leave one out")
        return self

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Description:
        if self.layout is not None:
            if self.layout not in LAYOUTS:
                raise ValueError(f"layout: {self.layout!r} is unknown: choose one of {', '.join(LAYOUTS)}")
            ours = self.model_fields_set - {"layout", "folder", "options", "settings", "window", "symmetric_axes"}
            if self.folder is None or ours:
                fault = "needs `folder`" if self.folder is None else f"brings its own {', '.join(sorted(ours))}"
                raise ValueError(f"layout: {self.layout} {fault}")
            return self
        missing = [key for key in ("task", "images", "labels") if getattr(self, key) is None]
        if missing:
            raise ValueError(f"{' and '.join(missing)} missing: give `task`, `images` and `labels`, or a `layout`")
        if self.folder is not None or self.options:
            raise ValueError("folder and options belong to a `layout`: leave them out, or give one")
        if self.task != SEGMENTATION and self.value_column is None:
            raise ValueError(f"value_column is missing: name the column of {self.labels} that holds the values")
        if self.classes is not None and not 0 < len(self.classes) == len(set(map(str, self.classes))):
            raise ValueError(f"classes: {list(self.classes)} must be names, each another: leave it out, or mend it")
        try:
            re.compile(self.subject_pattern or "")
        except re.error as error:
            raise ValueError(
                f"subject_pattern: {self.subject_pattern!r} is not a regular expression: {error}"
            ) from None
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window: {list(self.window)} must be [low, high] with low < high")
        return self


def read_description(path: Path) -> Description:
    """Read a description's file, with its paths made absolute. Raises SettingsError in one sentence."""
    return parse_description(read_mapping(path, "target"), path.parent.absolute(), str(path))


def description_of(target: Path | None, images: Path | None, labels: Path | None, ndim: int) -> Description:
    """The description in a file, or that of two folders of `ndim`D images and label maps. Raises SettingsError."""
    if target is not None and images is None and labels is None:
        return read_description(target)
    if target is None and images is not None and labels is not None:
        tree = {"task": SEGMENTATION, "images": images, "labels": labels, "ndim": ndim}
        return parse_description(tree, Path.cwd(), "--images and --labels")
    raise SettingsError(
        "give --target, a YAML file that describes the target, or --images and --labels for a segmentation"
    )


def parse_description(tree: Tree, folder: Path, where: str) -> Description:
    """The description in a tree of YAML; paths are relative to `folder`, errors name `where`. Raises SettingsError."""
    try:
        found = Description.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(f"{where}: {validation_fault(error, Description)}") from None
    paths = {key: folder / value.expanduser() for key, value in found if isinstance(value, Path)}
    return found.model_copy(update=paths)


def read_target(description: Description, subject_pattern: str | None = None) -> Target:
    """The examples that are described. Raises ScanError or SettingsError where there are none.

    subject_pattern: the archive's, for descriptions without one of their own.
    """
    task, images, labels = description.task, description.images, description.labels
    if task is None or images is None or labels is None:  # a layout has its own
        target = _read_layout(description)
    else:
        pattern = description.subject_pattern or subject_pattern
        files = OwnFiles(task, images, labels, description.ndim, description.classes, description.split, pattern)
        if task == SEGMENTATION:
            target = read_label_maps(files)
        else:
            assert description.value_column is not None
            columns = Columns(description.key_column, description.value_column, description.subject_column)
            target = read_table(files, columns)
    if target.ndim == 2 and "z" in description.symmetric_axes:
        raise SettingsError("symmetric_axes: the target's images are 2D and have no axis z: leave it out")
    return replace(
        target, window=description.window or target.window,
        keeps_empty=target.keeps_empty or description.empty_masks == "keep",
        symmetric_axes=tuple(sorted(description.symmetric_axes)),
    )  # fmt: skip


def settings_for(description: Description, settings: Settings) -> Settings:
    """Settings with what the target changes below `finetune`, except for what was given on the command line."""
    changed = dict(description.settings)
    if description.layout is not None and settings.finetune.input_shape is None:
        changed.setdefault("input_shape", LAYOUTS[description.layout].input_shape)
    tree = settings.model_dump(mode="json")
    tree["finetune"] |= {key: value for key, value in changed.items() if f"finetune.{key}" not in settings.given}
    return settings_from(tree, settings.given)


def _read_layout(description: Description) -> Target:
    assert description.layout is not None
    layout = LAYOUTS[description.layout]
    where = f"options of layout {description.layout}"
    known = list(inspect.signature(layout.read).parameters)[1:]
    unknown = [key for key in description.options if key not in known]
    if unknown:
        raise SettingsError(f"{where}: {unknown[0]!r} is unknown; there are {', '.join(known) or 'none'}")
    try:
        return validate_call(layout.read)(description.folder, **description.options)
    except ValidationError as error:
        fault = error.errors()[0]
        raise SettingsError(f"{where}: {fault['loc'][0]}={fault['input']!r} is not allowed: {fault['msg']}") from None
    except ScanError as error:
        raise ScanError(f"{error} ({layout.source})") from None
