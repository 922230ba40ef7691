"""A storage that is waited for while it is away, for whoever has nothing else to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from cluster.storage.base import Digest, ObjectWriter, Stat, Storage

PATIENCE_SECONDS = 3600.0
"""How long an outage may last."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0

T = TypeVar("T")


class Enduring:
    """Another storage, of which each call is made again while there is no connection, for an hour at most.

    A call that had its effect and lost its answer is none the worse for being made again: see `Storage` for the writes
    under a condition. `tell` is told of the first failure and of the end of an outage; once `hurry` is set, in this
    process, nothing is waited for any more.
    """

    def __init__(
        self,
        storage: Storage,
        tell: Callable[[str], None],
        patience: float = PATIENCE_SECONDS,
        hurry: threading.Event | None = None,
    ) -> None:
        self.url = storage.url
        self._storage, self._tell, self._patience = storage, tell, patience
        self._hurry = hurry or threading.Event()

    def __reduce__(self) -> tuple[object, ...]:
        return Enduring, (self._storage, self._tell, self._patience)

    def read(self, key: str) -> bytes:
        return self._outlast(lambda: self._storage.read(key))

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        return self._outlast(lambda: self._storage.read_tagged(key))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self._outlast(lambda: self._storage.read_range(key, start, length))

    def stat(self, key: str) -> Stat | None:
        return self._outlast(lambda: self._storage.stat(key))

    def write(self, key: str, data: bytes) -> str:
        return self._outlast(lambda: self._storage.write(key, data))

    def write_if_absent(self, key: str, data: bytes) -> str:
        return self._outlast(lambda: self._storage.write_if_absent(key, data))

    def compare_and_swap(self, key: str, data: bytes, tag: str) -> str:
        return self._outlast(lambda: self._storage.compare_and_swap(key, data, tag))

    def upload(self, key: str, path: Path) -> Digest:
        return self._outlast(lambda: self._storage.upload(key, path))

    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        # What has been written to it cannot be written again.
        return self._storage.writer(key)

    def download(self, key: str, path: Path) -> None:
        self._outlast(lambda: self._storage.download(key, path))

    def list(self, prefix: str) -> Iterator[str]:
        return iter(self._outlast(lambda: [*self._storage.list(prefix)]))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        return iter(self._outlast(lambda: [*self._storage.sizes(prefix)]))

    def list_folders(self, prefix: str, limit: int | None = None) -> list[str]:
        return self._outlast(lambda: self._storage.list_folders(prefix, limit))

    def delete(self, key: str) -> None:
        self._outlast(lambda: self._storage.delete(key))

    def _outlast(self, call: Callable[[], T]) -> T:
        began, pause = time.monotonic(), FIRST_PAUSE_S
        away = False
        while True:
            try:
                found = call()
            except (ConnectionError, TimeoutError) as error:
                if time.monotonic() - began > self._patience or self._hurry.is_set():
                    raise
                if not away:
                    self._tell(f"storage does not answer, and is waited for: {error}")
                away = True
                self._hurry.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                if away:
                    self._tell(f"storage is back after {time.monotonic() - began:.0f} s")
                return found
