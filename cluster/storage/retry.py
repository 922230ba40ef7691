"""Asking again after faults that pass: one finite budget for every read over a network."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

TRIES = 7
"""Requests that one read may cost. With the pauses below, reading gives up after 12.6 s of waiting at most and 6.3 s
on average, within a driver's lease; longer outages are for the stage's own attempts."""
FIRST_PAUSE_S = 0.2
"""Upper bound of the first pause, in seconds; it doubles from pause to pause."""
LONGEST_PAUSE_S = 20.0
"""Upper bound of every pause, in seconds, also of one that a server asks for."""
CONNECT_TIMEOUT_S = 10.0
"""How long a server may take to accept a connection, in seconds."""
READ_TIMEOUT_S = 30.0
"""How long a read may go without a byte, in seconds. A slow body is no fault; a silent one is."""
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses that may be another a moment later: the server is overloaded, starts again, or waited in vain."""

T = TypeVar("T")
# A generator of its own: jitter neither advances a seeded one nor is the same in forked processes.
_jitter = random.SystemRandom()


class Transient(ConnectionError):
    """A fault that may pass."""

    pause_s: float = 0.0
    """How long the server asks to be left alone, in seconds."""


def patiently(request: Callable[[], T]) -> T:
    """What `request` returns, which is made again after each Transient.

    The pauses grow exponentially with full jitter, so that readers that one fault has hit do not come
    back together. When TRIES requests have failed, the last fault is raised as ConnectionError.
    """
    for attempt in range(TRIES):
        try:
            return request()
        except Transient as fault:
            if attempt == TRIES - 1:
                raise ConnectionError(f"{fault} (the last of {TRIES} tries)") from fault.__cause__
            longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
            time.sleep(max(_jitter.uniform(0, longest), min(fault.pause_s, LONGEST_PAUSE_S)))
    raise AssertionError("unreachable")
