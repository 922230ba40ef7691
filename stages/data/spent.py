"""What the time of a loader's threads goes into: all of it, and what of that is waiting for storage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Spent(NamedTuple):
    """What the time of a loader's threads went into, in seconds of all of them together."""

    filling: float
    """All that they have done."""
    storage: float
    """That part of it in which they waited for shards or samples to come from storage; never more than all."""


class Clock:
    """Measures threads that fill parts of batches. Safe among threads.

    Both times are counted part by part, and of a part that is under way up to the moment at which somebody asks. So
    neither is ahead of the other, however long a part takes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = Spent(0.0, 0.0)
        self._under_way = set[_Part]()

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Around the filling of one part, by the thread that fills it."""
        part = _this_thread.part = _Part()
        with self._lock:
            self._under_way.add(part)
        try:
            yield
        finally:
            _this_thread.part = None
            with self._lock:
                self._under_way.remove(part)
                self._ended = _sum(self._ended, part.so_far())

    def so_far(self) -> Spent:
        """All threads' time, that of the parts under way included."""
        with self._lock:
            return _sum(self._ended, *(part.so_far() for part in self._under_way))


@contextmanager
def waiting_for_storage() -> Iterator[None]:
    """Around what waits for storage: counted with the part that this thread fills, and not at all where it fills none.

    Parts of the code that read need not know whose clock runs.
    """
    part: _Part | None = getattr(_this_thread, "part", None)
    if part is None:
        yield
        return
    part.begin_waiting()
    try:
        yield
    finally:
        part.end_waiting()


class _Part:
    """One part that a thread fills. Another thread may ask how far it is."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        # One object that is replaced as a whole, so that nobody sees half of a change.
        self._waits: tuple[float, float | None] = (0.0, None)

    def begin_waiting(self) -> None:
        self._waits = (self._waits[0], time.monotonic())

    def end_waiting(self) -> None:
        waited, since = self._waits
        assert since is not None, "a wait that has not begun"
        self._waits = (waited + time.monotonic() - since, None)

    def so_far(self) -> Spent:
        # The waits before the time: none of them ends after it.
        waited, since = self._waits
        now = time.monotonic()
        storage = waited + (now - since if since is not None else 0.0)
        # Sums of many short waits are rounded.
        return Spent(now - self._began, min(storage, now - self._began))


_this_thread = threading.local()


def _sum(*parts: Spent) -> Spent:
    return Spent(sum(part.filling for part in parts), sum(part.storage for part in parts))
