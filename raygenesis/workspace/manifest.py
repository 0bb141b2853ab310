"""Manifests: what a finished artifact records of itself, one type for each kind of artifact.

A manifest is the last file of an artifact that is written; where there is none there is no artifact. Fields keep their
order in the file. What an earlier version did not record has a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raygenesis.workspace.hardware import Hardware

# A tree of settings, or a section of it, as JSON has it; a row of a table that people read.
Tree = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many there are of what an artifact holds."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What every artifact records.

    settings: the sections that decided it; inputs: fingerprints of what it was made from, by name; counts: each kind
    has its own; seconds: of the last call; bytes: of all its files; finished: time in UTC; command: words after
    `raygenesis` that make it again, where these are not its verb and name alone; hardware: what it was made on, if that
    was the same from beginning to end; format: that of its stage then (`Artifact.format`).
    """

    settings: Tree = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    bytes: int = 0
    finished: str = ""
    version: str = ""
    command: tuple[str, ...] | None = None
    hardware: Hardware | None = None
    format: int = 1


@dataclass(frozen=True, kw_only=True)
class ArchiveCounts(Counts):
    """scans: found; known: of these, those that an earlier call had taken in; removed: volumes whose files are gone."""

    scans: int
    volumes: int
    subjects: int
    failures: int
    known: int = 0
    removed: int = 0
    other_files: int = 0


@dataclass(frozen=True, kw_only=True)
class ArchiveManifest(Manifest):
    """listing: digest of the files that were found."""

    counts: ArchiveCounts
    listing: str | None = None
    source_bytes: int
    voxel_bytes: int | None = None
    stored_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class AutoencoderCounts(Counts):
    training: int
    validation: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class AutoencoderManifest(Manifest):
    """archive: fingerprint of the archive that it learnt from; val_mse: its error on subjects held out."""

    counts: AutoencoderCounts
    archive: str = ""
    val_mse: float


@dataclass(frozen=True, kw_only=True)
class ComponentsCounts(Counts):
    components: int
    training: int
    validation: int


@dataclass(frozen=True, kw_only=True)
class ComponentsManifest(Manifest):
    """The manifest of principal components; fields as `AutoencoderManifest` has them."""

    counts: ComponentsCounts
    archive: str = ""
    val_mse: float


@dataclass(frozen=True, kw_only=True)
class EmbeddingsCounts(Counts):
    """new: volumes that the last call embedded."""

    volumes: int
    new: int = 0
    failures: int = 0
    parts: int = 0


@dataclass(frozen=True, kw_only=True)
class EmbeddingsManifest(Manifest):
    """archive: fingerprint of the archive that was embedded; size: numbers in an embedding."""

    counts: EmbeddingsCounts
    archive: str = ""
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class IndexCounts(Counts):
    volumes: int
    shards: int = 0
    indexed_before: int = 0


@dataclass(frozen=True)
class Shard:
    """One HNSW graph: its file's name and checksum, the number of its first volume, and how many volumes it holds."""

    name: str
    first: int
    count: int
    xxh3: str


@dataclass(frozen=True, kw_only=True)
class IndexManifest(Manifest):
    """method: `exact` or `hnsw`; asked: for how many neighbours ef was measured; ids: digest of the volumes' keys.

    ef, recall: of the graphs, measured against exact search.
    """

    counts: IndexCounts
    method: str
    embeddings: str = ""
    encoder: str = ""
    ids: str = ""
    metric: str = "l2"
    asked: tuple[int, ...] = ()
    shards: tuple[Shard, ...] = ()
    ef: int | None
    recall: float


@dataclass(frozen=True, kw_only=True)
class NeighboursCounts(Counts):
    """added: volumes that had no neighbours before the last call; duplicates, outliers: among the volumes."""

    volumes: int
    added: int = 0
    neighbours: int
    duplicates: int = 0
    outliers: int = 0
    groups: int = 0


@dataclass(frozen=True, kw_only=True)
class NeighboursManifest(Manifest):
    """embeddings, archive: fingerprints of what was searched, and of the archive then; method: `exact` or `hnsw`.

    archive is empty in what an earlier version wrote. recall: share of the true neighbours that the rows hold, measured
    on a sample. groups: sizes, largest first.
    """

    counts: NeighboursCounts
    embeddings: str = ""
    archive: str = ""
    method: str
    recall: float
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoreCounts(Counts):
    """patterns: in all, of which `validation` are held out; coordinates: of each reference, or crops of each scan."""

    patterns: int
    validation: int
    volumes: int
    parts: int
    failures: int
    references: int
    coordinates: int
    neighbours: int

    def of(self, setting: str) -> int:
        """How many the setting `num_neighbours` or `num_coordinates` can select at the most."""
        return {"num_neighbours": self.neighbours, "num_coordinates": self.coordinates}[setting]


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """The checksum of a file: its size, and xxh3_64 of its content as 16 hex digits."""

    bytes: int
    xxh3: str


@dataclass(frozen=True, kw_only=True)
class StoreManifest(Manifest):
    """The manifest of a store of cubes. parts: in order; none in what an earlier version wrote."""

    counts: StoreCounts
    cube_shape: tuple[int, ...]
    cube_dtype: str = "<u2"
    cube_steps: int = 4095
    raw_bytes: int
    parts: tuple[Checksum, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReferenceRecord:
    """A reference patient's scan and the places of its coordinates, [C, ndim] in mm from its corner."""

    volume_id: str
    source: str
    centres_mm: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How patterns correlate with the reference's, over patients: of the same class (`within`), of others (`between`).

    values: `within` of each patient; means are None without patients.
    """

    num_patients: int
    values: tuple[float, ...]
    within: float | None
    between: float | None


@dataclass(frozen=True, kw_only=True)
class RankLikeness(Likeness):
    """The likeness of neighbours of the ranks `ranks`, from the first to the last."""

    ranks: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Likeness of neighbours and of random patients; p_value: one-sided, that neighbours are more alike."""

    neighbours: Likeness
    random: Likeness
    by_rank: tuple[RankLikeness, ...]
    p_value: float | None
    warning: str | None = None


@dataclass(frozen=True, kw_only=True)
class PatternsManifest(StoreManifest):
    """references: in order, those of a group together; quality: how alike the patterns of neighbours are.

    references_by_group: how many of each group, as `neighbours/` numbers them.
    """

    references: tuple[ReferenceRecord, ...] = ()
    references_by_group: tuple[int, ...] = ()
    quality: Quality | None = None


@dataclass(frozen=True, kw_only=True)
class RunCounts(Counts):
    """patterns: learnt from; classes: 0 of a task that classifies nothing."""

    epochs: int
    patterns: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Over all epochs; gap: share of a step's time that is spent waiting for data."""

    cubes_per_s: float
    gap: float


@dataclass(frozen=True, kw_only=True)
class RunManifest(Manifest):
    """The manifest of a pretraining run. architecture: of its network; store: `patterns` or `crops`.

    What follows is of the best epoch, on held-out subjects; None where the task has no such part. chance, identity_mse,
    mean_image_mse: what answers without learning reach; retrieval_untrained: of the weights that training began with;
    separation: share of the variance of projected embeddings that lies between classes. contrast (contrast_chance: of
    embeddings that are all alike) and cross_restoration_mse are of training: held-out patterns have no partners.
    """

    counts: RunCounts
    architecture: Tree
    store: str
    epoch: int
    accuracy: float | None
    chance: float | None
    restoration_mse: float | None
    identity_mse: float | None
    mean_image_mse: float | None
    embedding_variance: float
    effective_rank: float
    retrieval: float | None
    retrieval_untrained: float | None = None
    contrast: float | None = None
    contrast_chance: float | None = None
    cross_restoration_mse: float | None = None
    separation: float | None = None
    warnings: tuple[str, ...] = ()
    speed: Speed | None = None


@dataclass(frozen=True, kw_only=True)
class SweepCounts(Counts):
    points: int
    trials: int
    failures: int
    stopped: int


@dataclass(frozen=True, kw_only=True)
class SweepCost:
    """Seconds of all trials, and of those that were stopped or failed."""

    seconds: float
    cpu_seconds: float
    gpu_seconds: float
    stopped_seconds: float
    failed_seconds: float


@dataclass(frozen=True, kw_only=True)
class SweepManifest(Manifest):
    """config: the settings of its pretrainings; varied: keys of the space; table: a row a point, the best first."""

    counts: SweepCounts
    config: Tree = field(default_factory=dict)
    objective: str
    mode: str
    varied: tuple[str, ...]
    table: tuple[Tree, ...]
    cost: SweepCost
    seeds_note: str


@dataclass(frozen=True, kw_only=True)
class TransferCounts(Counts):
    examples: int
    left_out: int
    test_examples: int
    validation_examples: int
    pool_subjects: int
    seen_subjects: int
    initialisations: int
    trials: int


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is compared; it may grow. initialisations: fingerprints by name, several with commas between them."""

    initialisations: Mapping[str, str]
    num_trials: int
    num_labelled: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class ChosenRate:
    """The learning rate that was best for an initialisation and a number of labelled subjects.

    scores: by each rate of the grid that was tried, the mean primary figure on the validation subjects; a rate at which
    a training diverged has none.
    """

    initialisation: str
    labelled: int | str
    rate: float
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TransferManifest(Manifest):
    """The manifest of a target.

    table: a row an initialisation and number of labelled subjects; shown: the same as people read it. runs: names of
    the workspace's runs that initialisations are, several of one with commas between them. rates: the learning rates,
    where they were chosen from a grid.
    """

    counts: TransferCounts
    config: Tree = field(default_factory=dict)
    task: str
    classes: tuple[str, ...] = ()
    extent: Extent
    spacing_mm: tuple[float, ...] | None = None
    table: tuple[Tree, ...]
    shown: tuple[Mapping[str, str], ...]
    is_like_best: tuple[bool, ...]
    runs: Mapping[str, str] = field(default_factory=dict)
    rates: tuple[ChosenRate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ComparisonCounts(Counts):
    initialisations: int
    targets: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class ComparisonManifest(Manifest):
    """The manifest of a study.

    agreement: how well cheap measures predict fine-tuning. cubes: seen by each pretraining; paper: by target, our
    figures beside the paper's.
    """

    counts: ComparisonCounts
    config: Tree = field(default_factory=dict)
    overview: tuple[Mapping[str, str], ...]
    semantics: tuple[Tree, ...]
    agreement: tuple[Tree, ...] = ()
    cubes: Mapping[str, int] = field(default_factory=dict)
    paper: Mapping[str, tuple[Mapping[str, str], ...]] = field(default_factory=dict)


M = TypeVar("M", bound=Manifest)
