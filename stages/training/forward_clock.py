"""How long this rank's own computing takes: of the forward pass, in which ranks do not wait for each other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.training.collectives import Collectives


class ForwardClock:
    """Seconds of forward passes. On a GPU by events in its own queue, which nobody waits for.

    What ZeRO 3 gathers in them is left out on CPUs, and in it on GPUs, where it runs beside the computation.
    """

    def __init__(self, device: torch.device, collectives: Collectives) -> None:
        self._device, self._collectives = device, collectives
        self._seconds = 0.0
        self._under_way: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around one forward pass."""
        if self._device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            yield
            ended.record()
            self._under_way.append((began, ended))
        else:
            moment, gathered = time.perf_counter(), self._collectives.seconds
            yield
            self._seconds += time.perf_counter() - moment - (self._collectives.seconds - gathered)

    @property
    def seconds(self) -> float:
        """So far; on a GPU of those that have ended."""
        while self._under_way and self._under_way[0][1].query():
            began, ended = self._under_way.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
        return self._seconds
