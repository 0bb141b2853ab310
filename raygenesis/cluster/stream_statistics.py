"""What the operators of a Ray Data pipeline did, as a job's record keeps it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MAX_KEPT = 100  # operators, for a job's record


@dataclass(frozen=True, kw_only=True)
class OperatorStatistics:
    """One operator of a pipeline that has ended.

    stage: what the pipeline was for; operator: Ray Data's name of it. num_tasks, num_rows, mib: what it has run and
    what came out of it. task_seconds: the sum over its tasks. working_seconds: of the pipeline's time, in which a task
    of it ran; starved_seconds: in which it had nothing to work on; held_up_seconds: in which it had, and no task of it
    ran, for want of a core, an actor or memory.
    """

    stage: str
    operator: str
    num_tasks: int
    num_rows: int
    mib: float
    task_seconds: float
    working_seconds: float
    starved_seconds: float
    held_up_seconds: float


_kept: deque[OperatorStatistics] = deque(maxlen=MAX_KEPT)


def keep_statistics(operator: OperatorStatistics) -> None:
    """Keep what an operator of one of this process's pipelines did, for the job's record."""
    _kept.append(operator)


def kept_statistics() -> list[OperatorStatistics]:
    """What the operators of this process's pipelines did, the oldest first."""
    return list(_kept)
