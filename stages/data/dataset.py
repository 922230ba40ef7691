"""A data set's shards, opened through a node's cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from cluster.storage import Storage
from stages.context import Output
from stages.data.cache import ShardCache
from stages.data.config import DataConfig
from stages.data.manifest import Part, base_folder, dataset_meta
from stages.data.mixed_order import MixedOrder, mixed_order
from stages.data.order import Order
from stages.data.table import ClassCounts, File, Shard, Shards, ShardTable
from stages.temporary import temporary_folder

T = TypeVar("T")


def open_cache(storage: Storage, output: Output, config: DataConfig) -> ShardCache:
    """The cache of this node, for one data set's files."""
    folder = Path(config.cache).expanduser() if config.cache else None
    return ShardCache(storage, base_folder(output), folder, int(config.cache_gigabytes * 1e9))


def open_shards(cache: ShardCache, output: Output, splits: Iterable[str]) -> Shards:
    """The shards of several splits, end to end. Raises UserError for a split that there is not."""
    meta = dataset_meta(output)
    return Shards(_open_file(cache, _table_file(output, meta.split(name).table), ShardTable) for name in splits)


def open_class_counts(cache: ShardCache, output: Output, split: str) -> ClassCounts | None:
    """Samples by label of each shard of a split; None where the data set does not say. Raises UserError."""
    path = dataset_meta(output).split(split).class_table
    if path not in [entry["path"] for entry in output.manifest["files"]]:
        return None
    return _open_file(cache, _table_file(output, path), ClassCounts)


def stored_shards(storage: Storage, output: Output, split: str) -> Sequence[Shard]:
    """The shards of one split, past any cache. Raises NotFound; UserError for a split that there is not."""
    with temporary_folder() as folder:
        path = folder / "table"
        storage.download(output.key(dataset_meta(output).split(split).table), path)
        # Read whole, since the file goes.
        return ShardTable(path)[:]


def open_order(
    shards: Shards, output: Output, splits: Sequence[str], config: DataConfig, seed: int
) -> Order | MixedOrder:
    """The order of the shards of several splits: that of a mixture where one of them is one."""
    meta = dataset_meta(output)
    parts: list[tuple[int, float]] = []
    for split in (meta.split(name) for name in splits):
        own = split.parts or (Part(shards=split.shards, share=1.0),)
        parts += [(part.shards, part.share * split.count) for part in own]
    if not any(meta.split(name).parts for name in splits):
        parts = [(len(shards), 1.0)]
    return mixed_order(shards.counts, parts, seed=seed, streams=config.streams, window=config.window)


def _table_file(output: Output, path: str) -> File:
    entry = next(entry for entry in output.manifest["files"] if entry["path"] == path)
    address = output.key(path).removeprefix(f"{base_folder(output)}/")
    return File(address=address, bytes=entry["bytes"], sha256=entry["sha256"])


def _open_file(cache: ShardCache, file: File, read: Callable[[str], T]) -> T:
    descriptor = cache.open(file)
    try:
        # By descriptor: the file may be evicted, the copy that is open stays.
        return read(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
