"""A linear classifier, and what it says of many images: products in float32, doubtful rows again in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
BLOCK = 2048
"""Rows whose scores are computed together: they stay in the processor's cache."""
UNIT = 2.0**-24
"""Largest relative error of one rounding to float32."""


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """Scores (X - centre) weights + offset, all in float64."""

    centre: Array
    """[D]."""
    weights: Array
    """[D, C]."""
    offset: Array
    """[C]."""

    def scores(self, features: Array) -> Array:
        """Of `features` [M, D], in float64 [M, C]."""
        return (features.astype(np.float64) - self.centre) @ self.weights + self.offset

    def predict(self, features: Array) -> NDArray[np.int64]:
        """The best-scored class of each row; of equal scores the first one's."""
        return np.argmax(self.scores(features), axis=1)


class _Single:
    """A classifier in float32, and a bound on how far its scores are from those of float64."""

    def __init__(self, exact: LinearClassifier, centre: NDArray[np.float32]) -> None:
        self.exact = exact
        offset = exact.offset + (centre.astype(np.float64) - exact.centre) @ exact.weights
        self._weights = exact.weights.astype(np.float32)
        self._offset = offset.astype(np.float32)
        self._norm = float(np.sqrt(np.einsum("dc,dc->c", exact.weights, exact.weights).max()))
        self._largest = float(np.abs(offset).max())

    def predict(self, rows: Array, centred: NDArray[np.float32], norms: Array, scores: Array) -> NDArray[np.int64]:
        """Of rows [b, D], also given with the centre taken off and with their norms; `scores` [b, C] is overwritten.

        Let u be the unit of rounding. A product of D terms, in any order and with or without fused steps, is off by at
        most D u / (1 - D u) times the norms of both sides; centring, the weights' own rounding and the offset add a
        few u. So where two scores are further apart than twice that, their order is that of exact arithmetic.
        """
        np.matmul(centred, self._weights, out=scores)
        scores += self._offset
        best = np.argmax(scores, axis=1)
        every = np.arange(len(scores))
        top = scores[every, best]
        scores[every, best] = -np.inf
        second = scores.max(axis=1)
        terms = len(self._weights) + 8
        bound = 1.01 * UNIT * (terms / (1 - min(0.5, terms * UNIT)) * norms * self._norm + 4 * self._largest)
        # So written, scores that are no numbers are doubtful too.
        doubtful = np.flatnonzero(~(top.astype(np.float64) - second > 2 * bound))
        if len(doubtful):
            best[doubtful] = self.exact.predict(rows[doubtful])
        return best


def predictions(
    features: NDArray[np.float32], classifiers: Sequence[LinearClassifier]
) -> Iterator[tuple[slice, list[NDArray[np.int64]]]]:
    """What classifiers over the same C classes say of `features` [M, D]: block by block, a list with each one's [b].

    Each is what float64 gives, except where two scores are equal up to its own rounding.
    """
    classes = classifiers[0].weights.shape[1]
    centre = classifiers[0].centre.astype(np.float32)
    single = [_Single(classifier, centre) for classifier in classifiers] if classes > 1 else []
    size = min(BLOCK, len(features))
    centred = np.empty((size, features.shape[1]), dtype=np.float32)
    scores = np.empty((size, classes), dtype=np.float32)
    for start in range(0, len(features), BLOCK):
        rows = features[start : start + BLOCK]
        place, count = slice(start, start + len(rows)), len(rows)
        if classes == 1:
            yield place, [np.zeros(count, dtype=np.int64) for _ in classifiers]
            continue
        np.subtract(rows, centre, out=centred[:count])
        norms = np.sqrt(np.einsum("nd,nd->n", centred[:count], centred[:count]).astype(np.float64)) * (1 + 1e-3)
        yield place, [one.predict(rows, centred[:count], norms, scores[:count]) for one in single]


def accuracies(
    features: NDArray[np.float32], truth: NDArray[np.int64], classifiers: Sequence[LinearClassifier]
) -> NDArray[np.float64]:
    """The part of the rows [M, D] of which each classifier says the truth [M]."""
    right = np.zeros(len(classifiers), dtype=np.int64)
    for place, found in predictions(features, classifiers):
        right += [int((own == truth[place]).sum()) for own in found]
    return right / len(truth)
