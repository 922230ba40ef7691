"""Images and labels as training and evaluation are given them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.context import Output
from stages.data.manifest import dataset_meta
from stages.data.reader import Decoded, Stored


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


def label_shape(dataset: Output, classes: Sequence[int]) -> tuple[int, ...]:
    """Of one sample's labels: () for a number, (C,) where it can have several."""
    return (len(classes),) if dataset_meta(dataset).multi_label else ()


def write_labels(read: Sequence[Decoded | Stored], labels: Tensor) -> None:
    """Write the labels of some samples into `labels` [n] or, of zeros, [n, C]."""
    if labels.ndim == 1:
        labels.copy_(torch.tensor([sample.labels[0] for sample in read]))
        return
    for row, sample in enumerate(read):
        labels[row, list(sample.labels)] = 1.0
