"""Requests for many small objects, several at once: one after the other, each waits for the answer before it.

Object storage answers a small request after a tenth of a second or so, however many it is asked at once. A checkpoint
of a thousand ranks has two thousand objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cluster.storage.base import Storage

AT_ONCE = 16
"""Requests on their way."""
FILES_AT_ONCE = 8
"""Whole files on their way to a machine, of which a large one comes in several parts at once by itself."""

T = TypeVar("T")
R = TypeVar("R")


def at_once(act: Callable[[T], R], items: Iterable[T], *, threads: int = AT_ONCE) -> list[R]:
    """`act` of each item, in the order of the items. Raises what the first one of them raises that fails."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="at-once")
    try:
        return list(pool.map(act, items))
    finally:
        # After a failure no other begins, and those under way end before this returns.
        pool.shutdown(cancel_futures=True)


def delete_all(storage: Storage, keys: Iterable[str]) -> None:
    """Remove keys, in no order."""
    at_once(storage.delete, keys)
