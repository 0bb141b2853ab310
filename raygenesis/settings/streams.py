"""The named streams of random numbers: every place of the package that seeds a NumPy generator, in one table.

A stream's numbers depend on the seed of the settings, the stream and the stable numbers given to it (a reference's, a
trial's), and on nothing else: not on workers, order or global state. A stream keeps its words for good, since what was
drawn from it is on disk; a new stream takes a prefix that no other has.

What is random but not drawn by NumPy follows from the same seed:

- First weights of a network: `torch.manual_seed(seed)` in a forked generator (`discovery/autoencoder_training.py`,
  `pretraining/task.py`, `transfer/initialisations.py`).
- Corruptions and puzzles: hashes of seed, epoch, sample and a tag (`pretraining/draws.py`).
- Which subjects are held out, and the order of random crops' scans: hashes of seed and id (`archive/catalogue.py`).
- What a TPE search proposes: Optuna's sampler, of the seed itself (`sweeps/search.py`).
- Levels of the nodes of an HNSW graph: the seed itself (`discovery/index.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stream:
    """One stream.

    draws: what is drawn from it. prefix: words of its spawn key that tell it from other streams. numbers: what the
    numbers that follow the prefix mean, one name each. extends_seed: these numbers stand behind the seed as entropy,
    and not in the spawn key.
    """

    draws: str
    prefix: tuple[int, ...] = ()
    numbers: tuple[str, ...] = ()
    extends_seed: bool = False

    def sequence(self, seed: int, *numbers: int) -> np.random.SeedSequence:
        """The seed sequence of the stream for a seed of the settings and the numbers that `numbers` names."""
        if len(numbers) != len(self.numbers):
            raise ValueError(f"the stream of {self.draws} needs {len(self.numbers)} numbers, not {len(numbers)}")
        if self.extends_seed:
            return np.random.SeedSequence([seed, *numbers], spawn_key=self.prefix)
        return np.random.SeedSequence(seed, spawn_key=(*self.prefix, *numbers))

    def generator(self, seed: int, *numbers: int) -> np.random.Generator:
        """A generator at the beginning of the stream; arguments as for `sequence`."""
        return np.random.default_rng(self.sequence(seed, *numbers))


# Discovery.
REFERENCES = Stream("reference patients (discovery/references.py)", (1,))
COORDINATES = Stream("a reference's first coordinate (discovery/references.py)", (2,), ("reference",))
RECALL_QUERIES = Stream("scans that the recall of graphs is measured on (discovery/neighbours.py)", (3,))
TYPICAL_DISTANCE = Stream("patients whose distance is typical (discovery/neighbours.py)", (5,))
USUAL_SCANS = Stream("scans whose likeness to their nearest is usual (discovery/scan_facts.py)", (13,))
RANDOM_PATIENTS = Stream(
    "patients that neighbours are compared with (discovery/quality_sample.py)", (6,), ("reference",)
)
RANDOM_CROPS = Stream("a scan's random crops (discovery/pattern_boxes.py)", (8,), ("volume",))
# Three words and no prefix: no other stream of a run has as many.
PATTERNS = Stream("jitter of a visit's patterns (discovery/pattern_boxes.py)", (), ("reference", "rank", "is_held_out"))
ENCODER_SCANS = Stream("scans that an encoder learns from (discovery/encoders.py)", (), ("num_scans",), True)

# Training, pretraining and its sweeps.
EPOCH_ORDER = Stream("order of an epoch's samples, by Philox (training/order.py)", (), ("epoch",), True)
PAIRS = Stream("pairs of an epoch's patterns (pretraining/pairs.py)", (11,), ("epoch",))
MEASURED_PATTERNS = Stream("patterns that a finished pretraining is measured on (pretraining/closing.py)", (14,))
SHUFFLE_BANK = Stream("replays of the local shuffling, of seed 0 (pretraining/corruption_steps.py)")
SWEEP_SEEDS = Stream("seeds of a sweep's further trainings (sweeps/trial.py)")

# Transfer: each draws from the seed of its own call.
TEST_SUBJECTS = Stream("subjects to test and to validate on (transfer/split.py)")
TRIAL_SUBJECTS = Stream("order of a trial's subjects, and its seed (transfer/split.py)", (), ("trial",), True)
TUNING_SUBJECTS = Stream("order of a tuning trial's subjects, and its seed (transfer/split.py)", (12,), ("trial",))
PROBED_VOXELS = Stream("voxels that a dense probe is fitted to (transfer/dense_probe.py)", (21,))
LABELLED_BATCHES = Stream("batches of a trial's training (transfer/learning.py)")
RESAMPLES = Stream("resamples of a paired test (transfer/statistics.py)")
NEGATIVES = Stream("candidates that are no nodules (transfer/targets/luna16.py)", (), ("scan",))

# The report and the demonstration's population.
MAPPED_SCANS = Stream("scans on the map of embeddings (report/neighbours.py)")
POPULATION_MODES = Stream("what a population varies by (demo/population.py)")
POPULATION_SUBJECTS = Stream("a subject's anatomy, scan and noise (demo/population.py)", (), ("subject", "purpose"))
