"""Whether a storage keeps the one promise that commits and leases stand on: conditional writes."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from cluster.storage import Conflict, Storage

AT_ONCE = 8
"""Writers of one key in the race."""


def broken_conditions(storage: Storage, folder: str) -> list[str]:
    """What the storage does in spite of a condition; empty where it keeps them. `folder` is for keys of ours alone.

    Raises OSError where it cannot be read or written at all.
    """
    key, found = f"{folder}/condition-{secrets.token_hex(4)}", list[str]()
    try:
        first = storage.write_if_absent(key, b"first")
        if _accepted(lambda: storage.write_if_absent(key, b"second")):
            found.append("If-None-Match is ignored: what was there has been overwritten")
        elif storage.read(key) != b"first":
            found.append("If-None-Match is refused, and what was there has changed all the same")
        # Whatever that has left.
        tag = storage.write(key, b"third")
        if tag == first:
            found.append("the ETag stays when the body changes")
        if not _accepted(lambda: storage.compare_and_swap(key, b"fourth", tag)):
            found.append("If-Match with the right ETag is refused")
        if _accepted(lambda: storage.compare_and_swap(key, b"fifth", tag)):
            found.append("If-Match is ignored: a stale ETag has been taken for the newest")
        return found + _race(storage, f"{key}-race")
    finally:
        storage.delete(key)


def _race(storage: Storage, key: str) -> list[str]:
    """Several at once create one key: one of them may win."""
    barrier = Barrier(AT_ONCE)

    def create(number: int) -> bool:
        barrier.wait()
        return _accepted(lambda: storage.write_if_absent(key, b"%d" % number))

    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            won = sum(pool.map(create, range(AT_ONCE)))
    finally:
        storage.delete(key)
    if won == 1:
        return []
    return [f"of {AT_ONCE} that created one key at the same time with If-None-Match, {won} were told that they had"]


def _accepted(write: Callable[[], object]) -> bool:
    try:
        write()
    except Conflict:
        return False
    return True
