"""Listing the files of a published layout: those below a folder, by safe names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from raygenesis.errors import ScanError
from raygenesis.transfer.examples import Problem, Target

SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def files_below(folder: Path, endings: str | tuple[str, ...]) -> list[Path]:
    """Files below a folder with one of the endings, sorted. Raises ScanError.

    Hidden files, linked folders and what is no regular file are left out.
    """
    if not folder.is_dir():
        raise ScanError(f"{folder} does not exist or is not a folder: give the one that holds the data as published")
    found: list[Path] = []
    for parent, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        named = (Path(parent, name) for name in names if name.endswith(endings) and not name.startswith("."))
        found += [path for path in named if path.is_file()]
    return sorted(found)


def by_name(
    folder: Path, paths: Iterable[Path], name_of: Callable[[Path], str]
) -> tuple[dict[str, Path], list[Problem]]:
    """Files by the name that `name_of` returns, and problems: the second file of a name, and unsafe names."""
    named: dict[str, Path] = {}
    problems = []
    for path in paths:
        name, source = name_of(path), path.relative_to(folder).as_posix()
        if not SAFE.fullmatch(name):
            problems.append(Problem(source, "its name has other characters than letters, digits, '.', '_' and '-'"))
        elif name in named:
            first = named[name].relative_to(folder).as_posix()
            problems.append(Problem(source, f"{first} has its name already"))
        else:
            named[name] = path
    return named, problems


def require_examples(folder: Path, target: Target) -> Target:
    """The target itself. Raises ScanError if it has no example, with the reason of the first problem."""
    if not target.examples:
        first = f" ({target.problems[0].name}: {target.problems[0].reason})" if target.problems else ""
        raise ScanError(f"{folder} holds no example{first}: give the folder that holds the data as published")
    return target
