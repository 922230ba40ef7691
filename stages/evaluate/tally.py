"""What is counted of a network's answers. Counts are whole numbers: equal whoever counts which images, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.errors import UserError

TOP = 5
"""The label is among so many best-scored classes."""


@dataclass
class Tally:
    """Counts over images. `pairs` are those of the true and the predicted class, for images of one label each."""

    bins: int
    images: int = 0
    unlabelled: int = 0
    """Images without any label, which nothing can be right about: they count nowhere else (ReaL has 3,163 of them)."""
    hits: int = 0
    top_hits: int = 0
    loss: float = 0.0
    """Sum of the cross-entropies of the softmax, of the most likely label where there are several."""
    pairs: dict[tuple[int, int], int] = field(default_factory=dict)
    in_bin: NDArray[np.int64] = field(init=False)
    hits_in_bin: NDArray[np.int64] = field(init=False)
    confidence_in_bin: NDArray[np.float64] = field(init=False)
    """Sums of the confidences, the softmax of the best-scored class."""

    def __post_init__(self) -> None:
        self.in_bin, self.hits_in_bin = np.zeros(self.bins, np.int64), np.zeros(self.bins, np.int64)
        self.confidence_in_bin = np.zeros(self.bins, np.float64)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: `logits` [n, C]; `labels` [n], or several of each image as [n, C] of 0 and 1.

        Of classes with equal scores the first is better. Raises UserError where a logit is not finite.
        """
        if not torch.isfinite(logits).all():
            bad = int((~torch.isfinite(logits)).any(dim=1).sum())
            raise UserError(f"the model's logits are NaN or infinite for {bad} of {len(logits)} images: it is damaged")
        several = labels.ndim == 2
        if several:
            named = labels.any(dim=1)
            self.unlabelled += int((~named).sum())
            logits, labels = logits[named], labels[named].bool()
        self.images += len(logits)
        if not len(logits):
            return
        logits = logits.double()
        best = logits.argmax(dim=1)
        likely = torch.log_softmax(logits, dim=1)
        if several:
            right = labels.gather(1, best[:, None])[:, 0]
            label = likely.masked_fill(~labels, -torch.inf).argmax(dim=1)
        else:
            right, label = best == labels, labels
            for code, count in zip(*_counted(labels * logits.shape[1] + best), strict=True):
                pair = divmod(code, logits.shape[1])
                self.pairs[pair] = self.pairs.get(pair, 0) + count
        self.hits += int(right.sum())
        self.top_hits += int((_better(logits, label) < TOP).sum())
        self.loss -= float(likely.gather(1, label[:, None]).sum())
        self._calibrate(likely.gather(1, best[:, None])[:, 0].exp().numpy(), right.numpy())

    def merge(self, others: Iterable[Tally]) -> Tally:
        """Add other tallies to this one."""
        for other in others:
            for name in ("images", "unlabelled", "hits", "top_hits", "loss"):
                setattr(self, name, getattr(self, name) + getattr(other, name))
            for pair, count in other.pairs.items():
                self.pairs[pair] = self.pairs.get(pair, 0) + count
            self.in_bin += other.in_bin
            self.hits_in_bin += other.hits_in_bin
            self.confidence_in_bin += other.confidence_in_bin
        return self

    @property
    def calibration_error(self) -> float:
        """Mean distance of confidence and accuracy over the bins, weighted by their images (Guo et al., 2017)."""
        return float(np.abs(self.confidence_in_bin - self.hits_in_bin).sum() / self.images)

    def _calibrate(self, confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> None:
        # Bins are (0, 1/n], (1/n, 2/n], …, as in the paper.
        bins = np.clip(np.ceil(confidence * self.bins).astype(np.int64) - 1, 0, self.bins - 1)
        self.in_bin += np.bincount(bins, minlength=self.bins)
        self.hits_in_bin += np.bincount(bins[right], minlength=self.bins)
        self.confidence_in_bin += np.bincount(bins, weights=confidence, minlength=self.bins)


def _better(logits: Tensor, label: Tensor) -> Tensor:
    """How many classes have a better score than the label [n]."""
    own = logits.gather(1, label[:, None])
    earlier = torch.arange(logits.shape[1]) < label[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)


def _counted(codes: Tensor) -> tuple[list[int], list[int]]:
    values, counts = torch.unique(codes, return_counts=True)
    return values.tolist(), counts.tolist()
