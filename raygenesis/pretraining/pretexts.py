"""The pretext tasks as a table: store × corruption set × puzzle × λ (paper Table 2, Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from raygenesis.errors import SettingsError
from raygenesis.pretraining.corruption_sets import CORRUPTIONS
from raygenesis.settings import PretrainingSettings
from raygenesis.text.tables import aligned
from raygenesis.workspace.artifacts import CROPS, PATTERNS, Artifact

# Names of the parts that a loss may have.
CLASSIFICATION, RESTORATION = "classification", "restoration"
CONTRAST, CROSS_RESTORATION = "contrast", "cross_restoration"


@dataclass(frozen=True, kw_only=True)
class Pretext:
    """One pretext task.

    Attributes:
        store: Where its cubes come from: `PATTERNS`, which discovery found, or `CROPS`, cropped at random.
        corruption: Name of its corruption set, in `CORRUPTIONS`.
        lambda_rec: Weight of restoration in the loss; the network has no decoder when None.
        puzzle: What the head answers, a name in `PUZZLES`; no head when None. With a decoder it must be `label`, since
            what other puzzles show is not what is to be restored.
        lambda_cls: Weight of the puzzle in the loss; None without a puzzle.
        skips: Whether the decoder sees the encoder's finer levels, and not the bottleneck alone.
        lambda_pair: Weight of the contrast of pairs of patterns; none when None or 0. The puzzle, if any, must be
            `label`, and the store `PATTERNS`.
        lambda_cross: Weight of restoring each pattern of a pair with the other's bottleneck; as `lambda_pair`.
    """

    store: Artifact[Any]
    corruption: str = "none"
    lambda_rec: float | None = None
    puzzle: str | None = None
    lambda_cls: float | None = None
    skips: bool = True
    lambda_pair: float | None = None
    lambda_cross: float | None = None

    @property
    def weights(self) -> dict[str, float | None]:
        """Weight of each part of the joint loss; None where the task has no such part."""
        return {
            RESTORATION: self.lambda_rec, CLASSIFICATION: self.lambda_cls,
            CONTRAST: self.lambda_pair or None, CROSS_RESTORATION: self.lambda_cross or None,
        }  # fmt: skip

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that its loss has."""
        return tuple(name for name, weight in self.weights.items() if weight is not None)

    @property
    def learns_from_pairs(self) -> bool:
        return bool(self.lambda_pair or self.lambda_cross)


_RESTORATION = Pretext(store=CROPS, lambda_rec=1.0)
_SEMANTICS = Pretext(store=PATTERNS, lambda_rec=1.0, puzzle="label", lambda_cls=0.01)

WEIGHTS = ("lambda_rec", "lambda_cls", "lambda_pair", "lambda_cross")

PRETEXTS: dict[str, Pretext] = {
    "semantic-genesis": replace(_SEMANTICS, corruption="semantic-genesis-paper"),
    "models-genesis": replace(_RESTORATION, corruption="models-genesis"),
    # The control for what semantics add: what semantic-genesis learns from and undoes, without its pseudo-labels.
    "models-genesis-on-patterns": replace(_RESTORATION, store=PATTERNS, corruption="semantic-genesis-paper"),
    "self-classification": Pretext(store=PATTERNS, corruption="semantic-genesis-paper", puzzle="label", lambda_cls=1.0),
    "pattern-contrast": Pretext(store=PATTERNS, corruption="semantic-genesis-paper", lambda_pair=1.0),
    "in-painting": replace(_RESTORATION, corruption="in-painting"),
    "patch-shuffling": replace(_RESTORATION, corruption="patch-shuffling"),
    # Without skips: through them the identity is learnt at once, past the bottleneck.
    "auto-encoder": replace(_RESTORATION, skips=False),
    "mae": replace(_RESTORATION, corruption="mae"),
    "in-painting+semantics": replace(_SEMANTICS, corruption="in-painting"),
    "patch-shuffling+semantics": replace(_SEMANTICS, corruption="patch-shuffling"),
    "models-genesis+semantics": replace(_SEMANTICS, corruption="models-genesis"),
    "rubiks-cube": Pretext(store=CROPS, puzzle="rubiks-cube", lambda_cls=1.0),
    "rotation": Pretext(store=CROPS, puzzle="rotation", lambda_cls=1.0),
}


def pretext_of(settings: PretrainingSettings) -> Pretext:
    """The pretext task that the settings name, with their weights and corruption set.

    Raises:
        SettingsError: There is no such task or set, or the task has no such part, or all its weights are 0.
    """
    if settings.pretext not in PRETEXTS:
        raise SettingsError(f"pretraining.pretext={settings.pretext!r} is unknown: choose one of {', '.join(PRETEXTS)}")
    pretext = PRETEXTS[settings.pretext]
    if settings.corruption is not None and settings.corruption not in CORRUPTIONS:
        raise SettingsError(
            f"pretraining.corruption={settings.corruption!r} is unknown: choose one of {', '.join(CORRUPTIONS)}"
        )
    corruption = settings.corruption or pretext.corruption
    if CORRUPTIONS[pretext.corruption].mask_ratio and not CORRUPTIONS[corruption].mask_ratio:
        raise SettingsError(
            f"pretraining.corruption={corruption!r} masks nothing, and the pretext task {settings.pretext} "
            "learns from what is masked alone: leave it out, or choose another pretraining.pretext"
        )
    for key in WEIGHTS:
        weight = getattr(settings, key)
        if weight is not None and (lack := _lack(pretext, key)) is not None:
            raise SettingsError(
                f"pretraining.{key}={weight:g}: the pretext task {settings.pretext} {lack}; leave it out, or choose "
                f"another pretraining.pretext"
            )
        if weight is not None:
            pretext = replace(pretext, **{key: weight})
    if not any(getattr(pretext, key) for key in WEIGHTS):
        raise SettingsError(f"the weights λ of the pretext task {settings.pretext} are all 0: raise one of them")
    _check_pairs(pretext, settings)
    if settings.overlap is not None and pretext.puzzle != "label":
        raise SettingsError(
            f"pretraining.overlap={settings.overlap}: the pretext task {settings.pretext} does not name the classes of "
            "patterns; leave it out, or choose another pretraining.pretext"
        )
    return replace(pretext, corruption=corruption)


def _lack(pretext: Pretext, key: str) -> str | None:
    """What a task lacks so that its loss could have a weight of this name, in words; None where it may have it."""
    if key == "lambda_cls":
        return "classifies nothing" if pretext.lambda_cls is None else None
    if key != "lambda_rec" and pretext.store != PATTERNS:
        return "learns from random crops, which make no pairs"
    if key != "lambda_pair" and pretext.lambda_rec is None:
        return "restores nothing"
    return None


def _check_pairs(pretext: Pretext, settings: PretrainingSettings) -> None:
    """Raise SettingsError if a task that learns from pairs has no teacher, or batches that cannot be shared."""
    if pretext.lambda_pair and settings.average_decay is None:
        raise SettingsError(
            f"pretraining.lambda_pair={pretext.lambda_pair:g} contrasts the network with the moving average of its "
            "weights: give pretraining.average_decay, such as 0.996, or lower where an epoch has few steps"
        )
    least = 2 * settings.num_pieces * settings.most_workers
    if pretext.learns_from_pairs and (settings.batch_size % 2 or settings.batch_size < least):
        raise SettingsError(
            f"pretraining.batch_size={settings.batch_size}: batches of the pretext task {settings.pretext} with these "
            f"weights λ are made of pairs, and each of {settings.most_workers} worker(s) needs one for each of "
            f"{settings.num_pieces} piece(s): give an even number of at least {least}"
        )


def table() -> list[str]:
    """The pretext tasks as lines of a table with a head."""
    head = ("pretext", "learns from", "corruption", "restores", "classifies", "contrasts")
    rows = [
        (
            name, task.store.name, task.corruption, "-" if task.lambda_rec is None else f"λ {task.lambda_rec:g}",
            "-" if task.puzzle is None else f"{task.puzzle}, λ {task.lambda_cls:g}",
            f"pairs, λ {task.lambda_pair:g}" if task.lambda_pair else "-",
        )
        for name, task in PRETEXTS.items()
    ]  # fmt: skip
    return aligned([head, *rows])
