"""What a training run costs, by interval: where the time goes, and how much of the machine is used."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from stages.training.config import TrainingConfig
from stages.training.devices import forget_peak, peak_memory
from stages.training.engine import Engine

Own = tuple[float, float, float]
"""Of one rank: seconds that it has waited for data, and that saving has stopped it, so far; peak memory in bytes."""


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

    def own(self) -> Own:
        """This rank's part of the next report."""
        found = (self._data, self._save, float(peak_memory(self._engine.device)))
        forget_peak(self._engine.device)
        return found

    def report(self, update: int, ranks: Sequence[tuple[float, ...]]) -> dict[str, float]:
        """The interval that ends with this update, given what `own` was on every rank; the next one begins.

        Of the ranks' waits, stalls and memory it has the greatest: the others wait for that rank.
        """
        now, collectives = time.monotonic(), self._engine.collectives.seconds
        seconds = max(now - self._began - self._apart, 1e-9)
        images = (update - self._update) * self._batch / seconds
        tflops = images * self._flops / 1e12
        before = self._before or [(0.0, 0.0, 0.0)] * len(ranks)
        waits, stalls = (max(new[i] - old[i] for new, old in zip(ranks, before, strict=True)) for i in range(2))
        found = {
            "images_per_s": images,
            "tflops": tflops,
            "mfu": tflops / (self.peak * self._engine.world_size),
            "data_wait": waits / seconds,
            "checkpoint_stall": stalls / seconds,
            "memory_gb": max(rank[2] for rank in ranks) / 1e9,
        }
        if self._engine.device.type == "cpu":
            # A GPU's collectives run beside its computation: how long they take shows nowhere on this side.
            found["communication"] = (collectives - self._collectives) / seconds
        self._update, self._began, self._collectives = update, now, collectives
        self._before, self._apart = [(rank[0], rank[1], rank[2]) for rank in ranks], 0.0
        return found
