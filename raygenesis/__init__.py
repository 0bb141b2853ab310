"""raygenesis: self-supervised pretraining of medical-image encoders by Semantic Genesis, on Ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raygenesis import _ray_environment as _ray_environment  # before anything imports ray
from raygenesis._version import __version__

if TYPE_CHECKING:
    from raygenesis.archive.source import read_archive, voxels_of
    from raygenesis.discovery.retrieval import embed_scan, similar_scans
    from raygenesis.networks.weights.loading import load_encoder, load_network, load_unet
    from raygenesis.patterns.dataset import PatternDataset

__all__ = [
    "PatternDataset", "__version__", "embed_scan", "load_encoder", "load_network", "load_unet", "read_archive",
    "similar_scans", "voxels_of",
]  # fmt: skip

_MODULES = {
    "PatternDataset": "raygenesis.patterns.dataset",
    "embed_scan": "raygenesis.discovery.retrieval",
    "load_encoder": "raygenesis.networks.weights.loading",
    "load_network": "raygenesis.networks.weights.loading",
    "load_unet": "raygenesis.networks.weights.loading",
    "read_archive": "raygenesis.archive.source",
    "similar_scans": "raygenesis.discovery.retrieval",
    "voxels_of": "raygenesis.archive.source",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: Ray's workers that decode scans need not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
