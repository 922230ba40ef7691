"""Batches for training and evaluation: the right rows for each rank, prepared ahead by threads.

What a batch holds depends on the data set, the seed and the global sample numbers alone; world size,
threads and the place where a run starts change nothing in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cluster.storage.base import Storage
from stages.context import Output
from stages.data.batches import Batch, Mixing, label_shape
from stages.data.config import DataConfig
from stages.data.crops import Crops
from stages.data.dataset import open_cache, open_order, open_shards
from stages.data.fetch_ahead import FetchAhead
from stages.data.mixup import mixup_weights, partners
from stages.data.native.helper import native
from stages.data.order import rank_rows, rows_here
from stages.data.reader import open_reader
from stages.data.spent import Spent
from stages.data.training_images import TrainingImages
from stages.data.workers import Workers


class TrainLoader(Iterator[Batch]):
    """Endless batches of one rank, from global sample number `start` on. Close it, or use it in a `with`.

    `classes` are the data set's labels in the order of the network's outputs. No batch begins in a range
    [start, stop) of global sample numbers that is `left_out`. `pinned` images are copied to a GPU while it and this
    process go on. Raises UserError where `world_size` does not divide
    `global_batch`. What goes wrong in a thread is raised by `next`.
    """

    def __init__(
        self,
        storage: Storage,
        dataset: Output,
        splits: Sequence[str],
        config: DataConfig,
        *,
        resolution: int,
        seed: int,
        global_batch: int,
        rank: int,
        world_size: int,
        start: int,
        classes: Sequence[int],
        left_out: Sequence[tuple[int, int]] = (),
        pinned: bool = False,
        ranks_here: int = 1,
    ) -> None:
        cache = open_cache(storage, dataset, config)
        shards = open_shards(cache, dataset, splits)
        self._rows = rank_rows(global_batch, rank, world_size)
        self._order = open_order(shards, dataset, splits, config, seed)
        helper = native() if config.native else None
        self.native = helper is not None
        """Whether the native helper makes the crops."""
        self._reader = open_reader(cache, shards, config, classes, helper)
        self._images = TrainingImages(self._reader, Crops(helper), config, seed)
        self._fetch_ahead = None
        if config.fetch == "shards" and config.fetch_ahead:
            # Mixup's partners are anywhere in the global batch.
            own = range(global_batch) if config.mixup else rows_here(global_batch, rank, world_size, ranks_here)
            self._fetch_ahead = FetchAhead(cache, shards, self._order, start, (own, global_batch))
        self._config = config
        self._seed = seed
        self._global_batch = global_batch
        self.threads, labels = config.threads(ranks_here), label_shape(dataset, classes)
        """Threads that decode; 0 where the caller's own does."""
        self._workers = Workers(self.threads, self._fill, resolution, labels, pinned=pinned)
        self._ahead = config.read_ahead if self.threads else 0
        self._pending: deque[tuple[NDArray[np.int64], Callable[[], tuple[Tensor, Tensor]]]] = deque()
        self._left_out = left_out
        self._next = self._after_what_is_left_out(start)
        self.cursor = self._next
        """The first global sample number of the next batch."""

    def __next__(self) -> Batch:
        self._submit_up_to(1)
        samples, wait = self._pending.popleft()
        # Before waiting, so that the threads go on while this batch is used.
        self._submit_up_to(self._ahead)
        images, labels = wait()
        self.cursor = self._after_what_is_left_out(self.cursor + self._global_batch)
        return self._batch(samples, images, labels)

    def close(self) -> None:
        """Stop the threads, and close the shards; what they have prepared is dropped."""
        self._workers.close()
        self._pending.clear()
        if self._fetch_ahead is not None:
            self._fetch_ahead.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit_up_to(self, pending: int) -> None:
        while len(self._pending) < pending:
            samples = self._with_partners(np.arange(self._next + self._rows[0], self._next + self._rows[1]))
            self._pending.append((samples, self._workers.submit(samples, len(samples))))
            if self._fetch_ahead is not None:
                self._fetch_ahead.look(samples)
            self._next = self._after_what_is_left_out(self._next + self._global_batch)

    def _after_what_is_left_out(self, number: int) -> int:
        """The first global sample number from this one on at which a batch may begin."""
        for start, stop in sorted(self._left_out):
            if start <= number < stop:
                number = stop
        return number

    def _with_partners(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's samples and, after them, the partners that other ranks have."""
        if not self._config.mixup:
            return samples
        others = partners(samples, self._global_batch)
        return np.concatenate([samples, np.setdiff1d(others, samples)])

    def _batch(self, prepared: NDArray[np.int64], images: Tensor, labels: Tensor) -> Batch:
        count = self._rows[1] - self._rows[0]
        samples = prepared[:count]
        if not self._config.mixup:
            return Batch(images=images, labels=labels, samples=samples)
        places = np.argsort(prepared)[np.searchsorted(np.sort(prepared), partners(samples, self._global_batch))]
        weights = mixup_weights(samples, seed=self._seed, global_batch=self._global_batch, alpha=self._config.mixup)
        mixing = Mixing(images=images[places], labels=labels[places], weights=weights)
        return Batch(images=images[:count], labels=labels[:count], samples=samples, mixing=mixing)

    @property
    def replaced(self) -> int:
        """Unreadable samples that this rank has met, each of which another one of its shard stood in for."""
        return self._reader.replaced

    def spent(self) -> Spent:
        """The threads' time so far, that of what they are at included."""
        return self._workers.spent()

    def _fill(self, samples: NDArray[np.int64], images: NDArray[np.uint8], labels: Tensor) -> None:
        _, shards, indices = self._order.locate(samples)
        self._images.write(samples, list(zip(shards.tolist(), indices.tolist(), strict=True)), images, labels)
