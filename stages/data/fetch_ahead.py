"""Fetches whole shards into the node's cache before their samples are asked for.

All samples of a window are mixed, so all of its shards are needed when it begins. The order is known: the
shards that are looked at are those of the samples one window further in every stream.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from cluster.sizes import size
from stages.data.cache import ShardCache
from stages.data.mixed_order import MixedOrder
from stages.data.order import Numbers, Order
from stages.data.table import Shard

THREADS = 4
"""Shards that are fetched at once; each comes in several parts at once."""


class FetchAhead:
    """Keeps the shards of this window and of the next one on this node, in background threads.

    What fails here is fetched again, and told, when it is needed. Nothing is fetched ahead where the cache, or the
    disk that it lies on, has no room for both windows: then one would push the other out.
    """

    def __init__(
        self,
        cache: ShardCache,
        shards: Sequence[Shard],
        order: Order | MixedOrder,
        start: int,
        rows: tuple[range, int] = (range(1), 1),
    ) -> None:
        """`rows` are those that this node reads of each global batch, and the batch's size; all of them if absent."""
        self._cache, self._shards, self._order = cache, shards, order
        self._wanted: OrderedDict[int, int] = OrderedDict()
        """Shards, and the global sample number at which each was last seen to be needed."""
        self._pool: ThreadPoolExecutor | None = None
        first, second = (self._numbers(order, start + turn * order.ahead, *rows) for turn in range(2))
        needed = sum(shards[number].tar.bytes for number in {*first, *second})
        room = cache.room()
        if needed > room:
            print(
                f"shards are not fetched ahead: two windows need {size(needed)} of cache, which has {size(room)} in "
                f"{cache.folder}: set cache_gigabytes, or `cache` to a folder on a larger disk",
                flush=True,
            )
            return
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch-ahead")
        self._want(first, start)

    def look(self, samples: Numbers) -> None:
        """Fetch the shards of the samples that come one window after these global sample numbers [n]."""
        if self._pool is not None:
            later = samples + self._order.ahead
            _, shards, _ = self._order.locate(later)
            self._want(np.unique(shards).tolist(), int(later[0]))

    def close(self) -> None:
        """Begin no other fetch, and wait for those under way."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    @staticmethod
    def _numbers(order: Order | MixedOrder, start: int, rows: range, batch: int) -> list[int]:
        """Shards of the samples that this node reads of a window, each once, in the order of their first use."""
        batches = -(-order.ahead // batch)
        # Of windows of many millions, one batch in so many finds the shards too.
        firsts = np.arange(start, start + batches * batch, batch * max(1, (batches * len(rows)) >> 20))
        _, shards, _ = order.locate((firsts[:, None] + np.asarray(rows)).ravel())
        found, places = np.unique(shards, return_index=True)
        return found[np.argsort(places)].tolist()

    def _want(self, numbers: Iterable[int], place: int) -> None:
        assert self._pool is not None
        for number in numbers:
            if number not in self._wanted:
                self._pool.submit(self._fetch, number)
            self._wanted[number] = place
            self._wanted.move_to_end(number)
        # By then the cache may have given it up, and the next epoch needs it again.
        while self._wanted and next(iter(self._wanted.values())) < place - self._order.ahead:
            self._wanted.popitem(last=False)

    def _fetch(self, number: int) -> None:
        shard = self._shards[number]
        with suppress(Exception):
            for file in (shard.index, shard.tar):
                os.close(self._cache.open(file))
