"""Cases in Ray's object store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import ray

from raygenesis.transfer.cases import Case, TrialCases
from raygenesis.transfer.examples import Example


@dataclass(frozen=True)
class StoredCases:
    """Blocks of cases in Ray's object store, and where each case is, (block, place), by its name."""

    blocks: tuple[ray.ObjectRef[list[Case]], ...] = ()
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def select(self, examples: Sequence[Example]) -> StoredCases:
        """The cases of these examples, in their order, with only the blocks that hold them."""
        places = {example.name: self.places[example.name] for example in examples}
        needed = sorted({block for block, _ in places.values()})
        numbers = {block: number for number, block in enumerate(needed)}
        moved = {name: (numbers[block], place) for name, (block, place) in places.items()}
        return StoredCases(tuple(self.blocks[block] for block in needed), moved)

    def read(self) -> list[Case]:
        """The cases in order; their arrays are shared and read-only."""
        blocks = ray.get(list(self.blocks))
        return [blocks[block][place] for block, place in self.places.values()]


@dataclass(frozen=True)
class StoredTrialCases:
    """The cases that a trial learns from, validates on and tests on."""

    labelled: StoredCases
    validation: StoredCases
    test: StoredCases

    def read(self) -> TrialCases:
        return TrialCases(self.labelled.read(), self.validation.read(), self.test.read())
