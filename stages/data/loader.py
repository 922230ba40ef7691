"""Batches for training and evaluation: the right rows for each rank, prepared ahead by threads.

What a batch holds depends on the data set, the seed and the global sample numbers alone; world size,
threads and the place where a run starts change nothing in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.storage.base import Storage
from stages.context import Output
from stages.data.cache import ShardCache
from stages.data.config import DataConfig, RandAugment
from stages.data.crops import Crops
from stages.data.dataset import open_cache, open_order, open_shards
from stages.data.evaluation import evaluation_image
from stages.data.fetch_ahead import FetchAhead
from stages.data.manifest import dataset_meta
from stages.data.mixup import mixup_weights, partners
from stages.data.native.helper import Native, native
from stages.data.order import in_turn, rank_rows
from stages.data.randaugment import LANES, randaugment
from stages.data.random import uniform
from stages.data.reader import Decoded, SampleReader, Stored
from stages.data.table import Shards
from stages.data.transforms import CROP_LANES, crop_boxes


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What each row of a batch is mixed with, on the network's device (see `stages.data.mixup`)."""

    images: Tensor
    """Of the partners, as in Batch."""
    labels: Tensor
    weights: Tensor
    """float32 [b]: each row's own share."""

    def rows(self, rows: slice) -> Mixing:
        """That of some rows."""
        return Mixing(images=self.images[rows], labels=self.labels[rows], weights=self.weights[rows])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's rows of one update."""

    images: Tensor
    """uint8 [b, R, R, 3]; `stages.data.pixels.normalise` makes the network's input of them, on its device."""
    labels: Tensor
    """int64 [b], positions in the task's list of classes; float32 [b, C] of 0 and 1 where samples have several."""
    samples: NDArray[np.int64]
    """Global sample numbers [b]."""
    mixing: Mixing | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationBatch:
    """One rank's rows of one evaluation step; padding and unreadable rows have `mask` False and zeros else."""

    images: Tensor
    labels: Tensor
    mask: Tensor
    """bool [b]."""
    samples: NDArray[np.int64]
    """Places of the samples in the splits [b], the same ones on any number of ranks."""


Fill = Callable[[NDArray[np.int64], NDArray[np.uint8], Tensor], None]
"""Write the images [n, R, R, 3] and labels [n] or [n, C] of the samples with these numbers [n]."""


class _Workers:
    """Fills tensors in background threads, each one a part of the rows; in the caller's where there are none."""

    def __init__(
        self, threads: int, fill: Fill, resolution: int, label_shape: tuple[int, ...], *, pinned: bool = False
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader") if threads else None
        self._threads = threads
        self._fill = fill
        self._resolution = resolution
        self._label_shape = label_shape
        self._pinned = pinned

    def submit(self, numbers: NDArray[np.int64], rows: int) -> Callable[[], tuple[Tensor, Tensor]]:
        """Begin to fill tensors of `rows` rows, the first ones with these samples; returns how to wait."""
        size = self._resolution
        images = torch.zeros(rows, size, size, 3, dtype=torch.uint8, pin_memory=self._pinned)
        labels = torch.zeros(rows, *self._label_shape, dtype=torch.float32 if self._label_shape else torch.int64)
        pixels = images.numpy()
        futures: list[Future[None]] = []
        for part in np.array_split(np.arange(len(numbers)), max(1, self._threads)):
            if len(part) and self._pool is not None:
                rows_of_part = slice(int(part[0]), int(part[-1]) + 1)
                task = (numbers[rows_of_part], pixels[rows_of_part], labels[rows_of_part])
                futures.append(self._pool.submit(self._fill, *task))

        def wait() -> tuple[Tensor, Tensor]:
            if self._pool is None and len(numbers):
                self._fill(numbers, pixels[: len(numbers)], labels[: len(numbers)])
            for future in futures:
                future.result()
            return images, labels

        return wait

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


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
    ) -> None:
        cache = open_cache(storage, dataset, config)
        shards = open_shards(cache, dataset, splits)
        self._rows = rank_rows(global_batch, rank, world_size)
        self._order = open_order(shards, dataset, splits, config, seed)
        helper = native() if config.native else None
        self._reader = _reader(cache, shards, config, classes, helper)
        self._crops = Crops(helper)
        self._fetch_ahead = None
        if config.fetch == "shards" and config.fetch_ahead:
            self._fetch_ahead = FetchAhead(cache, shards, self._order, start, int(config.cache_gigabytes * 1e9))
        self._config = config
        self._resolution = resolution
        self._seed = seed
        self._global_batch = global_batch
        label_shape = _label_shape(dataset, classes)
        self._workers = _Workers(config.loader_threads, self._fill, resolution, label_shape, pinned=pinned)
        self._ahead = config.read_ahead if config.loader_threads else 0
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
        """Stop the threads; what they have prepared is dropped."""
        self._workers.close()
        self._pending.clear()
        if self._fetch_ahead is not None:
            self._fetch_ahead.close()

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

    def _fill(self, samples: NDArray[np.int64], images: NDArray[np.uint8], labels: Tensor) -> None:
        config = self._config
        _, shards, indices = self._order.locate(samples)
        places = list(zip(shards.tolist(), indices.tolist(), strict=True))
        read = [self._reader.stored_or_replaced(*place) for place in places]
        numbers = uniform(self._seed, "crop", samples, CROP_LANES)
        boxes = self._boxes([sample.size for sample in read], numbers)
        flips = (uniform(self._seed, "flip", samples, 1)[:, 0] < 0.5) & config.flip
        for row, (box, flip) in enumerate(zip(boxes, flips.tolist(), strict=True)):
            if not self._crops.write(read[row], box, flip, images[row]):
                # Something is wrong with it, so that the plain way has to say what stands here.
                read[row] = sample = self._reader.decoded_or_replaced(*places[row])
                self._crops.write(sample, self._boxes([sample.size], numbers[row : row + 1])[0], flip, images[row])
        if config.randaugment is not None:
            self._augment(samples, images, config.randaugment)
        _write_labels(read, labels)

    def _boxes(self, sizes: Sequence[tuple[int, int]], numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        config = self._config
        drawn = {"area": config.crop_area, "ratio": config.crop_ratio, "sampling": config.crop_sampling}
        return crop_boxes(np.array(sizes, dtype=np.int64), numbers, **drawn)

    def _augment(self, samples: NDArray[np.int64], images: NDArray[np.uint8], config: RandAugment) -> None:
        numbers = uniform(self._seed, "randaugment", samples, config.layers * LANES)
        for row in range(len(samples)):
            images[row] = randaugment(images[row], numbers[row], layers=config.layers, magnitude=config.magnitude)


def evaluation_batches(
    storage: Storage,
    dataset: Output,
    splits: Sequence[str],
    *,
    resolution: int,
    batch: int,
    rank: int,
    world_size: int,
    classes: Sequence[int],
    config: DataConfig,
    span: tuple[int, int] | None = None,
    places: NDArray[np.int64] | None = None,
) -> Iterator[EvaluationBatch]:
    """All samples of the splits, each once over all ranks, in up to `batch` rows a rank and step.

    With a `span` they are those whose places, the splits laid end to end, lie in [start, stop); with `places` those
    at these places [n], in that order.

    A sample that cannot be decoded is told and masked like padding, the same one on any number of ranks; more than
    `max_bad` of them raise UnreadableImage. Every rank gets the same number of batches of the same shape: a forward
    pass may be collective.
    """
    cache = open_cache(storage, dataset, config)
    shards = open_shards(cache, dataset, splits)
    first, last = span or (0, int(shards.counts.sum()) if places is None else len(places))
    rows = min(batch, -(-(last - first) // world_size))
    reader = _reader(cache, shards, config, classes)
    unreadable: set[int] = set()

    def fill(numbers: NDArray[np.int64], images: NDArray[np.uint8], labels: Tensor) -> None:
        places = zip(numbers.tolist(), *(p.tolist() for p in in_turn(shards.counts, numbers)), strict=True)
        for row, (number, shard, index) in enumerate(places):
            sample = reader.read_or_none(shard, index)
            if sample is None:
                unreadable.add(number)
                continue
            images[row] = evaluation_image(sample.image, config.evaluation, resolution)
            _write_labels([sample], labels[row : row + 1])

    workers = _Workers(config.loader_threads, fill, resolution, _label_shape(dataset, classes))
    starts = deque[int]()
    if first < last:
        starts.extend(range(first + rank * rows, last + rank * rows, rows * world_size))
    pending: deque[tuple[int, NDArray[np.int64], Callable[[], tuple[Tensor, Tensor]]]] = deque()
    try:
        while starts or pending:
            while starts and len(pending) <= config.read_ahead:
                start = starts.popleft()
                numbers = np.arange(start, max(start, min(start + rows, last)))
                if places is not None:
                    numbers = places[numbers]
                pending.append((start, numbers, workers.submit(numbers, rows)))
            start, numbers, wait = pending.popleft()
            images, labels = wait()
            readable = [number not in unreadable for number in numbers.tolist()]
            mask = torch.tensor([*readable, *[False] * (rows - len(readable))])
            samples = np.arange(start, start + rows)
            if places is not None:
                samples = np.append(numbers, np.full(rows - len(numbers), -1))
            yield EvaluationBatch(images=images, labels=labels, mask=mask, samples=samples)
    finally:
        workers.close()


def _reader(
    cache: ShardCache, shards: Shards, config: DataConfig, classes: Sequence[int], helper: Native | None = None
) -> SampleReader:
    return SampleReader(
        cache,
        shards,
        classes,
        whole=config.fetch == "shards",
        max_bad=config.max_bad,
        skip_corrupt=config.corrupt_shards == "skip",
        # Each stream reads from one block, whose samples may lie in several shards.
        open_shards=max(128, 4 * config.streams),
        native=helper,
    )


def _label_shape(dataset: Output, classes: Sequence[int]) -> tuple[int, ...]:
    return (len(classes),) if dataset_meta(dataset).multi_label else ()


def _write_labels(read: Sequence[Decoded | Stored], labels: Tensor) -> None:
    if labels.ndim == 1:
        labels.copy_(torch.tensor([sample.labels[0] for sample in read]))
        return
    for row, sample in enumerate(read):
        labels[row, list(sample.labels)] = 1.0
