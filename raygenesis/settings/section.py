"""The base class of all sections of settings, and the types of values that several of them use."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Shape = Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)]
ExtentMm = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=3)]


def _whole_or_shared(num_gpus: float) -> float:
    if num_gpus > 1 and num_gpus % 1:
        raise PydanticCustomError("num_gpus", "give a fraction below 1 or a whole number")
    return num_gpus


NumGpus = Annotated[NonNegative, AfterValidator(_whole_or_shared)]


class Section(BaseModel):
    """A section of the tree of settings: immutable, without unknown keys, NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
