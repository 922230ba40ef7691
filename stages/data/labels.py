"""The labels of all samples of some splits, from the indexes alone: no image is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.storage import Storage
from stages.context import Output
from stages.data.config import DataConfig
from stages.data.dataset import open_cache, open_shards
from stages.data.index import read_index


def split_labels(storage: Storage, dataset: Output, splits: Sequence[str], config: DataConfig) -> NDArray[np.int64]:
    """[n], in the order of the samples, the splits laid end to end. Of data sets of one label for each sample."""
    cache = open_cache(storage, dataset, config)
    found = [np.zeros(0, dtype=np.int64)]
    for shard in open_shards(cache, dataset, splits):
        index = read_index(cache.read(shard.index))
        if index.starts is not None or len(index) != shard.count:
            raise ValueError(f"{shard.index.address} has no label for each of {shard.count} samples")
        found.append(index.labels.astype(np.int64))
    return np.concatenate(found)
