"""Choosing samples and writing their indexes, some shards at a time, as tasks of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cluster.storage import Storage
from stages.context import Context
from stages.data.index import Index
from stages.data.table import Shard
from stages.data.views import select, shard_index, write_index
from stages.subset.choice import sample_hashes, strata, thresholds
from stages.subset.config import SubsetConfig
from stages.subset.part import Part

SHARDS_PER_TASK = 64
"""Each index is small, and a task costs a few milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """A shard, by absolute addresses, and what of it is left out already."""

    name: str
    """Of its new index."""
    shard: Shard
    removed: tuple[int, ...]

    @property
    def count(self) -> int:
        """Samples that remain."""
        return self.shard.count - len(self.removed)


@dataclass(frozen=True, kw_only=True)
class ChoiceTask:
    """Some shards to choose from. Picklable."""

    storage: Storage
    folder: str
    """Key prefix of the stage's folder."""
    seed: int
    shards: tuple[Remaining, ...]
    limits: NDArray[np.float64] | None = None
    """The largest hash to keep of each class (see `strata`); None for every sample that remains."""

    def remaining(self) -> Iterator[tuple[Remaining, Index, NDArray[np.int64], NDArray[np.float64]]]:
        """Of each shard, its whole index, and numbers and hashes of the samples that remain, both [n]."""
        for one in self.shards:
            index = shard_index(self.storage, one.shard)
            numbers = np.setdiff1d(np.arange(len(index)), np.array(one.removed, dtype=np.int64))
            yield one, index, numbers, sample_hashes(index, one.shard.tar, self.seed)[numbers]


def choose(
    config: SubsetConfig, context: Context, name: str, classes: int, found: Sequence[tuple[Shard, Part]]
) -> Iterator[tuple[Shard | None, dict[int, int]]]:
    """Of each shard of a split: the one that stands for what is kept of it, if any, and its samples by label.

    `classes` are those of `strata`.
    """
    remaining = [
        Remaining(name=f"{name}-{number:06d}", shard=shard, removed=tuple(removed.index for removed in part.removed))
        for number, (shard, part) in enumerate(found)
    ]
    tasks = [
        ChoiceTask(
            storage=context.storage,
            folder=context.folder,
            seed=context.seed,
            shards=tuple(remaining[start : start + SHARDS_PER_TASK]),
        )
        for start in range(0, len(remaining), SHARDS_PER_TASK)
    ]
    limits = _limits(config, context, classes, tasks)
    chosen = context.tasks(write_chosen, [replace(task, limits=limits) for task in tasks], label="indexes")
    for shards in chosen:
        yield from shards


def _limits(
    config: SubsetConfig, context: Context, classes: int, tasks: Sequence[ChoiceTask]
) -> NDArray[np.float64] | None:
    """The largest hash to keep of each class. Takes 20 bytes of memory for each sample that remains."""
    if config.fraction == 1 and config.per_class is None:
        return None
    total, place = sum(one.count for task in tasks for one in task.shards), 0
    hashes, labels = np.empty(total), np.empty(total, dtype=np.int32)
    for own, classed in context.tasks(hash_samples, tasks, label="hashes"):
        hashes[place : place + len(own)], labels[place : place + len(own)] = own, classed
        place += len(own)
    return thresholds(hashes, labels, classes, config.fraction, config.per_class)


def hash_samples(task: ChoiceTask) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Hashes and strata of what remains of some shards, each [n]."""
    hashes, labels = zip(*((own, strata(index)[kept]) for _, index, kept, own in task.remaining()), strict=True)
    return np.concatenate(hashes), np.concatenate(labels)


def write_chosen(task: ChoiceTask) -> list[tuple[Shard | None, dict[int, int]]]:
    """Write the indexes of what is kept; returns new shards and samples by label. A whole shard keeps its index."""
    found = []
    for one, index, kept, hashes in task.remaining():
        if task.limits is not None:
            kept = kept[hashes <= task.limits[strata(index)[kept]]]
        chosen = select(index, kept.tolist())
        if len(chosen) == len(index):
            found.append((one.shard, index.class_counts()))
        else:
            shard = write_index(task.storage, task.folder, one.name, chosen, one.shard.tar)
            found.append((shard, chosen.class_counts()))
    return found
