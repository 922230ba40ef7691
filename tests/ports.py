"""Ports for tests that listen later, or no more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

from cluster.local.processes import free_ports


def next_port() -> int:
    """A port on loopback on which nobody listens but who is told of it; the 17th is the first one again.

    Neither does anybody's connection come from it meanwhile, as from a port that was found by binding any.
    """
    return next(_ports())


@cache
def _ports() -> Iterator[int]:
    # Asked for once: a process keeps each block of ports that it has been given.
    return itertools.cycle(free_ports(16))
