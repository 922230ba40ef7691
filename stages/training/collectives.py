"""How long this process spends in collective operations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

OPERATIONS = (
    "all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast",
    "all_gather", "all_gather_into_tensor", "all_gather_coalesced", "barrier",
)  # fmt: skip
"""Those that DeepSpeed makes through its communication backend (`deepspeed/comm/torch.py`)."""


class Collectives:
    """Seconds in collective operations on CPUs. (On GPUs they run beside the computation, and this process does not
    wait for them.)"""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around one operation; one within another counts once."""
        began, self._depth = time.perf_counter(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.perf_counter() - began

    @classmethod
    def of(cls, backend: Any) -> Collectives:
        """Those that DeepSpeed makes through this backend, which has one clock for all engines of the process."""
        if not hasattr(backend, "patchline_collectives"):
            clock = cls()
            for name in OPERATIONS:
                if hasattr(backend, name):
                    setattr(backend, name, clock._watched(getattr(backend, name)))
            backend.patchline_collectives = clock
        return backend.patchline_collectives

    def _watched(self, operation: Any) -> Any:
        @wraps(operation)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.timed():
                work = operation(*arguments, **options)
            return _TimedWork(work, self) if hasattr(work, "wait") else work

        return timed


class _TimedWork:
    """An operation that goes on in the background: waiting for it counts too."""

    def __init__(self, work: Any, clock: Collectives) -> None:
        self._work, self._clock = work, clock

    def wait(self, *arguments: Any, **options: Any) -> Any:
        with self._clock.timed():
            return self._work.wait(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
