"""Reading patterns: K, C, scales and the split are predicates that leave out row groups, and with them whole parts."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from raygenesis.errors import WorkspaceError
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import part_path
from raygenesis.workspace.artifacts import CROPS, PATTERNS, Artifact
from raygenesis.workspace.files import Place, parquet_dataset, store_fault
from raygenesis.workspace.manifest import PatternsManifest, StoreManifest

# What training needs of a row.
TRAINING_COLUMNS = ("pattern_id", "label", "reference", "coordinate", "rank", "scale", "volume_id", "cube")

# A row of the table of artifacts that is a store of patterns.
StoreArtifact = Artifact[PatternsManifest] | Artifact[StoreManifest]
STORES: dict[str, StoreArtifact] = {CROPS.name: CROPS, PATTERNS.name: PATTERNS}  # by the names of their folders


def verb_of(folder: Place) -> str:
    """The verb that makes the store in a folder, wherever that is."""
    return STORES.get(folder.name, PATTERNS).verb


def store_manifest(folder: Place) -> StoreManifest:
    """The manifest of a finished store. Raises WorkspaceError naming the verb that makes it when absent."""
    return STORES.get(folder.name, PATTERNS).require(folder)


def predicate(
    split: str | None = None,
    num_neighbours: int | None = None,
    num_coordinates: int | None = None,
    scales: Sequence[int] | None = None,
) -> pc.Expression | None:
    """The rows of a split, of K neighbours (training only), of C coordinates and of some scales; None is all.

    Ranks and coordinates lie together and spare reading; scales alternate from row to row, and spare hardly any.
    """
    terms = []
    if split is not None:
        terms.append(pc.field("split") == split)
    if num_neighbours is not None and split != VALIDATION:
        within = pc.field("rank") < num_neighbours
        terms.append(within if split == TRAINING else within | (pc.field("split") == VALIDATION))
    if num_coordinates is not None:
        terms.append(pc.field("coordinate") < num_coordinates)
    if scales is not None:
        terms.append(pc.field("scale").isin(pa.array(scales, pa.int8())))
    return functools.reduce(operator.and_, terms) if terms else None


def read_patterns(
    folder: Place, columns: Sequence[str] = PATTERN.names, where: pc.Expression | None = None
) -> pa.Table:
    """Rows of a finished store, in its order, with the columns and predicate asked for.

    Of parts and row groups that the predicate rules out nothing is read but a part's footer. Raises WorkspaceError if
    a part is missing or damaged.
    """
    paths = part_paths(folder)
    try:
        return parquet_dataset(paths, PATTERN).to_table(columns=list(columns), filter=where)
    except (pa.ArrowInvalid, OSError) as error:
        for path in paths:
            row_groups(path)  # names the part, where its footer shows the damage
        if isinstance(error, OSError):
            raise store_fault(folder, error) or WorkspaceError(
                f"{folder} is damaged ({str(error).splitlines()[0]}): {verify_command(folder)} names the part"
            ) from None
        raise


def row_groups(path: Place, where: pc.Expression | None = None) -> list[ds.RowGroupInfo]:
    """The row groups of a part whose statistics do not rule the predicate out. Raises WorkspaceError if damaged."""
    try:
        (fragment,) = parquet_dataset([path], PATTERN).get_fragments()
        return list((fragment if where is None else fragment.subset(where)).row_groups)
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(path, error) from None


def verify_command(folder: Place) -> str:
    """The command that reads a store again and names what is damaged, as sentences quote it."""
    return f"`raygenesis patterns verify{' --store crops' * (folder.name == 'crops')}`"


def damaged(path: Place, error: Exception) -> WorkspaceError:
    """The error to raise for a part that cannot be read, with its remedy."""
    if (fault := store_fault(path, error)) is not None:
        return fault
    manifest, verb = path.parent / "manifest.json", verb_of(path.parent)
    if not path.is_file():
        return WorkspaceError(f"{path} is missing: remove {manifest}, then run `raygenesis {verb}`")
    return WorkspaceError(
        f"{path} is damaged ({str(error).splitlines()[0]}): remove it and {manifest}, then run `raygenesis {verb}`"
    )


def part_paths(folder: Place) -> list[Place]:
    """The parts of a finished store, in order."""
    num_parts = store_manifest(folder).counts.parts
    return [part_path(folder, part) for part in range(num_parts)]
