"""Decoded images and labels by (shard, index), from the local copies of a data set's shards."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.data.cache import ShardCache
from stages.data.decode import decode_rgb
from stages.data.manifest import Shard
from stages.data.shards import read_index

_SMALL_IMAGE = 64 * 1024
"""Decoded images up to this many bytes are worth keeping: many fit, and decoding costs more than memory."""

_KEPT_BYTES = 256 * 1024**2


class _OpenShard:
    """One shard's index and an open descriptor, which is closed with the last user's reference."""

    def __init__(self, cache: ShardCache, shard: Shard) -> None:
        with os.fdopen(cache.open(shard.index_path), "rb") as file:
            self.index = read_index(file)
        if len(self.index) != shard.count:
            raise ValueError(f"{shard.index_path} lists {len(self.index)} samples, the manifest {shard.count}")
        self._descriptor = cache.open(shard.path)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, index: int) -> bytes:
        return os.pread(self._descriptor, int(self.index["length"][index]), int(self.index["offset"][index]))


class Decoded(NamedTuple):
    """An RGB image [H, W, 3] and its position in the task's list of classes."""

    image: NDArray[np.uint8]
    label: int


class SampleReader:
    """Reads samples of a list of shards. Safe among threads.

    `classes` are the data set's labels in the order of the network's outputs. Small decoded images are
    kept in memory up to a bound, since tiny data sets are read many times.
    """

    def __init__(self, cache: ShardCache, shards: Sequence[Shard], classes: Sequence[int], open_shards: int = 128):
        self._cache = cache
        self._shards = shards
        self._positions = {label: position for position, label in enumerate(classes)}
        self._open_shards = open_shards
        self._opened: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, int], Decoded] = {}
        self._free = _KEPT_BYTES

    def read(self, shard: int, index: int) -> Decoded:
        """One sample. Raises UnreadableImage; UserError for a label that the task does not have."""
        kept = self._kept.get((shard, index))
        if kept is not None:
            return kept
        opened = self._open(shard)
        name = f"sample {index} of {self._shards[shard].path}"
        label = int(opened.index["label"][index])
        if label not in self._positions:
            known = sorted(self._positions)
            raise UserError(f"{name} has label {label}, the task's classes are {known}: choose other splits or classes")
        image = np.asarray(decode_rgb(opened.read(index), name))
        decoded = Decoded(image, self._positions[label])
        if image.nbytes <= min(_SMALL_IMAGE, self._free):
            self._free -= image.nbytes
            self._kept[shard, index] = decoded
        return decoded

    def _open(self, number: int) -> _OpenShard:
        with self._lock:
            opened = self._opened.get(number)
            if opened is not None:
                self._opened.move_to_end(number)
                return opened
        # Outside the lock: fetching one shard must not hold up reading from the others.
        opened = _OpenShard(self._cache, self._shards[number])
        with self._lock:
            self._opened[number] = opened
            if len(self._opened) > self._open_shards:
                self._opened.popitem(last=False)
        return opened
