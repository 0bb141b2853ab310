"""Settings of the archive, and of how its values are read."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raygenesis.settings.section import Count, ExtentMm, Positive, Section


class ArchiveSettings(Section):
    """How scans are converted to OME-Zarr volumes."""

    subject_pattern: str | None = Field(
        None,
        description="Regular expression with one group, searched in a scan's path below the scans folder; what the "
        "group matches is the subject. When null: DICOM's patient ID, else the BIDS label `sub-…`, else one subject "
        "per file.",
    )
    keep_ids: bool = Field(
        False, description="Store subjects' names and scans' paths as they are, instead of keyed hashes of them."
    )
    fourth_axis: Literal["refuse", "split", "channels"] = Field(
        "refuse",
        description="What to do with a scan that has a fourth axis: record it as a failure, store each time point as "
        "a volume, or store the axis as channels.",
    )
    uneven: Literal["resample"] | None = Field(
        None,
        description="What to do with DICOM slices whose distance changes or differs by more than half: resample them "
        "linearly at the finest distance. When null, they are a failure. Missing slices are always a failure.",
    )
    spacing_mm: ExtentMm | None = Field(
        None,
        description="Voxel size in mm, z y x (2D: y x), to which every scan is resampled. When null, scans keep their "
        "own.",
    )
    fill_nan: float | None = Field(
        None, description="Value stored in place of NaN and infinity. When null, a scan that has them is a failure."
    )
    crop_to_body: bool = Field(False, description="Crop each scan to the body, without the air around it.")
    max_scan_gib: Positive = Field(16.0, description="Largest scan that is accepted, in GiB of voxels.")
    coarse_size: Count = Field(
        64, description="The pyramid is halved until no side is longer than this number of voxels."
    )
    chunk: Count = Field(64, description="Side of a Zarr chunk in voxels.")
    shard: Count = Field(256, description="Side of a Zarr shard in voxels; a multiple of `chunk`.")

    @model_validator(mode="after")
    def _subject_pattern_compiles(self) -> ArchiveSettings:
        try:
            re.compile(self.subject_pattern or "")
        except re.error as error:
            raise ValueError(
                f"archive.subject_pattern={self.subject_pattern!r} is not a regular expression: {error}"
            ) from None
        return self

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> ArchiveSettings:
        if self.shard % self.chunk:
            raise ValueError(f"archive.shard={self.shard} must be a multiple of archive.chunk={self.chunk}")
        return self


class IntensitySettings(Section):
    """How stored values are scaled to [0, 1] when they are read."""

    window: tuple[float, float] | None = Field(
        None,
        description="Values that are mapped to 0 and 1, after rescale slope and intercept (HU for CT). When null, the "
        "0.5 and 99.5 percentiles of each volume, as for MR.",
    )
    channel: Annotated[int, Field(ge=0)] = Field(
        0, description="Channel that is read from scans with several, counted from 0."
    )

    @model_validator(mode="after")
    def _window_rises(self) -> IntensitySettings:
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"intensity.window={list(self.window)} must be [low, high] with low < high")
        return self
