"""What a training run costs, by interval: where the time goes, and how much of the machine is used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from stages.training.config import TrainingConfig
from stages.training.devices import DTYPES, matrix_rate, peak_memory
from stages.training.engine import Engine


class Meters:
    """Times of this rank since the last report. Asking for them costs nothing on a GPU: no work is waited for."""

    def __init__(self, engine: Engine, config: TrainingConfig, *, update: int, flops_per_image: float) -> None:
        self._engine, self._batch = engine, config.global_batch
        self._flops = flops_per_image
        self._peak = config.peak_tflops or matrix_rate(engine.device, DTYPES[config.precision])
        self._update, self._began = update, time.monotonic()
        self._data = self._save = self._collectives = 0.0

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

    def report(self, update: int) -> dict[str, float]:
        """The interval that ends with this update; the next one begins."""
        now, collectives = time.monotonic(), self._engine.collectives.seconds
        seconds = max(now - self._began, 1e-9)
        images = (update - self._update) * self._batch / seconds
        tflops = images * self._flops / 1e12
        found = {
            "images_per_s": images,
            "tflops": tflops,
            "mfu": tflops / (self._peak * self._engine.world_size),
            "data_wait": self._data / seconds,
            "communication": (collectives - self._collectives) / seconds,
            "checkpoint_stall": self._save / seconds,
            "memory_gb": peak_memory(self._engine.device) / 1e9,
        }
        self._update, self._began, self._collectives = update, now, collectives
        self._data = self._save = 0.0
        return found
