"""The order of a mixture of data sets: whose turn a global sample number is, and where that data set then stands.

Turns come in periods of PERIOD. Each period holds every part's exact share of turns, in an arrangement of
its own. So the one integer says where each part stands: its turns in whole periods, and those before the
number in this one. Each part goes through its own epochs in an `Order` of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cluster.errors import UserError
from stages.data.order import Numbers, Order, flat_numbers
from stages.data.random import derived_seed, permutation

PERIOD = 65_536
"""Turns after which every part has had exactly its share, which is so a multiple of 1 / PERIOD."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedOrder:
    """Where each global sample number g >= 0 is found, in several parts' shards laid end to end."""

    parts: Sequence[Order]
    weights: Sequence[float]
    """What each part's share of the samples is proportional to."""
    seed: int

    @cached_property
    def turns(self) -> Numbers:
        """Turns of each part in a period, [parts]."""
        return turns(self.weights)

    @cached_property
    def ahead(self) -> int:
        """Samples after which every stream of the part with the shortest turns is one window further."""
        return min(int(part.ahead * PERIOD / turns) for part, turns in zip(self.parts, self.turns, strict=True))

    def locate(self, numbers: int | range | ArrayLike) -> tuple[Numbers, Numbers, Numbers]:
        """Epoch of its part, shard and index within the shard, each [n], of n global sample numbers."""
        flat = flat_numbers(numbers)
        parts, positions = self.turn(flat)
        found = np.empty((3, len(flat)), dtype=np.int64)
        for part in np.unique(parts).tolist():
            here = parts == part
            epochs, shards, indices = self.parts[part].locate(positions[here])
            found[:, here] = epochs, shards + self._first_shards[part], indices
        return found[0], found[1], found[2]

    def turn(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Whose turn it is, and the sample number within that part, each [n]."""
        periods, slots = np.divmod(numbers, PERIOD)
        parts, earlier = np.empty_like(slots), np.empty_like(slots)
        for period in np.unique(periods).tolist():
            here = periods == period
            arrangement, before = self._period(period)
            parts[here], earlier[here] = arrangement[slots[here]], before[slots[here]]
        return parts, periods * self.turns[parts] + earlier

    @cached_property
    def _first_shards(self) -> Numbers:
        return np.cumsum([0, *(len(part.counts) for part in self.parts)], dtype=np.int64)

    @cached_property
    def _period(self) -> Any:
        """Of a period: the part of each turn, and how many turns that part has had before in it, each [PERIOD]."""

        def draw(period: int) -> tuple[Numbers, Numbers]:
            parts = np.repeat(np.arange(len(self.parts)), self.turns)
            arrangement = parts[permutation(PERIOD, self.seed, "turns", period)]
            before = np.empty_like(arrangement)
            for part, turns in enumerate(self.turns.tolist()):
                before[arrangement == part] = np.arange(turns)
            return arrangement, before

        return lru_cache(maxsize=2)(draw)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def turns(weights: Sequence[float]) -> Numbers:
    """Of PERIOD turns those of each part, [parts], by the largest-remainder method. Raises UserError for a part
    whose share is too small for one."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * PERIOD
    found = np.floor(exact).astype(np.int64)
    # Of equal remainders the first part's counts as larger.
    for part in np.argsort(found - exact, kind="stable")[: PERIOD - int(found.sum())]:
        found[part] += 1
    if (found == 0).any():
        part = int(np.argmin(found))
        raise UserError(
            f"part {part} of the mixture has the share {weights[part] / sum(weights):.2g}, "
            f"less than one sample in {PERIOD}: raise its weight, or leave it out"
        )
    return found


def mixed_order(
    counts: Numbers, parts: Sequence[tuple[int, float]], *, seed: int, streams: int, window: int
) -> Order | MixedOrder:
    """The order of shards with these `counts` [shards]; `parts` are their numbers of shards and weights, in turn.

    One part alone is read in a plain order. Each of several has its own streams, and its own seed, so that
    parts of equal sizes are not shuffled alike.
    """
    if len(parts) == 1:
        return Order(counts=counts, seed=seed, streams=streams, window=window)
    ends = np.cumsum([shards for shards, _ in parts])
    orders = [
        Order(counts=own, seed=derived_seed(seed, "part", part), streams=streams, window=window)
        for part, own in enumerate(np.split(counts, ends[:-1]))
    ]
    return MixedOrder(parts=orders, weights=[weight for _, weight in parts], seed=seed)
