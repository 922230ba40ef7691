"""Environment variables that hold for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def in_force(environment: Mapping[str, str | None]) -> Iterator[None]:
    """Within it these variables have these values; None takes a variable away. Not for several threads at once."""
    old = {name: os.environ.get(name) for name in environment}
    _apply(environment)
    try:
        yield
    finally:
        _apply(old)


def _apply(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
