"""What points are ranked by. None depends on λ, K or C; the one that does is refused where they vary."""

from __future__ import annotations

from dataclasses import dataclass

from raygenesis.errors import SettingsError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import VALIDATION
from raygenesis.sweeps.space import Space
from raygenesis.workspace.files import Place

MIN_HELD_OUT = 2

# What the joint loss is made of: its parts' weights, the number of classes, and the task itself.
LOSS_DEPENDS_ON = {
    "lambda_cls": "λ weighs its parts",
    "lambda_rec": "λ weighs its parts",
    "overlap": "soft targets and classes that are left out have another least loss",
    "num_coordinates": "C is the number of classes",
    "pretext": "each pretext task has a loss of its own",
    "corruption": "what is to be restored is harder or easier",
}


@dataclass(frozen=True)
class Objective:
    """mode: `max` or `min`; words: what it is; proxy: the measure that stops trials early."""

    name: str
    mode: str
    words: str
    proxy: str


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective(
            "retrieval", "max", "finding the same place in other held-out scans (mean average precision)", "retrieval"
        ),
        Objective("rankme", "max", "the effective rank of held-out patterns' embeddings (RankMe)", "rankme"),
        # Fine-tuning after every epoch would cost more than the training that it could save.
        Objective(
            "target",
            "max",
            "the target task learnt from few labels (its own figure, a mean over trials; errors count negative)",
            "retrieval",
        ),
        Objective("loss", "min", "the held-out joint loss", "loss"),
    )
}


def check_objective(name: str, space: Space, patterns: Place) -> None:
    """Raise SettingsError if the points of this space cannot be compared by the objective."""
    if name == "loss":
        for key, reason in LOSS_DEPENDS_ON.items():
            if key in space.varied:
                raise SettingsError(
                    f"sweep.objective=loss cannot rank points of different pretraining.{key}: {reason}, so the lowest "
                    "loss is not the best encoder's; choose sweep.objective=retrieval, rankme or target"
                )
    scans = set(read_patterns(patterns, ["volume_id"], predicate(VALIDATION))["volume_id"].to_pylist())
    if OBJECTIVES[name].proxy == "retrieval" and len(scans) < MIN_HELD_OUT:
        raise SettingsError(
            f"sweep.objective={name} compares held-out scans and {patterns} holds patterns of {len(scans)}: discover "
            f"with discovery.num_validation_neighbours={MIN_HELD_OUT} or more, or choose sweep.objective=rankme"
        )
