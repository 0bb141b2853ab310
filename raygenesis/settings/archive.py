"""Settings of the archive, and of how its values are read."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raygenesis.settings.section import Count, ExtentMm, Positive, Section


class ArchiveSettings(Section):
    """Scans in, OME-Zarr out."""

    subject_pattern: str | None = Field(
        None,
        description="Regular expression with one group, searched in a scan's path below the scans "
        "folder; the group is the subject. Without it: DICOM's patient id, else BIDS `sub-…`, else one subject a file.",
    )
    keep_ids: bool = Field(False, description="Keep subjects' names and scans' paths instead of keyed hashes.")
    fourth_axis: Literal["refuse", "split", "channels"] = Field(
        "refuse", description="Scans with a fourth axis: a failure, one volume a time point, or channels."
    )
    spacing_mm: ExtentMm | None = Field(
        None, description="Resample every scan to this voxel size, z y x (2D: y x); the scanner's own when null."
    )
    fill_nan: float | None = Field(
        None, description="Stored in place of NaN and infinity; a scan that has them is a failure when null."
    )
    crop_to_body: bool = Field(False, description="Leave out the air around the body.")
    max_scan_gib: Positive = Field(16.0, description="A scan of more voxel bytes than this is refused.")
    coarse_size: Count = Field(64, description="The pyramid ends where no side is longer than this.")
    chunk: Count = Field(64, description="Side of a Zarr chunk in voxels.")
    shard: Count = Field(256, description="Side of a Zarr shard in voxels; a multiple of the chunk.")

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
    """How stored values become [0, 1] when they are read."""

    window: tuple[float, float] | None = Field(
        None,
        description="Values (after rescale slope and intercept, so HU for CT) mapped to 0 and 1. "
        "Without it: each volume's own 0.5 and 99.5 percentiles, as for MR.",
    )
    channel: Annotated[int, Field(ge=0)] = Field(0, description="Which channel of scans that have several, from 0.")

    @model_validator(mode="after")
    def _window_rises(self) -> IntensitySettings:
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"intensity.window={list(self.window)} must be [low, high] with low < high")
        return self
