"""Votes of the nearest images, weighted by their cosine: no training at all.

As DINO's evaluation (Caron et al., 2021, appendix F.1; `eval_knn.py`): features of length 1, the k images of the
greatest cosine vote for their classes with exp(cosine / T), k = 20 and T = 0.07 there. Fewer than k images all vote; of
equal cosines those of earlier images count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
BLOCK = 512
"""Rows whose cosines are in memory at a time."""
SHORTEST = 1e-12
"""Length below which a feature counts as this long, so that one of zeros has cosines of 0."""


def neighbour_predictions(
    features: Array,
    few: Array,
    labels: NDArray[np.int64],
    counts: Sequence[int],
    *,
    classes: int,
    neighbours: int,
    temperature: float,
) -> NDArray[np.int64]:
    """Of rows [M, D], by the first n of `few` [N, D], for each n of `counts`: [len(counts), M]. All in float64."""
    others = _of_length_one(few)
    found = np.empty((len(counts), len(features)), dtype=np.int64)
    for start in range(0, len(features), BLOCK):
        cosines = _of_length_one(features[start : start + BLOCK]) @ others.T
        for number, count in enumerate(counts):
            votes = _votes(cosines[:, :count], labels[:count], classes, neighbours, temperature)
            found[number, start : start + BLOCK] = np.argmax(votes, axis=1)
    return found


def _votes(cosines: Array, labels: NDArray[np.int64], classes: int, neighbours: int, temperature: float) -> Array:
    """Of rows with their cosines [b, n]: [b, C]."""
    rows, count = cosines.shape
    nearest = np.broadcast_to(np.arange(count), (rows, count))
    if neighbours < count:
        nearest = _nearest(cosines, neighbours)
    # The greatest cosine is 1: so no power overflows, and the order stays.
    weights = np.exp((np.take_along_axis(cosines, nearest, axis=1) - 1.0) / temperature)
    places = np.arange(rows)[:, None] * classes + labels[nearest]
    votes = np.bincount(places.ravel(), weights.ravel(), minlength=rows * classes)
    return votes.astype(np.float64, copy=False).reshape(rows, classes)


def _nearest(cosines: Array, neighbours: int) -> NDArray[np.intp]:
    """Places of the greatest cosines of each row [b, k]; of equal ones those that come first."""
    count = cosines.shape[1]
    nearest = np.argpartition(cosines, count - neighbours, axis=1)[:, count - neighbours :]
    least = np.take_along_axis(cosines, nearest, axis=1).min(axis=1)
    # Where more are as near as the farthest of them, which ones were taken is the partition's accident.
    for row in np.flatnonzero((cosines >= least[:, None]).sum(axis=1) > neighbours):
        nearest[row] = np.argsort(-cosines[row], kind="stable")[:neighbours]
    return nearest


def _of_length_one(rows: Array) -> Array:
    wide = rows.astype(np.float64)
    wide /= np.maximum(np.sqrt(np.einsum("nd,nd->n", wide, wide)), SHORTEST)[:, None]
    return wide
