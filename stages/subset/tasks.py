"""How copies are found shard by shard, as tasks of a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from cluster.storage import Storage, open_storage
from stages.context import sha256
from stages.data.cache import ShardCache
from stages.data.decode import UnreadableImage, decode_rgb
from stages.data.index import Index
from stages.data.table import File, Shard
from stages.data.views import shard_index
from stages.subset.fingerprint import fingerprints, read_fingerprints
from stages.subset.matches import Matcher
from stages.subset.part import Part, Removed, Unreadable, read_part, write_part


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A shard, by absolute addresses, and the stage's folder. Picklable."""

    storage: Storage
    folder: str
    """Key prefix of the stage's folder."""
    shard: Shard

    @property
    def content(self) -> str:
        """A name for the shard's bytes: what is found of one belongs to them, whatever they are called."""
        return sha256(f"{self.shard.tar.sha256} {self.shard.index.sha256}".encode())[:20]

    def images(self, index: Index) -> Iterator[Image.Image | None]:
        """Its images in RGB, None for each one that cannot be decoded."""
        descriptor = ShardCache(self.storage, self.folder).open(self.shard.tar)
        try:
            for offset, length in zip(index.offsets.tolist(), index.lengths.tolist(), strict=True):
                try:
                    yield decode_rgb(os.pread(descriptor, length, offset))
                except UnreadableImage:
                    yield None
        finally:
            os.close(descriptor)


def print_shard(task: ShardTask) -> str:
    """Store the fingerprints of a shard, or find them; returns their key."""
    key = f"{task.folder}/prints/{task.content}.safetensors"
    if task.storage.stat(key) is None:
        index = shard_index(task.storage, task.shard)
        task.storage.write(key, fingerprints(task.images(index)).to_bytes())
    return key


@dataclass(frozen=True, kw_only=True)
class MatchTask(ShardTask):
    """A shard, and the fingerprints of what is to be left out of it."""

    prints: File
    """Those of all evaluation images."""
    near: int | None


def match_shard(task: MatchTask) -> Part:
    """Find the samples of a shard that others have too, or the part that an earlier attempt has stored."""
    key = f"{task.folder}/parts/{sha256(f'{task.content} {task.prints.sha256}'.encode())[:20]}.json"
    if (found := read_part(task.storage, key)) is not None:
        return found
    index = shard_index(task.storage, task.shard)
    own, offsets = fingerprints(task.images(index)), index.offsets.tolist()
    matches = _matcher(task.storage.url, task.folder, task.prints, task.near).matches(own)
    unreadable = np.flatnonzero(~own.readable).tolist()
    part = Part(
        removed=tuple(
            Removed(index=match.sample, offset=offsets[match.sample], distance=match.distance, other=match.other)
            for match in matches
        ),
        unreadable=tuple(Unreadable(index=sample, offset=offsets[sample]) for sample in unreadable),
    )
    write_part(task.storage, key, part)
    return part


@lru_cache(maxsize=1)
def _matcher(url: str, folder: str, prints: File, near: int | None) -> Matcher:
    """Made once in each worker's process, of a file that is fetched once on each node."""
    return Matcher(read_fingerprints(ShardCache(open_storage(url), folder).read(prints)), near)
