"""What an ingested data set holds, read without the loader."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cluster.storage import Storage
from stages.context import Output
from stages.data.cache import ShardCache, locate
from stages.data.dataset import open_shards
from stages.data.index import Index, read_index
from stages.data.manifest import base_folder
from stages.data.shards import read_samples
from stages.data.table import Shards


def shards(storage: Storage, output: Output, *splits: str) -> Shards:
    """The shards of some splits."""
    # A table that is open stays readable when its file is gone.
    with tempfile.TemporaryDirectory(prefix="patchline-tables-") as folder:
        return open_shards(ShardCache(storage, base_folder(output), Path(folder)), output, splits)


def stored(storage: Storage, output: Output, address: str) -> bytes:
    """A file by the address that the data set's table has for it."""
    place, key = locate(storage, base_folder(output), address)
    return place.read(key)


def index(storage: Storage, output: Output, number: int, split: str = "train") -> Index:
    """The index of one shard."""
    return read_index(stored(storage, output, shards(storage, output, split)[number].index.address))


def samples(storage: Storage, output: Output, split: str) -> list[dict[str, Any]]:
    """Every sample of a split, read by plain webdataset."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for shard in shards(storage, output, split):
            path = Path(folder) / "shard.tar"
            path.write_bytes(stored(storage, output, shard.tar.address))
            found += read_samples(path)
    return found
