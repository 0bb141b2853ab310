"""The smallest pretraining: settings of 2D cubes and narrow networks, and cubes from which something can be learnt."""

from __future__ import annotations

from typing import Any

import numpy as np

from raygenesis.settings import Settings, settings_from

SHAPE = (32, 32)


def ramp(row: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Rising along another axis at another place, with some noise."""
    noise = np.random.default_rng(row["pattern_id"]).random(shape)
    rising = np.indices(shape)[row["coordinate"] % 2] / shape[0]
    return (0.8 * rising + 0.2 * noise).astype(np.float32)


def settings_of(**pretraining: Any) -> Settings:
    schedule = {"base_width": 2, "batch_size": 8, "num_classification_epochs": 2, "num_joint_epochs": 4}
    discovery = {"cube_shape": SHAPE, "scales": [{"extent_mm": SHAPE}], "num_coordinates": 2, "num_neighbours": 12}
    tree = {"discovery": discovery, "autoencoder": {"input_shape": SHAPE}, "pretraining": {**schedule, **pretraining}}
    return settings_from(tree)
