"""Ports where the ranks of a test meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

from cluster.local.processes import free_ports


def next_port() -> int:
    """One of this process's own: a rank binds it seconds later, and nobody else's connection may have it by then."""
    return next(_ports())


@cache
def _ports() -> Iterator[int]:
    # Asked for once: a process keeps each block of ports that it has been given.
    return itertools.cycle(free_ports(16))
