"""Failures of a stage in a row, and what follows from them: another try, after a wait, or none."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from cluster.gang import GangError
from cluster.gang_failure import MachineLost

BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 300.0
"""Wait before the first retry of a stage. It doubles with every further one, until the stage gets on again."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an attempt failed, and how far the stage had come."""

    message: str
    machine: bool
    """Whether a machine did it (a process died, a connection broke), as far as one can tell."""
    update: int

    @classmethod
    def of(cls, error: Exception, update: int, faults: list[str]) -> Failure:
        """From what an attempt raised; what the ranks themselves found, before they ended, says more."""
        machine = isinstance(error, OSError) or (isinstance(error, GangError) and error.died)
        if not isinstance(error, GangError):
            traceback.print_exception(error)
        message = f"{type(error).__name__}: {error}" if not isinstance(error, GangError) else str(error)
        # The ranks that are left know nothing of machines.
        parts = [*faults, message] if isinstance(error, MachineLost) else faults or [message]
        return cls(message="; ".join(parts), machine=machine, update=update)


class Failures:
    """Those since the stage last got on: the budget of `retries` is for standing still."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures: list[Failure] = []

    def add(self, failure: Failure) -> None:
        if self._failures and failure.update > self._failures[-1].update:
            self._failures.clear()
        self._failures.append(failure)

    @property
    def left(self) -> int:
        """Tries that are left."""
        return self._retries - len(self._failures)

    @property
    def too_many(self) -> bool:
        """Whether the stage is given up."""
        if self.left < 0:
            return True
        # Code that fails twice in the same way at the same place will fail a third time.
        last = self._failures[-2:]
        return len(last) == 2 and not last[1].machine and last[0] == last[1]

    @property
    def wait_seconds(self) -> float:
        """Before the next try: the more, the longer the stage has stood at one checkpoint."""
        standing = sum(failure.update == self._failures[-1].update for failure in self._failures)
        return min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (standing - 1))
