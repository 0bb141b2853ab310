"""Settings of discovery: auto-encoder, embedding, index, patterns and random crops."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raygenesis.settings.section import Count, ExtentMm, Fraction, NonNegative, NumGpus, Positive, Section, Shape

AUTOENCODER_DIVISOR = 8  # each side of its input is a multiple


class AutoencoderSettings(Section):
    """The auto-encoder whose latent vectors measure how similar patients are (paper section 2.1)."""

    input_shape: Shape = Field(
        (64, 64, 64), description="Shape in voxels, z y x (2D: y x), to which a whole scan is resampled."
    )
    base_width: Count = Field(16, description="Channels of the first level; each further level doubles them.")
    latent_size: Count = Field(512, description="Length of the embedding.")
    num_epochs: Count = Field(100, description="Maximum number of epochs; `patience` may stop earlier.")
    batch_size: Count = Field(8, description="Scans per optimiser step.")
    learning_rate: Positive = Field(1e-3, description="Learning rate of the Adam optimiser.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Precision of the forward pass in training; bf16 uses autocast. `auto`: as for "
        "`pretraining.precision`.",
    )
    patience: Count = Field(10, description="Stop after this many epochs without a lower validation error.")
    max_volumes: Count = Field(
        10_000, description="Maximum number of scans to train on; a seeded sample is drawn from a larger archive."
    )
    num_workers: Count = Field(
        1, description="Number of Ray Train workers, which share each batch. The result does not depend on it."
    )
    use_gpu: bool = Field(False, description="Train on one GPU per worker instead of CPUs.")

    @model_validator(mode="after")
    def _workers_have_something_to_do(self) -> AutoencoderSettings:
        if self.num_workers > self.batch_size:
            raise ValueError(
                f"autoencoder.num_workers={self.num_workers} is more than autoencoder.batch_size={self.batch_size}: "
                "each worker needs at least one scan of a batch"
            )
        return self


class EmbeddingSettings(Section):
    """How the scans of the archive are embedded, by a pool of Ray actors."""

    encoder: str = Field(
        "autoencoder",
        description="Encoder of whole scans: `autoencoder` (trained on the archive), `pca` (principal components, a "
        "linear baseline of the same sizes), or the path of weights that raygenesis wrote: the file of an "
        "auto-encoder or of principal components, or the folder of a pretraining run.",
    )
    num_actors: Count | None = Field(
        None,
        description="Processes that embed at once. When null, as many as the cluster has cores for, or GPUs with "
        "`num_gpus`.",
    )
    num_gpus: NumGpus = Field(0.0, description="GPUs per process; with a fraction, several processes share one.")
    volumes_per_part: Count = Field(
        128, description="Scans per Parquet file of embeddings; an interrupted job resumes at the next file."
    )


class IndexSettings(Section):
    """The search for nearest neighbours among embeddings, by Euclidean distance."""

    num_neighbours: Count = Field(
        32, description="Number of nearest scans kept of every scan (`raygenesis neighbours`), or all of fewer."
    )
    method: Literal["auto", "exact", "hnsw"] = Field(
        "auto",
        description="Search method; `auto` takes whichever of exact search and HNSW is cheaper for searches of "
        "every scan.",
    )
    volumes_per_shard: Count = Field(100_000, description="Scans per HNSW graph.")
    m: Annotated[int, Field(ge=2)] = Field(16, description="Links per scan in an HNSW graph (hnswlib's `M`).")
    ef_construction: Count = Field(
        200, description="Candidates considered when a scan is added to a graph (hnswlib's `ef_construction`)."
    )
    ef: Count = Field(
        200,
        description="Candidates considered in a search at first (hnswlib's `ef`); doubled until `min_recall` is met.",
    )
    min_recall: Annotated[float, Field(gt=0, le=1)] = Field(
        0.99, description="Share of the true neighbours that HNSW must find, measured on a sample of searches."
    )


class Scale(Section):
    """One size of crop: its physical extent and the random variation of each crop around it."""

    extent_mm: ExtentMm = Field(description="Extent in mm, z y x (2D: y x).")
    extent_jitter: Fraction = Field(
        0.0, description="In-plane extents vary at random by ± this fraction; the extent along z does not."
    )
    shift_mm: NonNegative = Field(
        0.0, description="In-plane positions vary at random by ± this distance in mm; the position along z does not."
    )


class DiscoverySettings(Section):
    """Self-discovery of anatomical patterns (paper section 2.1, appendix A)."""

    num_references: Count = Field(1, description="R: number of reference patients. There are R × C classes.")
    num_coordinates: Count = Field(44, description="C: number of coordinates per reference.")
    num_neighbours: Count = Field(
        200, description="K: number of most similar patients per reference, the reference included."
    )
    num_validation_neighbours: Count = Field(
        30, description="Number of most similar held-out patients per reference, of which validation patterns are cut."
    )
    reference_choice: Literal["random", "spread"] = Field(
        "random",
        description="How references are chosen: at random, or each as the patient least similar to those before it.",
    )
    references_by_group: Literal["equal"] | None = Field(
        None,
        description="How references are spread over the groups of an archive of several kinds of scans: `equal`, as "
        "many in each; when null, in proportion to their subjects. A group that is too small for a reference's "
        "neighbours gets none.",
    )
    duplicate_distance: Fraction = Field(
        0.1,
        description="Keep one of two patients whose embeddings are closer than this fraction of the distance between "
        "two random patients. Lower it if 'only N neighbours are left'. 0 drops exact copies only.",
    )
    cube_shape: Shape = Field((32, 64, 64), description="Shape of a pattern in voxels, z y x (2D: y x).")
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = Field(
        (
            Scale(extent_mm=(40.0, 45.0, 45.0)),
            Scale(extent_mm=(40.0, 45.0, 45.0), extent_jitter=0.22, shift_mm=7.0),
            Scale(extent_mm=(40.0, 45.0, 45.0), extent_jitter=0.22, shift_mm=7.0),
        ),
        description="Scales at which each coordinate is cropped, once each: `extent_mm`, z y x (2D: y x), which varies "
        "in-plane by ± the fraction `extent_jitter`, at a position that varies in-plane by ± `shift_mm`.",
    )
    num_crops: Count | None = Field(
        None,
        description="Number of random crops per scan, for pretext tasks that need no discovery (`raygenesis crop`). "
        "When null, chosen so that there are as many crops in all as R × K × C × scales patterns.",
    )
    min_distance_mm: NonNegative = Field(10.0, description="Minimum distance in mm between two coordinates.")
    min_content: Fraction = Field(
        0.6,
        description="Minimum fraction of a crop that shows anatomy: where values vary locally by a tenth of the "
        "scan's standard deviation, measured on the coarsest level. Air and flat tissue fail in any modality.",
    )
    box: tuple[tuple[float, float], ...] | None = Field(
        None,
        description="Part of the reference in which coordinates lie, and of each scan in which random crops lie: "
        "[from, to] as fractions of each side, z y x (2D: y x), such as [[0.2, 0.8], [0, 0.5], [0, 1]]. When null, "
        "the whole scan.",
    )
    correspondence: Literal["relative", "physical"] = Field(
        "relative",
        description="Where a coordinate lies in another patient: `relative`, at the same fraction of each side; "
        "`physical`, at the same offset in mm from the centre of the body.",
    )
    alignment: Literal["none", "rigid", "affine"] = Field(
        "none",
        description="Registration of each patient to the reference, on the coarsest level, in place of "
        "`correspondence`; for archives in which patients lie differently.",
    )
    patterns_per_part: Count = Field(
        1024, description="Patterns per Parquet file; an interrupted job resumes at the next file."
    )

    @model_validator(mode="after")
    def _box_is_inside(self) -> DiscoverySettings:
        box = self.box or ()
        for low, high in box:
            if not 0 <= low < high <= 1:
                raise ValueError(f"discovery.box={[list(side) for side in box]}: needs 0 <= from < to <= 1 a side")
        return self
