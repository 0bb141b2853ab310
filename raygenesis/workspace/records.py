"""Records: dataclasses that are read from JSON files, their keys and types checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, read_json

R = TypeVar("R")


def read_record(path: Place, kind: type[R], required: Sequence[str] = ()) -> R | None:
    """Read the record of a type in a JSON file; None where there is no such file. Keys that it does not have are left.

    required: keys that the file must have, though the type has a default for them. Raises WorkspaceError, naming the
    key, if the file is damaged.
    """
    tree = read_json(path)
    if tree is None:
        return None
    for key in required:
        if key not in tree:
            raise _damaged(path, f"{key}: field required")
    try:
        return adapter(kind).validate_python(tree)  # type: ignore[arg-type] # types can be hashed
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise _damaged(path, f"{key}: {fault['msg'].lower()}") from None


def as_json(records: Any) -> str:
    """A record, or a list of records of one type, as JSON; numbers that are not finite are null."""
    some = records if isinstance(records, list) else [records]
    kind: Any = type(some[0]) if some else object
    trees = [json.loads(adapter(kind).dump_json(each)) for each in some]
    return json.dumps(trees if isinstance(records, list) else trees[0], indent=2, ensure_ascii=False)


def _damaged(path: Place, reason: str) -> WorkspaceError:
    return WorkspaceError(f"{path} is damaged ({reason}): remove it, then run again the command that made it")


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks the keys and types of a record."""
    return TypeAdapter(kind)
