"""Signal handlers that stay ours while a library sets its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Afterwards SIGTERM and SIGINT have the handlers that they had before.

    `ray.init` makes SIGTERM end the process, and Ray Train takes SIGINT: a driver that is asked to stop has
    a checkpoint to save first.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can set handlers, a library's included.
        yield
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


_TERMINATED = threading.Event()


def note_termination() -> None:
    """From now on a first SIGTERM is noted alone, for `termination_asked`; a second one ends the process.

    For the main thread of a process whose work can be saved first.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        _TERMINATED.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)


def termination_asked() -> bool:
    """Whether this process has been sent a SIGTERM since `note_termination`."""
    return _TERMINATED.is_set()
