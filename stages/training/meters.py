"""What a training run costs, by interval: where the time goes, and how much of the machine is used."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from stages.data.spent import Spent
from stages.training.config import TrainingConfig
from stages.training.devices import forget_peak, peak_memory
from stages.training.engine import Engine
from stages.training.slow import INTERVALS, Pace, skew


class Own(NamedTuple):
    """Of one rank, so far."""

    data: float = 0.0
    """Seconds that it has waited for data."""
    save: float = 0.0
    """Seconds that saving has stopped it."""
    memory: float = 0.0
    """Peak since the last report, in bytes."""
    filling: float = 0.0
    """Seconds that the loader's threads have worked, at what they have not finished too."""
    storage: float = 0.0
    """Seconds of these in which they waited for storage."""
    compute: float = 0.0
    """Seconds of forward passes."""


class Meters:
    """Times of this rank, and of all ranks by interval. Asking for them costs nothing on a GPU: nothing is waited for.

    `peak` is the TFLOP/s of one device that MFU is a share of.
    """

    def __init__(
        self, engine: Engine, config: TrainingConfig, *, update: int, flops_per_image: float, peak: float
    ) -> None:
        self._engine, self._batch = engine, config.global_batch
        self._flops, self.peak = flops_per_image, peak
        self._update, self._began = update, time.monotonic()
        self._data = self._save = self._apart = 0.0
        # The clock is the process's, which may have had engines before.
        self._collectives = engine.collectives.seconds
        self._before: list[Own] = []
        self._pace = Pace()
        self._compute = deque[list[float]](maxlen=INTERVALS)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around what waits for the next batch."""
        began = time.monotonic()
        yield
        self._data += time.monotonic() - began

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around what stops training for a checkpoint."""
        began = time.monotonic()
        yield
        self._save += time.monotonic() - began

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around what is no training, such as an evaluation: it belongs to no interval."""
        began, collectives = time.monotonic(), self._engine.collectives.seconds
        yield
        self._apart += time.monotonic() - began
        self._collectives += self._engine.collectives.seconds - collectives

    def own(self, loader: Spent) -> Own:
        """This rank's part of the next report."""
        memory = float(peak_memory(self._engine.device))
        forget_peak(self._engine.device)
        return Own(self._data, self._save, memory, loader.filling, loader.storage, self._engine.forward.seconds)

    def report(self, update: int, ranks: Sequence[tuple[float, ...]]) -> dict[str, float]:
        """The interval that ends with this update, given what `own` was on every rank; the next one begins.

        Of the ranks' waits, stalls and memory it has the greatest: the others wait for that rank. `storage_wait` is,
        of the rank that waited the longest for data, the part of its loader's work that was waiting for storage.
        `compute_skew` is how many times as long as the others' median the `slowest_rank` computed lately, `pace` the
        speed as a part of the usual one.
        """
        now, collectives = time.monotonic(), self._engine.collectives.seconds
        seconds = max(now - self._began - self._apart, 1e-9)
        images = (update - self._update) * self._batch / seconds
        tflops = images * self._flops / 1e12
        newest = [Own(*rank) for rank in ranks]
        since = [_since(*pair) for pair in zip(newest, self._before or [Own()] * len(ranks), strict=True)]
        waiting = max(since, key=lambda rank: rank.data)
        found = {
            "images_per_s": images,
            "tflops": tflops,
            "mfu": tflops / (self.peak * self._engine.world_size),
            "data_wait": waiting.data / seconds,
            "storage_wait": min(1.0, waiting.storage / waiting.filling) if waiting.filling else 0.0,
            "checkpoint_stall": max(rank.save for rank in since) / seconds,
            "memory_gb": max(rank.memory for rank in newest) / 1e9,
        }
        if len(since) > 1:
            self._compute.append([rank.compute for rank in since])
            found["slowest_rank"], found["compute_skew"] = skew([sum(own) for own in zip(*self._compute, strict=True)])
        part = self._pace.part(images * seconds, seconds)
        if part is not None:
            found["pace"] = part
        if self._engine.device.type == "cpu":
            # A GPU's collectives run beside its computation: how long they take shows nowhere on this side.
            found["communication"] = (collectives - self._collectives) / seconds
        self._update, self._began, self._collectives = update, now, collectives
        self._before, self._apart = newest, 0.0
        return found


def _since(new: Own, old: Own) -> Own:
    """What a rank did between two reports; of memory, the newest."""
    return Own(*(a - b for a, b in zip(new, old, strict=True)))._replace(memory=new.memory)
