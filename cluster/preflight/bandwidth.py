"""How fast a machine writes to storage and reads from it, in pieces as large as those of checkpoints and shards."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cluster.storage import Storage

PIECE = 32 * 2**20
"""Bytes of an object."""
MOST_AT_ONCE = 32
"""Objects under way at the same time: as many connections as a process keeps to S3, and a gigabyte of memory."""


def bytes_per_s(storage: Storage, folder: str, seconds: float, at_once: int) -> tuple[float, float]:
    """Written and read in a second, each measured for so long with `at_once` objects under way, MOST_AT_ONCE at most.

    What is written below `folder` is removed again. Raises OSError where the storage does not answer.
    """
    at_once = min(at_once, MOST_AT_ONCE)
    body, names = os.urandom(PIECE), [f"{folder}/piece-{secrets.token_hex(4)}-{n}" for n in range(at_once)]
    try:
        written = _rate(lambda number: storage.write(names[number], body), seconds, at_once)
        read = _rate(lambda number: storage.read(names[number]), seconds, at_once)
    finally:
        for name in names:
            storage.delete(name)
    return written, read


def _rate(transfer: Callable[[int], object], seconds: float, at_once: int) -> float:
    began, lock, moved = time.perf_counter(), threading.Lock(), 0

    def repeat(number: int) -> None:
        nonlocal moved
        while True:
            transfer(number)
            with lock:
                moved += PIECE
            if time.perf_counter() - began > seconds:
                return

    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(repeat, number) for number in range(at_once)]:
            done.result()
    return moved / (time.perf_counter() - began)
