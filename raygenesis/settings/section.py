"""What every part of the tree is made of: kinds of values, and a section that takes no unknown key."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Shape = Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)]
ExtentMm = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=3)]


class Section(BaseModel):
    """A part of the tree: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
