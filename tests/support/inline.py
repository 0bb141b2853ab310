"""Pipelines and tasks in this process, without Ray: what stages write, and not how it is spread."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray

from raygenesis.cluster import fan_out, joining, streams
from raygenesis.cluster.streams import PartSource, StreamProgress

HERE = {
    "Alive": True, "NodeID": "here", "NodeManagerAddress": "127.0.0.1",
    "Resources": {"CPU": 1.0, "memory": float(2**33)},
}  # fmt: skip


@dataclass(frozen=True)
class InlineDataset:
    """Blocks that are made one after the other when they are asked for."""

    blocks: tuple[Callable[[], pa.Table], ...]

    def map_batches(self, function: Callable[[pa.Table], pa.Table], **options: Any) -> InlineDataset:
        return InlineDataset(tuple(lambda block=block: function(block()) for block in self.blocks))


def read_parts(source: PartSource) -> InlineDataset:
    return InlineDataset(tuple(part.read for part in source._parts))


def write_parts(
    rows: InlineDataset, publish: Callable[[pa.Table], Any], shown: StreamProgress, after_actors: bool = False
) -> list[Any]:
    made = (block() for block in rows.blocks)
    return [publish(block) for block in made if block.num_rows]


def each(function: Callable[..., Any], items: Iterable[Any], *shared: Any, **options: Any) -> Iterator[Any]:
    return (function(item, *shared) for item in items)


def run_inline(patch: pytest.MonkeyPatch) -> None:
    """Have all stages that are imported run their pipelines and tasks in this process; no Ray is started."""
    patch.setattr(ray, "nodes", lambda: [HERE])
    patch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    patch.setattr(joining, "connect", lambda: None)
    patch.setattr(fan_out, "each", each)
    originals = {"read_parts": streams.read_parts, "write_parts": streams.write_parts}
    for name, replacement in (("read_parts", read_parts), ("write_parts", write_parts)):
        for module in [module for key, module in sys.modules.items() if key.startswith("raygenesis.")]:
            if getattr(module, name, None) is originals[name]:
                patch.setattr(module, name, replacement)
