"""What failures cost a run, and how often to save against it, by formula. Light: no torch here.

Failures come independently and at a constant rate, so a run of many machines fails as often as its machines together.
Training stands only while a checkpoint is copied; it is stored while training goes on, and counts once it is committed;
and one is stored at a time. So a failure costs what came after the copy of the newest checkpoint *that was committed*,
and the restart.

With T seconds of training between checkpoints, copies of c, uploads of L, restarts of R and M between failures in the
mean, checkpoints are P = max(T, L) + c apart, and an attempt that lasts t commits floor((t - L) / P) of them. With t
exponential that is exp(-L / M) / (exp(P / M) - 1) in the mean. Attempt and restart, which may itself be broken off,
take M exp(R / M). `tests/bench/scale_failures.py` holds this against a simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What a run's failures and checkpoints take, all in seconds."""

    between: float
    """Mean time between failures of the whole run: that of one machine, divided by their number."""
    restart: float
    """From a failure to the first update of the next attempt."""
    copy: float
    """For which training stands at each checkpoint."""
    upload: float
    """From the copy to the commit, while training goes on."""


def goodput(interval: float, failures: Failures) -> float:
    """Part of a run's time that makes updates which stay, with checkpoints each `interval` seconds of training."""
    period = max(interval, failures.upload) + failures.copy
    committed = math.exp(-failures.upload / failures.between) / math.expm1(period / failures.between)
    return committed * interval / (failures.between * math.exp(failures.restart / failures.between))


def best_interval(failures: Failures) -> float:
    """The interval, in seconds of training, with the highest goodput.

    Where its derivative is zero, T / M = 1 - exp(-(T + c) / M); neither L nor R is in it. But checkpoints that would
    follow each other faster than they are stored have to wait: so it is L at least.
    """
    low, high = 0.0, failures.between
    for _ in range(100):
        middle = (low + high) / 2
        rising = -math.expm1(-(middle + failures.copy) / failures.between) > middle / failures.between
        low, high = (middle, high) if rising else (low, middle)
    return max(low, failures.upload)


def young(copy: float, between: float) -> float:
    """The first-order optimum, sqrt(2 c M) seconds, for checkpoints that training waits for (Young, 1974)."""
    return math.sqrt(2 * copy * between)


def daly(copy: float, between: float) -> float:
    """The higher-order optimum in seconds, for checkpoints that training waits for (Daly, 2006)."""
    if copy >= 2 * between:
        return between
    part = copy / (2 * between)
    return math.sqrt(2 * copy * between) * (1 + math.sqrt(part) / 3 + part / 9) - copy
