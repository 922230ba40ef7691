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
    open: int
    """Tars that it needs within a window, at most."""
    again: float
    """Of the tars of the next epoch, those that it has read in this one."""


@cache
def reading(*, tars: int, per_tar: int, machines: int, batch: int, streams: int, window: int) -> Reading:
    """What the first of `machines` reads of `tars` with `per_tar` samples each."""
    order = Order(counts=np.full(tars, per_tar), seed=0, streams=streams, window=window)
    start, stop = rank_rows(batch, 0, machines)
    turns = max(1, order.ahead // batch)

    def read(first: int, last: int) -> set[int]:
        numbers = np.arange(first, last)[:, None] * batch + np.arange(start, stop)
        _, shards, _ = order.locate(numbers.ravel())
        return set(np.unique(shards).tolist())

    def epoch(number: int) -> list[set[int]]:
        begin, end = -(-number * order.total // batch), (number + 1) * order.total // batch
        return [read(first, min(first + turns, end)) for first in range(begin, end, turns)]

    windows, later = epoch(0), set().union(*epoch(1))
    seen = set().union(*windows)
    return Reading(share=len(seen) / tars, open=max(map(len, windows)), again=len(seen & later) / len(later))
