"""The table of artifacts: which there are, in which folders, made by which verbs, from what.

Whatever lists artifacts (report, status, planning, pipeline) reads this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import (
    ArchiveManifest,
    AutoencoderManifest,
    ComparisonManifest,
    ComponentsManifest,
    EmbeddingsManifest,
    IndexManifest,
    M,
    NeighboursManifest,
    PatternsManifest,
    RunManifest,
    StoreManifest,
    SweepManifest,
    TransferManifest,
)
from raygenesis.workspace.manifest_files import read_manifest


@dataclass(frozen=True)
class Artifact(Generic[M]):
    """One kind of artifact.

    name: of its folder below the workspace. verb: what `raygenesis` calls the stage that makes it. inputs: names of the
    artifacts that it can be made from. manifest: the type of its manifest. is_named: there may be several, each in a
    folder with a name of its own below `name`. has_failures: there is a table of what its stage left out. format: the
    number of what its stage writes, raised when the same settings and inputs come to give other files. identifying:
    patterns of the names of those files whose bytes its fingerprint covers, as others are made from them.
    """

    name: str
    verb: str
    inputs: tuple[str, ...]
    manifest: type[M]
    is_named: bool = False
    has_failures: bool = False
    format: int = 1
    identifying: tuple[str, ...] = ()

    def read(self, folder: Place) -> M | None:
        """The manifest of the one in a folder; None where it is not there or not finished.

        Raises WorkspaceError if it is damaged.
        """
        return read_manifest(folder, self.manifest)

    def require(self, folder: Place) -> M:
        """As `read`. Raises WorkspaceError, naming the verb that makes it, where it is not there or not finished."""
        manifest = self.read(folder)
        if manifest is None:
            raise WorkspaceError(f"{folder} is not there or not finished: run `raygenesis {self.verb}` first")
        return manifest


ARCHIVE = Artifact("archive", "ingest", (), ArchiveManifest, has_failures=True, format=2)
WEIGHTS, PARTS = ("*.safetensors",), ("part-*.parquet",)
PART_RECORDS = ("part-*.json",)  # of stores whose parts are too large to be read again: each has its part's checksum

AUTOENCODER = Artifact("autoencoder", "embed", ("archive",), AutoencoderManifest, identifying=WEIGHTS)
COMPONENTS = Artifact("pca", "embed", ("archive",), ComponentsManifest, identifying=WEIGHTS)
EMBEDDINGS = Artifact(
    "embeddings", "embed", ("archive", "autoencoder", "pca", "runs"), EmbeddingsManifest, has_failures=True,
    format=2, identifying=PARTS,
)  # fmt: skip
INDEX = Artifact("index", "neighbours", ("embeddings",), IndexManifest)
NEIGHBOURS = Artifact(
    "neighbours", "neighbours", ("archive", "embeddings", "index"), NeighboursManifest,
    identifying=(*PARTS, "scans.parquet"),
)  # fmt: skip
PATTERNS = Artifact(
    "patterns", "discover", ("archive", "embeddings", "index", "neighbours"), PatternsManifest, has_failures=True,
    identifying=PART_RECORDS,
)  # fmt: skip
CROPS = Artifact("crops", "crop", ("archive",), StoreManifest, has_failures=True, identifying=PART_RECORDS)
RUNS = Artifact("runs", "pretrain", ("patterns", "crops"), RunManifest, is_named=True, identifying=WEIGHTS)
SWEEPS = Artifact("sweeps", "sweep", ("patterns",), SweepManifest, is_named=True)
TRANSFER = Artifact("transfer", "finetune", ("archive", "runs"), TransferManifest, is_named=True)
COMPARISONS = Artifact("comparisons", "compare", ("transfer",), ComparisonManifest, is_named=True)

# What makes principal components: `embed` alone makes the auto-encoder.
PCA_COMMAND = (COMPONENTS.verb, "--encoder", COMPONENTS.name)

# In the order data flows.
ARTIFACTS: tuple[Artifact[Any], ...] = (
    ARCHIVE, AUTOENCODER, COMPONENTS, EMBEDDINGS, INDEX, NEIGHBOURS, PATTERNS, CROPS, RUNS, SWEEPS, TRANSFER,
    COMPARISONS,
)  # fmt: skip
