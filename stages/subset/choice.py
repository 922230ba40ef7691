"""Which samples of each class are kept: those with the smallest hashes, so that smaller parts lie in larger ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.data.index import Index
from stages.data.random import uniform
from stages.data.table import File


def sample_hashes(index: Index, tar: File, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each sample of a shard, [n]: a function of the seed, the tar's bytes and the place in it.

    So a sample keeps its number in every view of its tar.
    """
    return uniform(seed, f"subset {tar.sha256}", index.offsets.astype(np.int64), 1)[:, 0]


def strata(index: Index) -> NDArray[np.int32]:
    """What samples are chosen within, [n]: their class, or 0 for all where samples have several."""
    return index.labels if index.starts is None else np.zeros(len(index), dtype=np.int32)


def kept_of(count: int, fraction: float, per_class: int | None) -> int:
    """How many of a class of `count` samples are kept: rounded, and one at least."""
    kept = max(1, int(fraction * count + 0.5)) if count else 0
    return kept if per_class is None else min(kept, per_class)


def thresholds(
    hashes: NDArray[np.float64], labels: NDArray[np.int32], classes: int, fraction: float, per_class: int | None
) -> NDArray[np.float64]:
    """The largest hash that is kept of each class, [classes]; -1 where a class has no samples.

    `hashes` and `labels` are those of all samples, [n].
    """
    found = np.full(classes, -1.0)
    order = np.argsort(labels, kind="stable")
    edges = np.cumsum([0, *np.bincount(labels, minlength=classes)])
    for label in range(classes):
        own = hashes[order[edges[label] : edges[label + 1]]]
        if len(own):
            last = kept_of(len(own), fraction, per_class) - 1
            found[label] = np.partition(own, last)[last]
    return found
