"""Whether training has become slow, and which rank the others wait for."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence

SLOW = 0.5
"""Part of its usual speed below which a run is slow."""
SKEWED = 1.5
"""So many times as long as the others a rank computes that they wait for."""
IN_A_ROW = 3
"""Intervals that have to be so before anybody is told."""
INTERVALS = 5
"""So many have a speed, or a slowest rank; fewer may be noise."""
LEAST_SECONDS = 1.0
"""Shorter intervals are taken together: what a busy machine does to ten milliseconds says nothing of training."""


def skew(seconds: Sequence[float]) -> tuple[int, float]:
    """The rank that computed for the longest, and how many times as long as the median of the others."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    others = [own for rank, own in enumerate(seconds) if rank != slowest]
    median = statistics.median(others) if others else 0.0
    return slowest, seconds[slowest] / median if median else 1.0


class Pace:
    """The speed of each interval as a part of the usual one: the greatest median of some in a row."""

    def __init__(self) -> None:
        self._newest = deque[float](maxlen=INTERVALS)
        self._usual = self._images = self._seconds = 0.0

    def part(self, images: float, seconds: float) -> float | None:
        """Of the interval that has just ended, with these images; None for as long as nobody knows what is usual, and
        while too little time has gone by."""
        self._images, self._seconds = self._images + images, self._seconds + seconds
        if self._seconds < LEAST_SECONDS:
            return None
        speed, usual = self._images / self._seconds, self._usual
        self._images = self._seconds = 0.0
        self._newest.append(speed)
        if len(self._newest) == INTERVALS:
            self._usual = max(self._usual, statistics.median(self._newest))
        return speed / usual if usual else None


class Slow:
    """Tells when training has become slow or one rank has, and when that is over. `hosts` are the ranks' machines."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._part, self._slow, self._skewed = 1.0, 0, dict[int, int]()
        self._told = ""

    def look(self, figures: Mapping[str, float]) -> str | None:
        """What is to be told after an interval with these figures of `Meters.report`, if anything."""
        part, skew = figures.get("pace"), figures.get("compute_skew", 1.0)
        slowest = int(figures.get("slowest_rank", 0))
        if part is not None:
            self._part, self._slow = part, self._slow + 1 if part < SLOW else 0
        self._skewed = {slowest: self._skewed.get(slowest, 0) + 1} if skew >= SKEWED else {}
        late = next((rank for rank, times in self._skewed.items() if times >= IN_A_ROW), None)
        state = f"rank {late}" if late is not None else "all" if self._slow >= IN_A_ROW else ""
        if state == self._told:
            return None
        self._told, before = state, self._told
        if not state:
            return f"training is no longer slowed by {'one of its ranks' if before != 'all' else 'anything'}"
        speed = f"slow: training runs at {self._part:.0%} of its usual speed" if self._slow >= IN_A_ROW else "slow"
        if late is not None:
            return f"{speed}: rank {late}, on {self._hosts[late]}, computes {skew:.1f} times as long as the others"
        return (
            f"{speed}, though all ranks compute about equally long: a link between machines, storage, or whoever else "
            "uses them; `patchline preflight` names a slow link"
        )
