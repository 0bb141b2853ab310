"""What `precision=auto` is in an artifact, which keeps the precision that it was begun with."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch

from raygenesis.cluster import capacity, joining
from raygenesis.settings import Settings
from raygenesis.training.precision import AUTO, resolved
from raygenesis.workspace.manifest import Tree


def with_precision(
    settings: Settings, section: Literal["autoencoder", "pretraining", "finetune"], device: str, begun: Tree | None
) -> Settings:
    """The settings, with the precision of a section that is `auto` as it is to be computed in, and recorded.

    What was made or begun goes on in its precision, on whatever machine. What is new takes the fastest of the device:
    of a CPU that of this process; of a GPU, where this process has none, that of one in the cluster.

    Args:
        settings: All settings.
        section: The section whose `precision` is meant.
        device: `cpu` or `cuda`.
        begun: Settings that made or began the artifact (`settings_of`); None where there is nothing yet.

    Raises:
        SettingsError: The cluster has no GPU.
    """
    chosen = getattr(settings, section)
    if chosen.precision != AUTO:
        return settings
    if begun is not None:
        precision = begun.get(section, {}).get("precision", "fp32")  # before there was such a setting
    elif device == "cuda" and not torch.cuda.is_available():
        joining.connect()
        wanted = f"{section}.use_gpu=true" if getattr(chosen, "use_gpu", False) else "a GPU"
        key = f"{section}.precision=auto with {wanted}"
        precision = capacity.on_gpu(key, partial(resolved, AUTO, device))
    else:
        precision = resolved(AUTO, device)
    return settings.model_copy(update={section: chosen.model_copy(update={"precision": precision})})
