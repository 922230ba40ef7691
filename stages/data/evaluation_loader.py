"""Batches for evaluation: each sample once over all ranks, prepared ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.storage.base import Storage
from stages.context import Output
from stages.data.batches import EvaluationBatch, label_shape, write_labels
from stages.data.config import DataConfig
from stages.data.crops import Crops
from stages.data.dataset import open_cache, open_shards
from stages.data.evaluation import evaluation_image
from stages.data.native.helper import native
from stages.data.order import in_turn
from stages.data.reader import Decoded, SampleReader, Stored, open_reader
from stages.data.workers import Workers


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
    helper = native() if config.native else None
    images = _Images(open_reader(cache, shards, config, classes, helper, once=True), Crops(helper), config, resolution)
    unreadable: set[int] = set()

    def fill(numbers: NDArray[np.int64], pixels: NDArray[np.uint8], labels: Tensor) -> None:
        found = zip(numbers.tolist(), *(p.tolist() for p in in_turn(shards.counts, numbers)), strict=True)
        for row, (number, shard, index) in enumerate(found):
            sample = images.write((shard, index), pixels[row])
            if sample is None:
                unreadable.add(number)
            else:
                write_labels([sample], labels[row : row + 1])

    workers = Workers(config.threads(), fill, resolution, label_shape(dataset, classes))
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
            pixels, labels = wait()
            readable = [number not in unreadable for number in numbers.tolist()]
            mask = torch.tensor([*readable, *[False] * (rows - len(readable))])
            samples = np.arange(start, start + rows)
            if places is not None:
                samples = np.append(numbers, np.full(rows - len(numbers), -1))
            yield EvaluationBatch(images=pixels, labels=labels, mask=mask, samples=samples)
    finally:
        workers.close()


class _Images:
    """Writes whole images at the network's resolution."""

    def __init__(self, reader: SampleReader, crops: Crops, config: DataConfig, resolution: int) -> None:
        self._reader, self._crops, self._config, self._resolution = reader, crops, config, resolution

    def write(self, place: tuple[int, int], out: NDArray[np.uint8]) -> Decoded | Stored | None:
        """The sample at (shard, index) into `out` [R, R, 3]; None, and zeros there, where it is unreadable."""
        if self._config.evaluation.method == "resize":
            # The whole image as a crop, which the helper makes without the image as a whole.
            sample = self._reader.stored_or_none(*place)
            if sample is not None and self._crops.write(sample, np.array([0, 0, *sample.size]), False, out):
                return sample
            # The helper gave up, or there is nothing to read.
            return self._plainly(None if sample is None else self._reader.decoded_or_none(*place), out)
        return self._plainly(self._reader.read_or_none(*place), out)

    def _plainly(self, sample: Decoded | None, out: NDArray[np.uint8]) -> Decoded | None:
        out[...] = 0 if sample is None else evaluation_image(sample.image, self._config.evaluation, self._resolution)
        return sample
