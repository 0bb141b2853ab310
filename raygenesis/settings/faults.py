"""What pydantic finds wrong with a tree, as one sentence."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def validation_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault that pydantic found in a tree of `model`, as one sentence that names the key and the value."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")  # a misspelling explains the rest
    # Where several types are allowed, the name of the one that was tried comes last.
    key = ".".join(str(part) for part in fault["loc"] if str(part).replace("_", "").isalnum())
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {key!r}{_nearest(fault['loc'], model)}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    return f"{key}={fault['input']!r} is not allowed: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _nearest(location: tuple[int | str, ...], model: Any) -> str:
    """The name that was probably meant by an unknown one, or all that are known in its place."""
    for part in location[:-1]:
        if isinstance(part, int):
            model = get_args(model)[0]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    known = list(getattr(model, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f": did you mean {'.'.join([*map(str, location[:-1]), close[0]])!r}?"
    return f": known here are {', '.join(known)}" if known else ""
