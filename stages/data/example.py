"""One image of a data set, to show what its images are like."""

from __future__ import annotations

from cluster.storage import NotFound, Storage
from stages.context import Output
from stages.data.cache import CorruptShard
from stages.data.config import DataConfig
from stages.data.dataset import open_cache, open_shards
from stages.data.manifest import dataset_meta
from stages.data.reader import open_reader

SPLITS = ("test", "held_out_test", "validation", "train")
"""Where the image is taken from: the first of these that there is."""


def example_image(storage: Storage, dataset: Output) -> bytes | None:
    """The first image, encoded as it is stored, by a request for its bytes alone; None where it is there no more."""
    meta, config = dataset_meta(dataset), DataConfig(fetch="samples")
    split = next((name for name in SPLITS if name in meta.splits and meta.splits[name].count), None)
    if split is None:
        return None
    try:
        cache = open_cache(storage, dataset, config)
        reader = open_reader(cache, open_shards(cache, dataset, (split,)), config, range(len(meta.classes)), once=True)
        try:
            return reader.read_bytes(0, 0)[0]
        finally:
            reader.close()
    except (CorruptShard, NotFound):
        return None
