"""What larger archives cost: rates of the stages that were run, and what each of them grows with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raygenesis.archive.cells import DTYPE
from raygenesis.config import Settings
from raygenesis.report.rates import Measured, measured
from raygenesis.report.sections import Made
from raygenesis.settings import load_settings
from raygenesis.workspace import Workspace

SCANS = (10**4, 10**5, 10**6)
NUMBER_BYTES = 4  # float32


@dataclass(frozen=True)
class Cost:
    """Seconds that a stage takes, bytes that it leaves behind, and bytes of data that it holds in memory at once."""

    seconds: float
    stored: float
    memory: float


def cost(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> dict[str, Any]:
    """Costs of the stages for this archive and larger ones, and with as many patterns as the paper's."""
    run = measured(workspace, settings, made)
    own = run.manifests["archive"]["counts"]["volumes"]
    scans, paper = (own, *SCANS), load_settings(f"paper-{settings.ndim}d")
    rows = [{"stage": stage, "grows": grows, "costs": costs(run, stage, scans)} for stage, (_, grows) in STAGES.items()]
    for row in rows:
        stage = row["stage"]
        artifact = made.get(stage) or next(made[name] for name in reversed(made) if name.startswith(stage))
        row["verb"] = " ".join(artifact.command.split()[:2])
        if row["costs"][0]:
            row["costs"][0] = replace(row["costs"][0], stored=run.manifests[stage]["bytes"])
    asked = with_patterns_of(run, paper)
    return {
        "scans": scans, "rows": rows, "total": total([row["costs"] for row in rows]), "measured": run,
        "paper": paper, "paper_patterns": num_patterns(paper),
        "paper_rows": [{"stage": stage, "costs": costs(asked, stage, scans)} for stage in ("patterns", "runs")],
        "num_cpus": os.cpu_count(),
    }  # fmt: skip


def costs(run: Measured, stage: str, scans: Sequence[int]) -> list[Cost | None]:
    """The cost of a stage for each number of scans; None where nothing tells it."""
    price, _ = STAGES[stage]
    return [price(run, number) if stage in run.manifests else None for number in scans]


def total(rows: Sequence[Sequence[Cost | None]]) -> list[Cost | None]:
    """Of each column, time and storage summed and the most memory; None where a stage's cost is not known."""
    return [
        Cost(sum(c.seconds for c in column), sum(c.stored for c in column), max(c.memory for c in column))
        if all(column) else None
        for column in zip(*rows, strict=True)
    ]  # fmt: skip


def ingest(run: Measured, num_scans: int) -> Cost | None:
    """By the scans that the last call took in; None if it knew them all."""
    made = run.manifests["archive"]
    counts = made["counts"]
    taken_in = counts["volumes"] * (1 - counts.get("known", 0) / counts["scans"])
    if not taken_in:
        return None
    memory = num_scans * run.row_bytes + run.num_tasks * run.scan_bytes
    return Cost(made["seconds"] / taken_in * num_scans, made["bytes"] / counts["volumes"] * num_scans, memory)


def train_autoencoder(run: Measured, num_scans: int) -> Cost:
    """By training scans, of which no more than `max_volumes` are used."""
    made = run.manifests["autoencoder"]
    counts, most = made["counts"], made["settings"]["autoencoder"]["max_volumes"]
    there = counts["training"] + counts["validation"]
    used = {split: min(num_scans * counts[split] / there, most) for split in ("training", "validation")}
    seconds = run.trained_seconds("autoencoder") * used["training"] / min(counts["training"], most)
    coarse = sum(used.values()) * run.input_voxels * DTYPE.itemsize
    return Cost(seconds, made["bytes"], num_scans * run.table_bytes + coarse)


def embed(run: Measured, num_scans: int) -> Cost | None:
    """By the scans that the last call embedded; None if there were none."""
    made = run.manifests["embeddings"]
    counts = made["counts"]
    embedded = counts.get("new", counts["volumes"])
    if not embedded:
        return None
    at_once = min(num_scans, run.num_tasks * made["settings"]["embedding"]["volumes_per_part"])
    memory = num_scans * run.table_bytes + at_once * run.input_voxels * NUMBER_BYTES
    return Cost(made["seconds"] / embedded * num_scans, num_scans * run.latent_size * NUMBER_BYTES, memory)


def index(run: Measured, num_scans: int) -> Cost | None:
    """By the scans that the last call indexed; None if there were none."""
    made = run.manifests["index"]
    counts = made["counts"]
    indexed = counts["volumes"] - counts.get("indexed_before", 0)
    if made.get("method") == "exact":
        return Cost(0, 0, 0)
    if not indexed:
        return None
    stored = made["bytes"] / counts["volumes"]
    at_once = min(num_scans, run.num_tasks * made["settings"]["index"]["volumes_per_shard"])
    memory = num_scans * run.table_bytes + at_once * max(stored, run.latent_size * NUMBER_BYTES)
    return Cost(made["seconds"] / indexed * num_scans, stored * num_scans, memory)


def discover(run: Measured, num_scans: int) -> Cost | None:
    """The same however many scans there are, if there are as many as it takes."""
    made = run.manifests["patterns"]
    chosen, patterns = made["settings"]["discovery"], made["counts"]["patterns"]
    if not patterns or num_scans < chosen["num_neighbours"] + chosen["num_validation_neighbours"]:
        return None
    at_once = min(patterns, run.num_tasks * chosen["patterns_per_part"])
    memory = num_scans * run.table_bytes + at_once * made["raw_bytes"] / patterns
    return Cost(made["seconds"], made["bytes"], memory)


def pretrain(run: Measured, num_scans: int) -> Cost | None:
    """The same however many scans there are; all patterns are held, encoded."""
    if discover(run, num_scans) is None:
        return None
    return Cost(run.trained_seconds("runs"), run.manifests["runs"]["bytes"], run.manifests["patterns"]["bytes"])


# What makes each artifact's cost, and what it grows with.
STAGES = {
    "archive": (ingest, "scans"),
    "autoencoder": (train_autoencoder, "training scans, up to a limit"),
    "embeddings": (embed, "scans"),
    "index": (index, "scans"),
    "patterns": (discover, "patterns, not scans"),
    "runs": (pretrain, "patterns × epochs, not scans"),
}


def num_patterns(settings: Settings, *, held_out: bool = True) -> int:
    """R × (K + held-out K) × C × scales, or those that are learnt from."""
    chosen = settings.discovery
    patients = chosen.num_neighbours + held_out * chosen.num_validation_neighbours
    return chosen.num_references * patients * chosen.num_coordinates * len(chosen.scales)


def with_patterns_of(run: Measured, settings: Settings) -> Measured:
    """As if other patterns had been made: time and bytes go by their voxels; network and epochs stay."""
    manifests, epoch_seconds = dict(run.manifests), dict(run.epoch_seconds)
    patterns = manifests.get("patterns")
    if not patterns or not patterns["counts"]["patterns"]:
        return replace(run, manifests={})
    larger = math.prod(settings.discovery.cube_shape) / math.prod(patterns["cube_shape"])
    count = num_patterns(settings)
    more = count / patterns["counts"]["patterns"] * larger
    manifests["patterns"] = patterns | {
        **{key: patterns[key] * more for key in ("seconds", "bytes", "raw_bytes")},
        "counts": patterns["counts"] | {"patterns": count},
        "settings": {"discovery": settings.discovery.model_dump()},
    }
    if "runs" in manifests:
        trained = manifests["runs"]
        more = num_patterns(settings, held_out=False) / trained["counts"]["patterns"] * larger
        manifests["runs"] = trained | {"seconds": trained["seconds"] * more}
        epoch_seconds["runs"] *= more
    return replace(run, manifests=manifests, epoch_seconds=epoch_seconds)
