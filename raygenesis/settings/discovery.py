"""Settings of discovery: auto-encoder, embedding, index, patterns and random crops."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raygenesis.settings.section import Count, ExtentMm, Fraction, NonNegative, NumGpus, Positive, Section, Shape

AUTOENCODER_DIVISOR = 8  # each side of its input is a multiple


class AutoencoderSettings(Section):
    """The auto-encoder whose latent vector says which patients are alike (paper section 2.1)."""

    input_shape: Shape = Field((64, 64, 64), description="Voxels z y x (2D: y x) a whole scan is resampled to.")
    base_width: Count = Field(16, description="Channels of the first level; each further level doubles them.")
    latent_size: Count = Field(512, description="Length of the embedding.")
    num_epochs: Count = Field(100, description="At the most.")
    batch_size: Count = Field(8, description="Scans in a step.")
    learning_rate: Positive = Field(1e-3, description="Of Adam.")
    patience: Count = Field(10, description="Epochs without a better validation error before stopping.")
    max_volumes: Count = Field(10_000, description="Train on at most this many scans (a seeded sample).")


class EmbeddingSettings(Section):
    """Embedding the whole archive through an actor pool."""

    encoder: str = Field(
        "autoencoder",
        description="What describes a whole scan: `autoencoder` (trained on the archive), `pca` (the linear baseline "
        "of the same sizes), or the path of weights of ours: an auto-encoder's or PCA's file, or a run's folder.",
    )
    num_actors: Count | None = Field(
        None,
        description="Actors in the pool; when null as many as the cluster has cores for, or GPUs with num_gpus.",
    )
    num_gpus: NumGpus = Field(0.0, description="GPUs for each actor; a fraction lets several share one.")
    volumes_per_part: Count = Field(128, description="Scans in one Parquet part: the unit of resuming.")


class IndexSettings(Section):
    """Nearest neighbours among embeddings (L2)."""

    method: Literal["auto", "exact", "hnsw"] = Field(
        "auto", description="auto: whichever of exact search and HNSW is cheaper for these references and scans."
    )
    volumes_per_shard: Count = Field(100_000, description="Scans in one HNSW graph.")
    m: Annotated[int, Field(ge=2)] = Field(16, description="Links of a scan in a graph.")
    ef_construction: Count = Field(200, description="Width of the search that places a scan in a graph.")
    ef: Count = Field(200, description="Width of a search, to begin with; doubled until min_recall is met.")
    min_recall: Annotated[float, Field(gt=0, le=1)] = Field(
        0.99, description="Share of the true neighbours that the graphs must find, measured on a sample of searches."
    )


class Scale(Section):
    """One size of crop: physical extent and how much each crop departs from it at random."""

    extent_mm: ExtentMm = Field(description="Extent z y x (2D: y x) in mm.")
    extent_jitter: Fraction = Field(0.0, description="Extents vary by ± this share in-plane (not along z).")
    shift_mm: NonNegative = Field(0.0, description="Positions vary by ± this in-plane (not along z).")


class DiscoverySettings(Section):
    """Self-discovery of anatomical patterns (paper section 2.1, appendix A)."""

    num_references: Count = Field(1, description="R: reference patients. Labels = R × C.")
    num_coordinates: Count = Field(44, description="C: coordinates per reference.")
    num_neighbours: Count = Field(200, description="K: most similar patients, the reference among them.")
    num_validation_neighbours: Count = Field(30, description="Most similar held-out patients per reference.")
    reference_choice: Literal["random", "spread"] = Field(
        "random", description="References drawn at random, or each the patient least like those before it."
    )
    duplicate_distance: Fraction = Field(
        0.1,
        description="Of patients whose embeddings lie nearer to each other than this share of the distance between two "
        "random patients only the first counts: the same scan under two names. 0 keeps all but exact copies.",
    )
    cube_shape: Shape = Field((32, 64, 64), description="Voxels z y x (2D: y x) of a pattern.")
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = Field(
        (
            Scale(extent_mm=(40.0, 45.0, 45.0)),
            Scale(extent_mm=(40.0, 45.0, 45.0), extent_jitter=0.22, shift_mm=7.0),
            Scale(extent_mm=(40.0, 45.0, 45.0), extent_jitter=0.22, shift_mm=7.0),
        ),
        description="Each coordinate is cropped once for each of these: extent_mm z y x (2D: y x), which varies by "
        "± the share extent_jitter, and a position that varies by ± shift_mm, both in-plane.",
    )
    num_crops: Count | None = Field(
        None,
        description="Random crops of each scan, for pretext tasks that need no discovery (`raygenesis crop`); when "
        "null so many that they are as many in all as R × K × C × scales patterns.",
    )
    min_distance_mm: NonNegative = Field(10.0, description="Least distance between two coordinates.")
    min_content: Fraction = Field(
        0.6,
        description="A crop is kept where at least this share of it shows anatomy, judged on the scan's coarse level: "
        "where the values around a voxel vary by a tenth of the whole scan's standard deviation. Air and flat tissue "
        "fail in any modality.",
    )
    box: tuple[tuple[float, float], ...] | None = Field(
        None,
        description="Coordinates lie in this part of the reference, random crops in this part of each scan: [from, to] "
        "as fractions of each side, z y x (2D: y x), such as [[0.2, 0.8], [0, 0.5], [0, 1]]; anywhere when null.",
    )
    correspondence: Literal["relative", "physical"] = Field(
        "relative",
        description="The same coordinate in another patient: the same fraction of each side, or the same "
        "offset in mm from the centre of the body.",
    )
    alignment: Literal["none", "rigid", "affine"] = Field(
        "none",
        description="Register each patient to the reference instead, at the coarse level: for archives in which "
        "patients lie differently.",
    )
    patterns_per_part: Count = Field(1024, description="Patterns in one Parquet part: the unit of resuming.")

    @model_validator(mode="after")
    def _box_is_inside(self) -> DiscoverySettings:
        box = self.box or ()
        for low, high in box:
            if not 0 <= low < high <= 1:
                raise ValueError(f"discovery.box={[list(side) for side in box]}: needs 0 <= from < to <= 1 a side")
        return self
