"""What larger batches cost: held-out figures after as many epochs, with the learning rate scaled by the batch and not.

`python -m tests.benchmarks.batch_size STORE [epochs]`, of a pattern store such as `WORKSPACE/patterns`. Semantic
Genesis of `cpu-small`, both tasks from the first epoch on, whose learning rate is meant for batches of 16. What is
finished is kept in STORE/../batch-benchmark.json, and a call that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from raygenesis.training.experiment import TrainingError
from tests.benchmarks.order import FIGURES, learning_curve

BATCHES, CHOSEN_FOR = (16, 32, 64, 128, 256), 16


def main(folder: Path, num_epochs: int) -> None:
    kept = folder.parent / "batch-benchmark.json"
    found: dict[str, dict[str, float] | None] = json.loads(kept.read_text()) if kept.is_file() else {}
    print(f"after {num_epochs} epochs; learning rate for batches of {CHOSEN_FOR}, 1 epoch of warm-up, 1 seed")
    for batch_size in BATCHES:
        for is_scaled in (False, True):
            if is_scaled and batch_size == CHOSEN_FOR:
                continue
            key = f"{batch_size} {is_scaled} {num_epochs}"
            if key not in found:
                found[key] = _last_figures(folder, num_epochs, batch_size, is_scaled)
                kept.write_text(json.dumps(found))
            figures = found[key]
            words = ", ".join(f"{name[4:]} {figures[name]:.4f}" for name in FIGURES) if figures else "the loss diverged"
            print(f"batch {batch_size:3}, rate {'scaled' if is_scaled else 'as it is':8}: {words}", flush=True)


def _last_figures(folder: Path, num_epochs: int, batch_size: int, is_scaled: bool) -> dict[str, float] | None:
    given = [f"pretraining.batch_size={batch_size}", "pretraining.warmup_epochs=1"]
    if is_scaled:
        given.append(f"pretraining.scale_learning_rate={CHOSEN_FOR}")
    try:
        return learning_curve(folder, num_epochs, 0, given=given)[-1]
    except TrainingError:
        return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6)
