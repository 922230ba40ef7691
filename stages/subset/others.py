"""The images that are left out: those of other data sets' splits, numbered through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.storage import Storage
from stages.context import Inputs
from stages.data.index import Index
from stages.data.manifest import DatasetMeta, dataset_meta
from stages.data.table import Shard
from stages.data.views import absolute_shards, shard_index
from stages.subset.config import SubsetConfig


@dataclass(frozen=True, kw_only=True)
class Other:
    """A shard of such images."""

    stage: str
    data: str
    """Name of the data set."""
    split: str
    shard: Shard


class Others:
    """All such shards: images are numbered in their order. Tells where a number lies."""

    def __init__(self, storage: Storage, rows: Sequence[Other]) -> None:
        self.rows = rows
        self._index = lru_cache(maxsize=16)(lambda row: shard_index(storage, rows[row].shard))

    @cached_property
    def _ends(self) -> Any:
        return np.cumsum([row.shard.count for row in self.rows], dtype=np.int64)

    def place(self, number: int) -> dict[str, Any]:
        """Where an image is, in words for a report."""
        row = int(np.searchsorted(self._ends, number, side="right"))
        own, index = self.rows[row], number - (int(self._ends[row - 1]) if row else 0)
        found: Index = self._index(row)
        return {
            "stage": own.stage,
            "data": own.data,
            "split": own.split,
            "shard": own.shard.tar.address,
            "index": index,
            "offset": int(found.offsets[index]),
        }


def find_others(config: SubsetConfig, inputs: Inputs, storage: Storage) -> Others:
    """The shards of `without_splits` of each data set. Raises UserError for one that has none of them."""

    def rows() -> Iterator[Other]:
        for place, stage in enumerate(config.without):
            output = inputs[f"without.{place}"]
            meta = dataset_meta(output)
            for split in _splits(config, stage, meta):
                for shard in absolute_shards(storage, output, split):
                    yield Other(stage=stage, data=meta.name, split=split, shard=shard)

    return Others(storage, list(rows()))


def _splits(config: SubsetConfig, stage: str, meta: DatasetMeta) -> list[str]:
    found = [name for name in dict.fromkeys(config.without_splits) if name in meta.splits]
    if not found:
        raise UserError(
            f"without: data set {meta.name!r} of {stage} has none of without_splits={list(config.without_splits)}: "
            f"it has {', '.join(meta.splits)}"
        )
    return found
