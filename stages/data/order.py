"""The order of the samples, as a pure function of the global sample number.

An epoch's permuted shards are laid end to end and cut into equal sample ranges, the streams. Each stream
is shuffled in blocks of a window, and the streams are read round-robin. Streams are there for locality
alone: at any moment about `streams` shards are being read, and nothing need divide their number.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cluster.errors import UserError
from stages.data.random import permutation

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """Where each global sample number g >= 0 is found. Epoch e is the numbers [e·N, (e + 1)·N)."""

    counts: Numbers
    """Samples of each shard, [shards]."""
    seed: int
    streams: int
    window: int
    """Samples of a stream that are shuffled together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", np.asarray(self.counts, dtype=np.int64))
        if self.total == 0:
            raise UserError(f"{len(self.counts)} shards hold no samples: choose a split that is not empty")
        if self.streams < 1 or self.window < 1:
            raise UserError(f"streams={self.streams} and window={self.window} must both be at least 1")

    @cached_property
    def total(self) -> int:
        """N, the samples of an epoch."""
        return int(self.counts.sum())

    @property
    def ahead(self) -> int:
        """Samples after which every stream is one window further; of a small data set, those of an epoch."""
        return min(self.streams * self.window, self.total)

    def locate(self, numbers: int | range | ArrayLike) -> tuple[Numbers, Numbers, Numbers]:
        """Epoch, shard and index within the shard, each [n], of n global sample numbers.

        Costs O(shards) and O(window) at a new place, and far less where the last call was near.
        """
        flat = flat_numbers(numbers)
        epochs, positions = np.divmod(flat, self.total)
        places = self._shuffle(epochs, positions)
        shards, indices = np.empty_like(flat), np.empty_like(flat)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            shards[here], indices[here] = self._find(epoch, places[here])
        return epochs, shards, indices

    def _shuffle(self, epochs: Numbers, positions: Numbers) -> Numbers:
        """The place of each position of an epoch in the line of that epoch's permuted shards."""
        offsets, streams = np.divmod(positions, self.streams)
        blocks, within = np.divmod(offsets, self.window)
        places = np.empty_like(positions)
        # One number for each block of each stream and epoch: numpy finds equal numbers far faster than equal triples.
        keys = (epochs * self.streams + streams) * (self.total // self.window + 1) + blocks
        _, examples, inverse = np.unique(keys, return_index=True, return_inverse=True)
        for number, example in enumerate(examples.tolist()):
            epoch, stream, block = int(epochs[example]), int(streams[example]), int(blocks[example])
            here = inverse == number
            first = self._stream_start(stream) + block * self.window
            places[here] = first + self._block(epoch, stream, block)[within[here]]
        return places

    def _find(self, epoch: int, places: Numbers) -> tuple[Numbers, Numbers]:
        shards, ends = self._shards(epoch)
        turn = np.searchsorted(ends, places, side="right")
        return shards[turn], places - (ends[turn] - self.counts[shards[turn]])

    def _stream_start(self, stream: int) -> int:
        """First place of a stream: the first N mod S streams are one sample longer than the others."""
        length, longer = divmod(self.total, self.streams)
        return stream * length + min(stream, longer)

    @cached_property
    def _shards(self) -> Any:
        """Of an epoch: the shards in their order, and where each one ends."""

        def draw(epoch: int) -> tuple[Numbers, Numbers]:
            shards = permutation(len(self.counts), self.seed, "shards", epoch)
            return shards, np.cumsum(self.counts[shards])

        return lru_cache(maxsize=2)(draw)

    @cached_property
    def _block(self) -> Any:
        """The order within one block of one stream. The cache holds this block and the next of each stream."""

        def draw(epoch: int, stream: int, block: int) -> Numbers:
            stop = self._stream_start(stream + 1)
            length = min(self.window, stop - self._stream_start(stream) - block * self.window)
            return permutation(length, self.seed, "samples", epoch, stream, block)

        return lru_cache(maxsize=2 * self.streams)(draw)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def flat_numbers(numbers: int | range | ArrayLike) -> Numbers:
    """One or more global sample numbers as an array [n]."""
    if isinstance(numbers, range):
        numbers = np.arange(numbers.start, numbers.stop, numbers.step)
    return np.atleast_1d(np.asarray(numbers, dtype=np.int64))


def in_turn(counts: Numbers, positions: Numbers) -> tuple[Numbers, Numbers]:
    """Shard and index of positions [n] in shards [shards] that are read one after the other, unshuffled."""
    ends = np.cumsum(counts)
    shards = np.searchsorted(ends, positions, side="right")
    return shards, positions - (ends - counts)[shards]


def rank_rows(global_batch: int, rank: int, world_size: int) -> tuple[int, int]:
    """Rows [start, stop) of each global batch that a rank takes. Raises UserError where they do not divide."""
    rows, rest = divmod(global_batch, world_size)
    if rest or not rows:
        largest = max(n for n in range(1, world_size + 1) if global_batch % n == 0)
        raise UserError(
            f"global_batch={global_batch} is not a multiple of world_size={world_size}: "
            f"run {largest} workers, the most up to {world_size} that divide it, or change global_batch"
        )
    return rank * rows, (rank + 1) * rows


def rows_here(global_batch: int, rank: int, world_size: int, ranks_here: int) -> range:
    """Rows of each global batch that the ranks of this rank's machine take, whose ranks follow each other."""
    first = rank - rank % ranks_here
    last = min(first + ranks_here, world_size) - 1
    return range(rank_rows(global_batch, first, world_size)[0], rank_rows(global_batch, last, world_size)[1])
