"""The pretext tasks as a table: store × corruption set × puzzle × λ (paper Table 2, Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from raygenesis.errors import SettingsError
from raygenesis.pretraining.corruption_sets import CORRUPTIONS
from raygenesis.settings import PretrainingSettings
from raygenesis.text.tables import aligned
from raygenesis.workspace.artifacts import CROPS, PATTERNS, Artifact


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
    """

    store: Artifact[Any]
    corruption: str = "none"
    lambda_rec: float | None = None
    puzzle: str | None = None
    lambda_cls: float | None = None
    skips: bool = True


_RESTORATION = Pretext(store=CROPS, lambda_rec=1.0)
_SEMANTICS = Pretext(store=PATTERNS, lambda_rec=1.0, puzzle="label", lambda_cls=0.01)

PRETEXTS: dict[str, Pretext] = {
    "semantic-genesis": replace(_SEMANTICS, corruption="semantic-genesis-paper"),
    "models-genesis": replace(_RESTORATION, corruption="models-genesis"),
    # The control for what semantics add: what semantic-genesis learns from and undoes, without its pseudo-labels.
    "models-genesis-on-patterns": replace(_RESTORATION, store=PATTERNS, corruption="semantic-genesis-paper"),
    "self-classification": Pretext(store=PATTERNS, corruption="semantic-genesis-paper", puzzle="label", lambda_cls=1.0),
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
    for key, part in (("lambda_rec", "restores nothing"), ("lambda_cls", "classifies nothing")):
        weight = getattr(settings, key)
        if weight is not None and getattr(pretext, key) is None:
            raise SettingsError(
                f"pretraining.{key}={weight:g}: the pretext task {settings.pretext} {part}; leave it out, or choose "
                f"another pretraining.pretext"
            )
        if weight is not None:
            pretext = replace(pretext, **{key: weight})
    if not (pretext.lambda_rec or pretext.lambda_cls):
        raise SettingsError(f"the weights λ of the pretext task {settings.pretext} are all 0: raise one of them")
    return replace(pretext, corruption=corruption)


def table() -> list[str]:
    """The pretext tasks as lines of a table with a head."""
    head = ("pretext", "learns from", "corruption", "restores", "classifies")
    rows = [
        (
            name, task.store.name, task.corruption, "-" if task.lambda_rec is None else f"λ {task.lambda_rec:g}",
            "-" if task.puzzle is None else f"{task.puzzle}, λ {task.lambda_cls:g}",
        )
        for name, task in PRETEXTS.items()
    ]  # fmt: skip
    return aligned([head, *rows])
