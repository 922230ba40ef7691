"""Rows of a batch on the network's device: its input, and what mixing makes of labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data.batches import Batch, EvaluationBatch
from stages.data.mixup import mix_classes, mix_images, mix_multi_hot
from stages.data.pixels import normalise


@dataclass(frozen=True, kw_only=True)
class Example:
    """Some rows of a batch, on the network's device."""

    pixels: Tensor
    """[b, R, R, 3], grey levels 0 to 255: bytes, or float32 where images are mixed."""
    images: Tensor
    """[b, 3, R, R]: the same as the network's input, in the precision that it computes in."""
    labels: Tensor
    """Of the rows themselves; see `stages.data.loader.Batch`."""
    targets: Tensor
    """What mixing makes of the labels; else the same."""
    samples: NDArray[np.int64]
    """Global sample numbers [b]; in an evaluation, places in the splits."""
    training: bool


class Examples:
    """Makes examples of the loader's batches, for a network that computes in `dtype` and tells `num_classes` apart."""

    def __init__(self, device: torch.device, dtype: torch.dtype, num_classes: int) -> None:
        self._device, self._dtype, self._num_classes = device, dtype, num_classes

    def of_rows(self, batch: Batch, rows: slice) -> Example:
        """Some rows of a batch, mixed where it says so."""
        images, labels = self._here(batch.images[rows]), self._here(batch.labels[rows])
        if batch.mixing is None:
            return self._example(images, labels, labels, batch.samples[rows])
        other = batch.mixing.rows(rows)
        weights = other.weights.to(self._device)
        mixed, others = mix_images(images, self._here(other.images), weights), other.labels.to(self._device)
        if labels.ndim == 2:
            targets = mix_multi_hot(labels, others, weights)
        else:
            targets = mix_classes(labels, others, weights, self._num_classes)
        return self._example(mixed, labels, targets, batch.samples[rows])

    def of_evaluation(self, batch: EvaluationBatch) -> Example:
        """All rows of a batch."""
        labels = self._here(batch.labels)
        return self._example(self._here(batch.images), labels, labels, batch.samples, training=False)

    def of_nothing(self, rows: int, resolution: int) -> Example:
        """Black images of the first class."""
        images = torch.zeros(rows, resolution, resolution, 3, dtype=torch.uint8, device=self._device)
        labels = torch.zeros(rows, dtype=torch.int64, device=self._device)
        return self._example(images, labels, labels, np.arange(rows))

    def _here(self, values: Tensor) -> Tensor:
        # Pinned memory is given to nobody else before its copy is done (torch's caching host allocator sees to it).
        return values.to(self._device, non_blocking=True)

    def _example(
        self, pixels: Tensor, labels: Tensor, targets: Tensor, samples: NDArray[np.int64], *, training: bool = True
    ) -> Example:
        images = normalise(pixels).to(self._dtype)
        return Example(pixels=pixels, images=images, labels=labels, targets=targets, samples=samples, training=training)
