"""The pretext tasks as a table: corruption set × crops × heads × λ (METHOD: other pretext tasks; paper Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raygenesis.errors import SettingsError
from raygenesis.pretraining.corruptions import CORRUPTIONS
from raygenesis.settings import PretrainingSettings
from raygenesis.text.tables import aligned

# Where cubes come from: the discovered patterns, or random crops.
PATTERNS, CROPS = "patterns", "crops"


@dataclass(frozen=True, kw_only=True)
class Pretext:
    """One pretext task. A λ is the weight of its part of the loss; None where the network has no such part.

    puzzle: what the head answers, a name of `puzzles.PUZZLES`; with a decoder beside it, only `label`, for what other
    puzzles show is not what is to be restored.
    """

    crops: str
    corruption: str = "none"
    lambda_rec: float | None = None
    puzzle: str | None = None
    lambda_cls: float | None = None


_RESTORATION = Pretext(crops=CROPS, lambda_rec=1.0)
_SEMANTICS = Pretext(crops=PATTERNS, lambda_rec=1.0, puzzle="label", lambda_cls=0.01)

PRETEXTS: dict[str, Pretext] = {
    "semantic-genesis": replace(_SEMANTICS, corruption="semantic-genesis-paper"),
    "models-genesis": replace(_RESTORATION, corruption="models-genesis"),
    "self-classification": Pretext(crops=PATTERNS, corruption="semantic-genesis-paper", puzzle="label", lambda_cls=1.0),
    "in-painting": replace(_RESTORATION, corruption="in-painting"),
    "patch-shuffling": replace(_RESTORATION, corruption="patch-shuffling"),
    "auto-encoder": _RESTORATION,
    "in-painting+semantics": replace(_SEMANTICS, corruption="in-painting"),
    "patch-shuffling+semantics": replace(_SEMANTICS, corruption="patch-shuffling"),
    "models-genesis+semantics": replace(_SEMANTICS, corruption="models-genesis"),
    "rubiks-cube": Pretext(crops=CROPS, puzzle="rubiks-cube", lambda_cls=1.0),
    "rotation": Pretext(crops=CROPS, puzzle="rotation", lambda_cls=1.0),
}


def pretext_of(settings: PretrainingSettings) -> Pretext:
    """The pretext task that the settings name, with what they change in it. Raises SettingsError where they cannot."""
    if settings.pretext not in PRETEXTS:
        raise SettingsError(f"pretraining.pretext={settings.pretext!r} is unknown: choose one of {', '.join(PRETEXTS)}")
    pretext = PRETEXTS[settings.pretext]
    if settings.corruption is not None and settings.corruption not in CORRUPTIONS:
        raise SettingsError(
            f"pretraining.corruption={settings.corruption!r} is unknown: choose one of {', '.join(CORRUPTIONS)}"
        )
    for key, part in (("lambda_rec", "restores nothing"), ("lambda_cls", "classifies nothing")):
        asked = getattr(settings, key)
        if asked is not None and getattr(pretext, key) is None:
            raise SettingsError(
                f"pretraining.{key}={asked:g}: the pretext task {settings.pretext} {part}; leave it out, or choose "
                f"another pretraining.pretext"
            )
        if asked is not None:
            pretext = replace(pretext, **{key: asked})
    if not (pretext.lambda_rec or pretext.lambda_cls):
        raise SettingsError(f"the weights λ of the pretext task {settings.pretext} are all 0: raise one of them")
    return replace(pretext, corruption=settings.corruption or pretext.corruption)


def table() -> list[str]:
    """A line a pretext task."""
    head = ("pretext", "learns from", "corruption", "restores", "classifies")
    rows = [
        (
            name, task.crops, task.corruption, "-" if task.lambda_rec is None else f"λ {task.lambda_rec:g}",
            "-" if task.puzzle is None else f"{task.puzzle}, λ {task.lambda_cls:g}",
        )
        for name, task in PRETEXTS.items()
    ]  # fmt: skip
    return aligned([head, *rows])
