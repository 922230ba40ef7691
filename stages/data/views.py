"""Data sets made of other data sets' tars: new indexes and tables, no image copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.storage import Storage
from stages.context import Context, Output, sha256
from stages.data.cache import CorruptShard, ShardCache, locate
from stages.data.dataset import open_shards
from stages.data.index import Index, read_index
from stages.data.manifest import Split, base_folder
from stages.data.table import File, Shard, table_bytes


def absolute(storage: Storage, output: Output, file: File) -> File:
    """A file of a data set by an address that holds everywhere."""
    if "://" in file.address:
        return file
    return File(address=f"{storage.url}/{base_folder(output)}/{file.address}", bytes=file.bytes, sha256=file.sha256)


def absolute_shards(storage: Storage, output: Output, split: str) -> list[Shard]:
    """The shards of a split, tar and index by addresses that hold everywhere."""
    shards = open_shards(ShardCache(storage, base_folder(output)), output, [split])
    return [
        Shard(tar=absolute(storage, output, shard.tar), index=absolute(storage, output, shard.index), count=shard.count)
        for shard in shards
    ]


def shard_index(storage: Storage, shard: Shard) -> Index:
    """The index of a shard with absolute addresses, past the cache: views read each one once.

    Raises CorruptShard where its bytes are not those of its table.
    """
    place, key = locate(storage, "", shard.index.address)
    body = place.read(key)
    if sha256(body) != shard.index.sha256:
        raise CorruptShard(f"{shard.index.address} has not the sha256 {shard.index.sha256} of its table")
    return read_index(body)


def select(index: Index, kept: Sequence[int]) -> Index:
    """The index of some samples of a shard, in the order of the tar."""
    numbers = np.asarray(kept, dtype=np.int64)
    if index.starts is None:
        labels, starts = index.labels[numbers], None
    else:
        own = [index.labels_of(int(number)) for number in numbers]
        labels = np.array([label for labels in own for label in labels], dtype=np.int32)
        starts = np.cumsum([0, *(len(labels) for labels in own)], dtype=np.int64)
    return Index(offsets=index.offsets[numbers], lengths=index.lengths[numbers], labels=labels, starts=starts)


def relabel(index: Index, labels: Sequence[int], *, multi_label: bool) -> Index:
    """The index with `labels[label]` for each label, and in the form for several labels where that is asked for."""
    starts = index.starts
    if starts is None and multi_label:
        starts = np.arange(len(index) + 1, dtype=np.int64)
    return replace(index, labels=np.asarray(labels, dtype=np.int32)[index.labels], starts=starts)


def write_index(storage: Storage, folder: str, name: str, index: Index, tar: File) -> Shard | None:
    """Store a view's index below the stage's folder; None where it has no samples."""
    if not len(index):
        return None
    body, address = index.to_bytes(), f"index/{name}.safetensors"
    storage.write(f"{folder}/{address}", body)
    return Shard(tar=tar, index=File(address=address, bytes=len(body), sha256=sha256(body)), count=len(index))


def write_split(
    context: Context, name: str, shards: Sequence[Shard], class_counts: Sequence[int]
) -> tuple[dict[str, Any], Split]:
    """Store a split's table; returns its entry for the manifest, and its description."""
    entry = context.write(f"tables/{name}.safetensors", table_bytes(shards))
    split = Split(
        count=sum(shard.count for shard in shards),
        shards=len(shards),
        bytes=sum(shard.tar.bytes for shard in shards),
        class_counts=tuple(class_counts),
        table=entry["path"],
    )
    return entry, split
