"""Which image goes into which split and shard: drawn by the seed, from numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.data.random import permutation
from stages.ingest.config import IngestConfig
from stages.ingest.sources.base import SPLITS, Listing

Numbers = NDArray[np.int64]
NAMES = (*SPLITS, "held_out", "held_out_test")
"""The splits that there can be: a source's own, and the two of the classes that are held out."""

_TAR_BYTES = 2048
"""About what a tar adds to an image: two headers, the label, and padding."""


def draw_held_out(classes: int, count: int, seed: int) -> tuple[int, ...]:
    """Labels of the classes that are held out, sorted. Raises UserError where none would be left."""
    if count >= classes:
        raise UserError(f"held_out_classes={count} leaves none of {classes} classes to train on: give a smaller number")
    return tuple(sorted(permutation(classes, seed, "held-out classes")[:count].tolist()))


def draw_splits(listing: Listing, config: IngestConfig, held_out: Sequence[int], seed: int) -> dict[str, Numbers]:
    """Image numbers of each split that is not empty, shuffled.

    A split that the source lacks is drawn from its training images, from each class alike (images with
    several labels: from all alike). Held-out classes leave the splits for `held_out` (train and
    validation) and `held_out_test`.
    """
    if held_out and listing.starts is not None:
        raise UserError(f"held_out_classes={len(held_out)}: not for images that have several labels; set it to 0")
    splits = listing.splits.copy()
    fractions = {SPLITS.index("test"): config.test_fraction, SPLITS.index("validation"): config.validation_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if not np.any(splits == split)}
    for label, members in enumerate(_groups(listing)):
        shuffled = members[permutation(len(members), seed, "splits", label)]
        for split, fraction in missing.items():
            # At least one image of a class stays for training.
            count = max(0, min(int(fraction * len(members) + 0.5), len(shuffled) - 1))
            splits[shuffled[:count]] = split
            shuffled = shuffled[count:]
    if held_out:
        hidden = np.isin(listing.labels, held_out)
        test = splits == SPLITS.index("test")
        splits[hidden] = np.where(test[hidden], NAMES.index("held_out_test"), NAMES.index("held_out"))
    found = {name: np.flatnonzero(splits == number) for number, name in enumerate(NAMES)}
    return {
        name: numbers[permutation(len(numbers), seed, f"shuffle {name}")]
        for name, numbers in found.items()
        if len(numbers)
    }


def fill_shards(listing: Listing, numbers: Numbers, config: IngestConfig) -> list[Numbers]:
    """The images of each shard: in order, at least one each. As few shards as there can be, of about equal sizes.

    So the last one is no small rest, and tasks that run side by side end together.
    """
    sizes = listing.sizes[numbers] + _TAR_BYTES
    ends = np.cumsum(sizes)
    most_bytes, total = int(config.shard_megabytes * 2**20), int(sizes.sum())
    limit = min(most_bytes, -(-total // -(-total // most_bytes)) + int(sizes.max(initial=0)))
    most = config.samples_per_shard or len(numbers)
    shards, start = [], 0
    while start < len(numbers):
        before = int(ends[start - 1]) if start else 0
        full = int(np.searchsorted(ends, before + limit, side="right"))
        stop = min(max(full, start + 1), start + most)
        shards.append(numbers[start:stop])
        start = stop
    return shards


def _groups(listing: Listing) -> list[Numbers]:
    """Numbers of the training images of each class; of all of them where images have several labels."""
    pool = np.flatnonzero(listing.splits == SPLITS.index("train"))
    if listing.starts is not None:
        return [pool]
    by_class = pool[np.argsort(listing.labels[pool], kind="stable")]
    bounds = np.searchsorted(listing.labels[by_class], np.arange(len(listing.classes) + 1)).tolist()
    return [by_class[bounds[label] : bounds[label + 1]] for label in range(len(listing.classes))]
