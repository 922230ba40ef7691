"""Sums and products of rows, to which further rows are added: 5 shots are 1 shot and 4 images more of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
BLOCK = 2048
"""Rows that are in memory in float64 at a time."""
EPSILON = 1e-5
"""Added to each feature's deviation (big_vision, `fewshot_lsr.py`)."""
CANCELLED = 1e5
"""Mean squared distance from the origin, in variances, above which differences of sums are too inexact."""


class Moments:
    """Of rows [N, D] with labels [N], about a fixed origin [D], in float64."""

    def __init__(self, origin: Array, classes: int) -> None:
        width = len(origin)
        self.count = 0
        self.class_counts = np.zeros(classes, dtype=np.int64)
        self._origin = origin
        self._total = np.zeros(width)
        self._products = np.zeros((width, width))
        self._class_totals = np.zeros((classes, width))

    def add(self, rows: Array, labels: NDArray[np.int64]) -> None:
        """Further rows [n, D] and their labels [n], which rise."""
        self.count += len(rows)
        self.class_counts += np.bincount(labels, minlength=len(self.class_counts))
        for start in range(0, len(rows), BLOCK):
            block = np.subtract(rows[start : start + BLOCK], self._origin, dtype=np.float64)
            own = labels[start : start + BLOCK]
            self._total += block.sum(axis=0)
            first = np.flatnonzero(np.diff(own, prepend=-1))
            self._class_totals[own[first]] += np.add.reduceat(block, first, axis=0)
            # numpy sees that this is symmetric, and computes one triangle.
            self._products += block.T @ block

    @property
    def mean(self) -> Array:
        """Of each feature."""
        return self._origin + self._total / self.count

    @property
    def deviation(self) -> Array:
        """Of each feature, by the count (ddof 0), plus epsilon."""
        return np.sqrt(np.maximum(self._variance(), 0.0)) + EPSILON

    def are_exact(self) -> bool:
        """Whether the origin lies near enough to the rows for differences of sums to keep their digits."""
        square = np.diagonal(self._products) / self.count
        return bool((square <= CANCELLED * self.deviation**2).all())

    def gram(self) -> Array:
        """ZᵀZ of the standardised rows, a new array [D, D]."""
        scaled_mean, scale = np.sqrt(self.count) * (self._total / self.count), 1 / self.deviation
        gram = np.outer(scaled_mean, scaled_mean)
        np.subtract(self._products, gram, out=gram)
        gram *= scale[:, None]
        gram *= scale[None, :]
        return gram

    def class_sums(self) -> Array:
        """The sum of each class's standardised rows [C, D]."""
        return (self._class_totals - self.class_counts[:, None] * (self._total / self.count)) / self.deviation

    def _variance(self) -> Array:
        return np.diagonal(self._products) / self.count - (self._total / self.count) ** 2


def moments_about_mean(rows: Array, labels: NDArray[np.int64], classes: int) -> Moments:
    """Of rows about their own mean, which loses no digits."""
    found = Moments(rows.mean(axis=0, dtype=np.float64), classes)
    found.add(rows, labels)
    return found
