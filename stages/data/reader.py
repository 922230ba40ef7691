"""Decoded images and labels by (shard, index), from the local copies of a data set's shards."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.data.cache import CorruptShard, ShardCache
from stages.data.config import DataConfig
from stages.data.decode import UnreadableImage, decode_rgb
from stages.data.index import read_index
from stages.data.jpeg import jpeg_pixels
from stages.data.native.helper import Native
from stages.data.table import Shard, Shards

_SMALL_IMAGE = 64 * 1024
"""Decoded images up to this many bytes are worth keeping: many fit, and decoding costs more than memory."""

FEW = 10
"""Unreadable samples that say nothing yet about their part of the whole."""

_KEPT_BYTES = 256 * 1024**2

T = TypeVar("T")


class _OpenShard:
    """One shard's index and, where whole shards are fetched, an open descriptor of the tar."""

    def __init__(self, cache: ShardCache, shard: Shard, *, whole: bool) -> None:
        self.index = read_index(cache.read(shard.index))
        if len(self.index) != shard.count:
            raise ValueError(f"{shard.index.address} lists {len(self.index)} samples, the table {shard.count}")
        self._cache, self._tar = cache, shard.tar
        self._descriptor = cache.open(shard.tar) if whole else None
        if self._descriptor is not None:
            # Closed with the last user's reference.
            weakref.finalize(self, os.close, self._descriptor)

    def read(self, index: int) -> bytes:
        offset, length = int(self.index.offsets[index]), int(self.index.lengths[index])
        if self._descriptor is None:
            return self._cache.read_range(self._tar, offset, length)
        return os.pread(self._descriptor, length, offset)


class Decoded(NamedTuple):
    """An RGB image [H, W, 3] and the positions of its labels in the task's list of classes."""

    image: NDArray[np.uint8]
    labels: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]


class Stored(NamedTuple):
    """A JPEG as it is stored, for the native helper to decode; its height and width, and labels as in Decoded."""

    data: bytes
    size: tuple[int, int]
    labels: tuple[int, ...]


class SampleReader:
    """Reads samples of a list of shards. Safe among threads.

    `classes` are the data set's labels in the order of the network's outputs. `whole` fetches shards into
    the cache; otherwise each sample is one range request. Small decoded images are kept in memory up to a
    bound, since tiny data sets are read many times. With a `native` helper `stored_or_replaced` decodes nothing that
    the helper can crop from.
    """

    def __init__(
        self,
        cache: ShardCache,
        shards: Sequence[Shard],
        classes: Sequence[int],
        *,
        whole: bool = True,
        max_bad: float = 0.0,
        skip_corrupt: bool = False,
        open_shards: int = 128,
        native: Native | None = None,
    ) -> None:
        self._cache, self._shards, self._whole = cache, shards, whole
        self._positions = {label: position for position, label in enumerate(classes)}
        self._max_bad, self._bad, self._read = max_bad, set[tuple[int, int]](), 0
        self._skip_corrupt, self._corrupt, self._skipped = skip_corrupt, set[int](), set[tuple[int, int]]()
        self._open_shards = open_shards
        self._opened: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._native = native
        self.waited = 0.0
        """Seconds in which threads, all together, have waited for storage."""
        self._kept: dict[tuple[int, int], Decoded] = {}
        self._free = _KEPT_BYTES

    def read(self, shard: int, index: int) -> Decoded:
        """One sample. Raises UnreadableImage; UserError for a label that the task does not have."""
        kept = self._kept.get((shard, index))
        if kept is not None:
            return kept
        return self._decoded(*self.read_bytes(shard, index), shard, index)

    def _decoded(self, data: bytes, labels: list[int], shard: int, index: int) -> Decoded:
        image = jpeg_pixels(data)
        if image is None:
            image = np.asarray(decode_rgb(data, self._name(shard, index)))
        decoded = Decoded(image, self._known(labels, shard, index))
        if image.nbytes <= min(_SMALL_IMAGE, self._free):
            self._free -= image.nbytes
            self._kept[shard, index] = decoded
        return decoded

    def _stored(self, shard: int, index: int) -> Stored | Decoded:
        """One sample, as it is stored where the native helper can decode it and its pixels are not worth keeping."""
        kept = self._kept.get((shard, index))
        if kept is not None:
            return kept
        data, labels = self.read_bytes(shard, index)
        size = None if self._native is None else self._native.look(data)
        if size is None or 3 * size[0] * size[1] <= min(_SMALL_IMAGE, self._free):
            return self._decoded(data, labels, shard, index)
        return Stored(data, size, self._known(labels, shard, index))

    def read_bytes(self, shard: int, index: int) -> tuple[bytes, list[int]]:
        """A sample's image as it is stored, and the data set's own labels. Raises CorruptShard."""
        opened = self.open(shard)
        if self._whole:
            return opened.read(index), opened.index.labels_of(index)
        with self._waiting():
            return opened.read(index), opened.index.labels_of(index)

    @property
    def replaced(self) -> int:
        """Samples that `read_or_replace` has met which are unreadable, or in a shard that was skipped."""
        return len(self._bad) + len(self._skipped)

    def read_or_replace(self, shard: int, index: int) -> Decoded:
        """One sample or, where it cannot be decoded, the next one of its shard that can, whoever asks.

        Raises UnreadableImage where more than `max_bad` of what was read, and more than FEW, is unreadable.
        Raises CorruptShard; with `skip_corrupt` the next shard's samples stand in, which do not count as bad.
        """
        self._read += 1
        return self.decoded_or_replaced(shard, index)

    def decoded_or_replaced(self, shard: int, index: int) -> Decoded:
        """As `read_or_replace`, of a sample that has been counted as read."""
        return self._replacing(shard, index, self.read)

    def stored_or_replaced(self, shard: int, index: int) -> Stored | Decoded:
        """As `read_or_replace`, but what the native helper can decode is given as it is stored.

        Where the helper then cannot, `decoded_or_replaced` has what stands in for it.
        """
        self._read += 1
        return self._replacing(shard, index, self._stored)

    def _replacing(self, shard: int, index: int, read: Callable[[int, int], T]) -> T:
        while True:
            sound, place = self._sound(shard, index)
            try:
                return self._readable(sound, place, read)
            except CorruptShard as error:
                # Samples that are read one by one show only now that the tar is lost.
                if not self._skip_corrupt or len(self._corrupt) + 1 >= len(self._shards):
                    raise
                self._skip(sound, error)

    def read_or_none(self, shard: int, index: int) -> Decoded | None:
        """One sample, or None where it cannot be decoded. Raises UnreadableImage as `read_or_replace` does."""
        self._read += 1
        return self.decoded_or_none(shard, index)

    def decoded_or_none(self, shard: int, index: int) -> Decoded | None:
        """As `read_or_none`, of a sample that has been counted as read."""
        return self._or_none(shard, index, self.read)

    def stored_or_none(self, shard: int, index: int) -> Stored | Decoded | None:
        """As `read_or_none`, but what the native helper can decode is given as it is stored.

        Where the helper then cannot, `decoded_or_none` has it.
        """
        self._read += 1
        return self._or_none(shard, index, self._stored)

    def _or_none(self, shard: int, index: int, read: Callable[[int, int], T]) -> T | None:
        try:
            return read(shard, index)
        except UnreadableImage as error:
            self._count_bad((shard, index), error, "left out of the evaluation")
            return None

    def _readable(self, shard: int, index: int, read: Callable[[int, int], T]) -> T:
        """A sample or the next one of its shard that can be decoded."""
        place, tried = (shard, index), 0
        while True:
            if place not in self._bad:
                try:
                    return read(*place)
                except UnreadableImage as error:
                    self._count_bad(place, error, "replaced by another sample")
            # Asked for here alone: a row of the table takes longer to read than an image.
            tried, count = tried + 1, self._shards[shard].count
            if tried == count:
                break
            place = (shard, (index + tried) % count)
        raise UnreadableImage(f"no sample of {self._shards[shard].tar.address} can be decoded")

    def _count_bad(self, place: tuple[int, int], error: UnreadableImage, what: str) -> None:
        """Say what is done about an unreadable sample. Raises UnreadableImage where there are too many."""
        self._bad.add(place)
        print(f"{what}: {error}", flush=True)
        if len(self._bad) > max(FEW, self._max_bad * self._read):
            raise UnreadableImage(
                f"{len(self._bad)} of {self._read} samples are unreadable, more than max_bad={self._max_bad}: "
                f"ingest with verify: decode. The last one: {error}"
            ) from error

    def _skip(self, shard: int, error: CorruptShard) -> None:
        self._corrupt.add(shard)
        print(f"skipped, since corrupt_shards is skip: {error}", flush=True)

    def _sound(self, shard: int, index: int) -> tuple[int, int]:
        """The place itself or, where its shard is corrupt and to be skipped, one in the next shard that is not."""
        place = (shard, index)
        for step in range(len(self._shards) if self._skip_corrupt else 0):
            number = (shard + step) % len(self._shards)
            if number not in self._corrupt:
                try:
                    self.open(number)
                except CorruptShard as error:
                    self._skip(number, error)
                    continue
                if step:
                    self._skipped.add(place)
                return number, index % self._shards[number].count
        return place

    def open(self, number: int) -> _OpenShard:
        """A shard and its index, fetched where needed."""
        with self._lock:
            opened = self._opened.get(number)
            if opened is not None:
                self._opened.move_to_end(number)
                return opened
        # Outside the lock: fetching one shard must not hold up reading from the others.
        with self._waiting():
            opened = _OpenShard(self._cache, self._shards[number], whole=self._whole)
        with self._lock:
            self._opened[number] = opened
            if len(self._opened) > self._open_shards:
                self._opened.popitem(last=False)
        return opened

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self.waited += time.monotonic() - began

    def _name(self, shard: int, index: int) -> str:
        return f"sample {index} of {self._shards[shard].tar.address}"

    def _known(self, labels: list[int], shard: int, index: int) -> tuple[int, ...]:
        unknown = [label for label in labels if label not in self._positions]
        if unknown:
            raise UserError(
                f"{self._name(shard, index)} has label {unknown[0]}, the task's classes are {sorted(self._positions)}: "
                "choose other splits or classes"
            )
        return tuple(self._positions[label] for label in labels)


def open_reader(
    cache: ShardCache, shards: Shards, config: DataConfig, classes: Sequence[int], helper: Native | None = None
) -> SampleReader:
    """A reader of some shards, as a config says."""
    return SampleReader(
        cache,
        shards,
        classes,
        whole=config.fetch == "shards",
        max_bad=config.max_bad,
        skip_corrupt=config.corrupt_shards == "skip",
        # Each stream reads from one block, whose samples may lie in several shards.
        open_shards=max(128, 4 * config.streams),
        native=helper,
    )
