"""Children that a test kills, or that are not to outlive it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 300.0
"""Longer than a slow machine takes to bring a child to where a test wants it."""


@contextmanager
def killed_at_last(process: subprocess.Popen) -> Iterator[None]:
    """Kill a child at the end of the block, and before, should it neither say nor do for so long what is waited for."""
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()
