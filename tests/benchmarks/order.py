"""Learning curves in the order that is read once an epoch, against those of a full permutation, over seeds.

`python -m tests.benchmarks.order STORE [epochs]`, of a pattern store such as `WORKSPACE/patterns`. Semantic Genesis of
`cpu-small`, both tasks from the first epoch on; through a window of a tenth of the store's row groups, and of all. What
is finished is kept in STORE/../order-benchmark.json, and a call that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raygenesis.patterns.reader import store_manifest
from raygenesis.patterns.schema import ROWS_PER_GROUP, TRAINING, VALIDATION
from raygenesis.pretraining.stores import pretext_task
from raygenesis.settings import load_settings
from raygenesis.training.file_samples import StoredPatterns
from raygenesis.training.loop import run_epochs

SEEDS, SHARE = 4, 0.1
FIGURES = ("val_loss", "val_classification", "val_restoration", "val_accuracy")


def main(folder: Path, num_epochs: int) -> None:
    manifest = store_manifest(folder)
    groups = (manifest.counts.patterns - manifest.counts.validation) // ROWS_PER_GROUP
    kept = folder.parent / "order-benchmark.json"
    found: dict[str, list[dict[str, float]]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for seed in range(SEEDS):
        for name, window in (("permutation", groups + 1), ("window", max(round(SHARE * groups), 1))):
            key = f"{name} {window} {num_epochs} {seed}"
            if key not in found:
                found[key] = learning_curve(folder, num_epochs, seed, window)
                kept.write_text(json.dumps(found))
    print(f"{groups} row groups, {num_epochs} epochs, {SEEDS} seeds: mean ± s.d. over seeds of the held-out figures")
    for epoch in range(num_epochs):
        for figure in FIGURES:
            both = [
                np.array([rows[epoch][figure] for key, rows in found.items() if key.startswith(name)])
                for name in ("permutation", "window")
            ]
            words = (f"{one.mean():.4f} ± {one.std(ddof=1):.4f}" for one in both)
            print(f"epoch {epoch + 1} {figure[4:]:16} permutation {next(words)}   window {next(words)}")


def learning_curve(
    folder: Path, num_epochs: int, seed: int, window: int | None = None, given: Sequence[str] = ()
) -> list[dict[str, float]]:
    """Held-out figures after each epoch of Semantic Genesis by `cpu-small`, both tasks at once, and other settings."""
    epochs = ["pretraining.num_classification_epochs=0", f"pretraining.num_joint_epochs={num_epochs}"]
    settings = load_settings("cpu-small", [*epochs, "pretraining.lambda_cls=1", *given]).pretraining
    task = pretext_task(settings, seed, store_manifest(folder))
    train, validation = (
        StoredPatterns(folder, split, memory_gib=4, window=window).open(task.sample_key, task.sample_shape)
        for split in (TRAINING, VALIDATION)
    )
    history = run_epochs(task, train, validation).history
    return [{name: float(row[name]) for name in FIGURES} for row in history]  # type: ignore[literal-required]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4)
