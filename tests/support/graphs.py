"""Shards of graphs, built and written in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raygenesis.discovery.index import build_graph, publish_shard
from raygenesis.settings import IndexSettings
from raygenesis.workspace.manifest import Shard


def build_shard(
    folder: Path, vectors: np.ndarray, first: int, settings: IndexSettings, seed: int, grown: Shard | None = None
) -> Shard:
    """Write one graph over volumes numbered from `first`, or `grown` with those after its own."""
    graph = build_graph(folder, vectors, first, settings, seed, grown)
    return publish_shard(folder, first, first + (grown.count if grown else 0) + len(vectors), graph)
