"""Threads that fill batches in place, and what their time goes into."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data.spent import Clock, Spent

Fill = Callable[[NDArray[np.int64], NDArray[np.uint8], Tensor], None]
"""Write the images [n, R, R, 3] and labels [n] or [n, C], which are zeros before, of samples with these numbers [n]."""

LEAST_ROWS = 8
"""Of a batch that a thread takes at once: what is drawn for all rows together is cheaper by the row in larger parts."""


class Workers:
    """Fills tensors in background threads, each one a part of the rows; in the caller's where there are none."""

    def __init__(
        self, threads: int, fill: Fill, resolution: int, label_shape: tuple[int, ...], *, pinned: bool = False
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader") if threads else None
        self.threads = threads
        self._fill = fill
        self._resolution = resolution
        self._label_shape = label_shape
        self._pinned = pinned
        self._clock = Clock()

    def submit(self, numbers: NDArray[np.int64], rows: int) -> Callable[[], tuple[Tensor, Tensor]]:
        """Begin to fill tensors of `rows` rows, the first ones with these samples, the others with zeros.

        Returns how to wait for them.
        """
        size = self._resolution
        # Not zeros: the caller would write all of them a first time, while its GPU may wait.
        images = torch.empty(rows, size, size, 3, dtype=torch.uint8, pin_memory=self._pinned)
        images[len(numbers) :] = 0
        labels = torch.zeros(rows, *self._label_shape, dtype=torch.float32 if self._label_shape else torch.int64)
        pixels = images.numpy()
        futures: list[Future[None]] = []
        for part in np.array_split(np.arange(len(numbers)), self._parts(len(numbers))):
            if len(part) and self._pool is not None:
                rows_of_part = slice(int(part[0]), int(part[-1]) + 1)
                task = (numbers[rows_of_part], pixels[rows_of_part], labels[rows_of_part])
                futures.append(self._pool.submit(self._timed, *task))

        def wait() -> tuple[Tensor, Tensor]:
            if self._pool is None and len(numbers):
                self._timed(numbers, pixels[: len(numbers)], labels[: len(numbers)])
            for future in futures:
                future.result()
            return images, labels

        return wait

    def spent(self) -> Spent:
        """What the threads' time went into so far, that of the parts under way included."""
        return self._clock.so_far()

    def close(self) -> None:
        """Stop the threads; what has not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _parts(self, rows: int) -> int:
        return max(1, min(self.threads, rows // LEAST_ROWS))

    def _timed(self, numbers: NDArray[np.int64], images: NDArray[np.uint8], labels: Tensor) -> None:
        with self._clock.filling():
            self._fill(numbers, images, labels)
