"""Which tars a machine reads of a data set in an epoch, by the real order (`stages/data/order.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from stages.data.order import Order, rank_rows


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of one machine, in one epoch."""

    share: float
    """Of the data set's tars, that the machine reads anything of."""
    open: float
    """Tars that it needs within a window, at most."""


@cache
def reading(*, tars: int, per_tar: int, machines: int, batch: int, streams: int, window: int) -> Reading:
    """What the first of `machines` reads of `tars` with `per_tar` samples each."""
    order = Order(counts=np.full(tars, per_tar), seed=0, streams=streams, window=window)
    start, stop = rank_rows(batch, 0, machines)
    updates = order.total // batch
    seen: set[int] = set()
    most, turns = 0, max(1, order.ahead // batch)
    for first in range(0, updates, turns):
        last = min(first + turns, updates)
        numbers = np.arange(first, last)[:, None] * batch + np.arange(start, stop)
        _, shards, _ = order.locate(numbers.ravel())
        here = set(np.unique(shards).tolist())
        most, seen = max(most, len(here)), seen | here
    return Reading(share=len(seen) / tars, open=most)
