"""Shards that are open: the index in memory and, of whole shards, a descriptor of the tar."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence

from stages.data.cache import ShardCache
from stages.data.index import read_index
from stages.data.spent import waiting_for_storage
from stages.data.table import Shard


class OpenShard:
    """One shard's index and, where whole shards are fetched, an open descriptor of the tar."""

    def __init__(self, cache: ShardCache, shard: Shard, *, whole: bool) -> None:
        self.index = read_index(cache.read(shard.index))
        if len(self.index) != shard.count:
            raise ValueError(f"{shard.index.address} lists {len(self.index)} samples, the table {shard.count}")
        self._cache, self._tar = cache, shard.tar
        self._descriptor = cache.open(shard.tar) if whole else None
        if self._descriptor is not None:
            # Closed with the last user's reference.
            weakref.finalize(self, os.close, self._descriptor)

    def read(self, index: int) -> bytes:
        """A sample's image as it is stored."""
        offset, length = int(self.index.offsets[index]), int(self.index.lengths[index])
        if self._descriptor is None:
            return self._cache.read_range(self._tar, offset, length)
        return os.pread(self._descriptor, length, offset)

    @property
    def is_evicted(self) -> bool:
        """Whether the cache has given up the tar, whose disk is free once it is closed."""
        return self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0


class OpenShards:
    """Up to `most` of a list of shards, opened when they are asked for. Safe among threads."""

    def __init__(self, cache: ShardCache, shards: Sequence[Shard], *, whole: bool, most: int) -> None:
        self._cache, self._shards, self._whole, self._most = cache, shards, whole, most
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, number: int) -> OpenShard:
        """A shard and its index, fetched where needed. Raises CorruptShard."""
        with self._lock:
            opened = self._opened.get(number)
            if opened is not None:
                self._opened.move_to_end(number)
                return opened
        # Outside the lock: fetching one shard must not hold up reading from the others.
        with waiting_for_storage():
            opened = OpenShard(self._cache, self._shards[number], whole=self._whole)
        with self._lock:
            self._opened[number] = opened
            self._close_some()
        return opened

    def read(self, number: int, index: int) -> tuple[bytes, list[int]]:
        """A sample's image as it is stored, and the data set's own labels. Raises CorruptShard."""
        opened = self.open(number)
        if self._whole:
            return opened.read(index), opened.index.labels_of(index)
        with waiting_for_storage():
            return opened.read(index), opened.index.labels_of(index)

    def close(self) -> None:
        """Close all. Reading opens them again."""
        with self._lock:
            self._opened.clear()

    def _close_some(self) -> None:
        """Close shards above their number; and before that, of those not read lately, what the cache has evicted."""
        for number in list(self._opened)[: -(self._most // 2) or None]:
            if len(self._opened) > self._most or self._opened[number].is_evicted:
                del self._opened[number]
