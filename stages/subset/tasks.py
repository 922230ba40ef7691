"""What is done shard by shard, as tasks of a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cluster.storage import Storage, open_storage
from stages.context import sha256
from stages.data.cache import ShardCache
from stages.data.decode import UnreadableImage, decode_rgb
from stages.data.index import Index, read_index
from stages.data.table import Shard
from stages.data.views import select, write_index
from stages.subset.choice import sample_hashes
from stages.subset.fingerprint import THUMBNAIL, Fingerprints, fingerprints, join, read_fingerprints
from stages.subset.matches import Matcher
from stages.subset.part import Part, Removed, read_part, write_part


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A shard, by absolute addresses, and where its results go. Picklable."""

    storage: Storage
    folder: str
    """Key prefix of the stage's folder."""
    name: str
    shard: Shard

    @property
    def content(self) -> str:
        """A name for the shard's bytes: what is found of one belongs to them, whatever they are called."""
        return sha256(f"{self.shard.tar.sha256} {self.shard.index.sha256}".encode())[:20]

    def index(self) -> Index:
        """The shard's index."""
        return read_index(self._cache.read(self.shard.index))

    def images(self) -> Iterator[Image.Image | None]:
        """Its images in RGB, None for each one that cannot be decoded."""
        index, descriptor = self.index(), self._cache.open(self.shard.tar)
        try:
            for offset, length in zip(index.offsets.tolist(), index.lengths.tolist(), strict=True):
                try:
                    yield decode_rgb(os.pread(descriptor, length, offset))
                except UnreadableImage:
                    yield None
        finally:
            os.close(descriptor)

    @property
    def _cache(self) -> ShardCache:
        return ShardCache(self.storage, self.folder)


def print_shard(task: ShardTask) -> str:
    """Store the fingerprints of a shard, or find them; returns their key. What cannot be decoded has zeros."""
    key = f"{task.folder}/prints/{task.content}.safetensors"
    if task.storage.stat(key) is None:
        task.storage.write(key, _fingerprints(task)[0].to_bytes())
    return key


def _fingerprints(task: ShardTask) -> tuple[Fingerprints, int]:
    """Of all images of a shard, and how many cannot be decoded."""
    parts: list[Fingerprints] = []
    unreadable = 0
    for image in task.images():
        unreadable += image is None
        # Of all that could stand for no image, what matches nothing: flat, and with a digest that no image has.
        parts.append(_NOTHING if image is None else fingerprints([image]))
    return join(parts), unreadable


_NOTHING = Fingerprints(
    exact=np.zeros((1, 32), dtype=np.uint8),
    looks=np.zeros(1, dtype=np.uint64),
    thumbnails=np.zeros((1, THUMBNAIL**2), dtype=np.int8),
    flat=np.ones(1, dtype=bool),
)


@dataclass(frozen=True, kw_only=True)
class MatchTask(ShardTask):
    """A shard, and the fingerprints of what is to be left out of it."""

    prints: str
    """Key of the fingerprints of all evaluation images."""
    names: tuple[tuple[str, int], ...]
    """Their shards' names and counts, in order."""
    near: int | None


def match_shard(task: MatchTask) -> Part:
    """Find the samples of a shard that others have too, or the part that an earlier attempt has stored."""
    key = f"{task.folder}/parts/{sha256(f'{task.content} {task.prints}'.encode())[:20]}.json"
    if (found := read_part(task.storage, key)) is not None:
        return found
    own, unreadable = _fingerprints(task)
    offsets = task.index().offsets.tolist()
    matcher = _matcher(task.storage.url, task.prints, task.near)
    ends = np.cumsum([count for _, count in task.names])
    removed = []
    for match in matcher.matches(own):
        place = int(np.searchsorted(ends, match.other, side="right"))
        name, count = task.names[place]
        other = f"{name}:{match.other - (int(ends[place]) - count)}"
        removed.append(Removed(index=match.sample, offset=offsets[match.sample], distance=match.distance, other=other))
    part = Part(removed=tuple(removed), unreadable=unreadable)
    write_part(task.storage, key, part)
    return part


@lru_cache(maxsize=1)
def _matcher(url: str, key: str, near: int | None) -> Matcher:
    """Made once in each worker's process."""
    return Matcher(read_fingerprints(open_storage(url).read(key)), near)


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(ShardTask):
    """A shard, and what of it is left out already."""

    removed: tuple[int, ...]
    seed: int

    def remaining(self) -> tuple[Index, NDArray[np.int64]]:
        """The whole index, and the numbers of the samples that remain."""
        index = self.index()
        return index, np.setdiff1d(np.arange(len(index)), np.array(self.removed, dtype=np.int64))


def hash_shard(task: ChoiceTask) -> tuple[NDArray[np.float64], NDArray[np.int32] | None]:
    """Hashes and labels of what remains of a shard, each [n]; no labels where samples have several."""
    index, remaining = task.remaining()
    labels = index.labels[remaining] if index.starts is None else None
    return sample_hashes(index, task.shard.tar, task.seed)[remaining], labels


@dataclass(frozen=True, kw_only=True)
class SelectTask(ChoiceTask):
    """A shard, and the largest hash to keep: of each class, or of all where samples have several."""

    thresholds: NDArray[np.float64] | None


def select_shard(task: SelectTask) -> tuple[Shard | None, dict[int, int]]:
    """Write the index of what is kept of a shard; returns the new shard and its samples by label."""
    index, kept = task.remaining()
    if task.thresholds is not None:
        hashes = sample_hashes(index, task.shard.tar, task.seed)[kept]
        limits = task.thresholds[index.labels[kept]] if index.starts is None else task.thresholds[0]
        kept = kept[hashes <= limits]
    chosen = select(index, kept.tolist())
    return write_index(task.storage, task.folder, task.name, chosen, task.shard.tar), chosen.class_counts()
