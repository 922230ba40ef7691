"""A run that loses machines, simulated event by event: what is left of its time.

The run needs all of its machines at once. Each fails by itself, at exponential times; another takes its place at once
where there is a spare one, and else when a replacement comes. Training saves as `stages/training/checkpoint.py` does:
it waits for the upload before, copies, and goes on while the copy is stored; and what is committed when a machine fails
is what the next attempt goes on from. Everything is drawn from a seed.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

from stages.training.interval import Failures

DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines, in seconds."""

    machines: int
    """That the run needs."""
    mtbf: float
    """Between two failures of one machine, in the mean."""
    spares: int = 0
    replaced: float = 0.0
    """From a machine's failure to another one in its place, or to the spare one's being spare again."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Parts of the time of a simulated run, which are 1 together."""

    goodput: float
    """Updates that stay."""
    lost: float
    """Updates that were made again."""
    saving: float
    """Training stood for a copy, or waited for the upload before."""
    restarting: float
    """Nobody trained: a failure was noticed, a machine was waited for, a gang started."""
    failures: int


def simulate(cluster: Cluster, interval: float, failures: Failures, *, days: float, seed: int) -> Spent:
    """A run of so many days that saves every `interval` seconds of training. Of `failures`, `between` is not used."""
    machines = _Machines(cluster, random.Random(seed))
    now, end = 0.0, days * DAY
    kept = trained = saving = 0.0
    count = 0
    while now < end:
        begins = max(now, machines.complete(now)) + failures.restart
        fails = machines.next_failure()
        if begins < min(fails, end):
            own = _attempt(min(fails, end) - begins, interval, failures)
            kept, trained, saving = kept + own[0], trained + own[1], saving + own[2]
        now = fails
        if fails < end:
            machines.fail(fails)
            count += 1
    return Spent(
        goodput=kept / end,
        lost=(trained - kept) / end,
        saving=saving / end,
        restarting=1 - (trained + saving) / end,
        failures=count,
    )


def _attempt(seconds: float, interval: float, failures: Failures) -> tuple[float, float, float]:
    """Of an attempt that ends after so many seconds: those of training that a commit covers, that were trained, and
    that went into saving."""
    clock = stored = trained = kept = saving = 0.0
    copied = 0.0
    while True:
        step = min(interval, max(0.0, seconds - clock))
        trained, clock = trained + step, clock + step
        if stored <= min(clock, seconds):
            kept = copied
        if step < interval:
            return kept, trained, saving
        # One upload at a time: it waits for the one before, then training stands for the copy.
        done = max(clock, stored) + failures.copy
        if stored <= seconds:
            kept = copied
        saving += min(done, seconds) - clock
        if done > seconds:
            return kept, trained, saving
        clock, copied, stored = done, trained, done + failures.upload


class _Machines:
    """Those that the run has, when each fails, and when others come."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster, self._rng = cluster, rng
        self._failing = [rng.expovariate(1 / cluster.mtbf) for _ in range(cluster.machines)]
        heapq.heapify(self._failing)
        self._coming: list[float] = []
        self._spares = cluster.spares

    def next_failure(self) -> float:
        return self._failing[0]

    def fail(self, moment: float) -> None:
        heapq.heappop(self._failing)
        heapq.heappush(self._coming, moment + self._cluster.replaced)

    def complete(self, now: float) -> float:
        """The moment from which all are there."""
        moment = now
        while len(self._failing) < self._cluster.machines:
            while self._coming and self._coming[0] <= moment:
                heapq.heappop(self._coming)
                self._spares += 1
            if self._spares:
                self._spares -= 1
                heapq.heappush(self._failing, moment + self._rng.expovariate(1 / self._cluster.mtbf))
            else:
                moment = self._coming[0]
        return moment
