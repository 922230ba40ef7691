"""Decoded images and labels by (shard, index), from the local copies of a data set's shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.data.cache import CorruptShard, ShardCache
from stages.data.config import DataConfig
from stages.data.decode import UnreadableImage, decode_rgb
from stages.data.jpeg import jpeg_pixels
from stages.data.native.helper import Native
from stages.data.opened import OpenShards
from stages.data.table import Shards

_SMALL_IMAGE = 64 * 1024
"""Decoded images up to this many bytes are worth keeping: many fit, and decoding costs more than memory."""

FEW = 10
"""Unreadable samples that say nothing yet about their part of the whole."""

_KEPT_BYTES = 256 * 1024**2
_BESIDE_PIXELS = 800
"""Bytes that keeping an image takes beside its pixels, as measured: objects, the dictionary, what malloc rounds up."""

T = TypeVar("T")


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
    the cache; otherwise each sample is one range request. Up to `open_shards` of them are open at once. Small decoded
    images are kept in memory where all of the data set's fit below a bound, since tiny data sets are read many times;
    not where samples are read `once`. With a `native` helper `stored_or_replaced` decodes nothing that the helper can
    crop from.
    """

    def __init__(
        self,
        cache: ShardCache,
        shards: Shards,
        classes: Sequence[int],
        *,
        whole: bool = True,
        max_bad: float = 0.0,
        skip_corrupt: bool = False,
        open_shards: int = 128,
        once: bool = False,
        native: Native | None = None,
    ) -> None:
        self._shards = shards
        self._positions = {label: position for position, label in enumerate(classes)}
        self._max_bad, self._bad, self._read = max_bad, set[tuple[int, int]](), 0
        self._skip_corrupt, self._corrupt, self._skipped = skip_corrupt, set[int](), set[tuple[int, int]]()
        self._opened = OpenShards(cache, shards, whole=whole, most=open_shards)
        self._native = native
        self._kept: dict[tuple[int, int], Decoded] = {}
        self._free = 0 if once else _KEPT_BYTES
        self._samples = int(shards.counts.sum())

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
        if self._keeps(image.nbytes):
            self._free -= image.nbytes + _BESIDE_PIXELS
            self._kept[shard, index] = decoded
        return decoded

    def _stored(self, shard: int, index: int) -> Stored | Decoded:
        """One sample, as it is stored where the native helper can decode it and its pixels are not worth keeping."""
        kept = self._kept.get((shard, index))
        if kept is not None:
            return kept
        data, labels = self.read_bytes(shard, index)
        size = None if self._native is None else self._native.look(data)
        if size is None or self._keeps(3 * size[0] * size[1]):
            return self._decoded(data, labels, shard, index)
        return Stored(data, size, self._known(labels, shard, index))

    def _keeps(self, pixels: int) -> bool:
        """Whether a decoded image of so many bytes is worth keeping.

        Of a data set that does not fit it would be some samples for ever, which are hardly ever asked for.
        """
        size = pixels + _BESIDE_PIXELS
        return pixels <= _SMALL_IMAGE and size <= self._free and size * self._samples <= _KEPT_BYTES

    def read_bytes(self, shard: int, index: int) -> tuple[bytes, list[int]]:
        """A sample's image as it is stored, and the data set's own labels. Raises CorruptShard."""
        return self._opened.read(shard, index)

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
                    self._opened.open(number)
                except CorruptShard as error:
                    self._skip(number, error)
                    continue
                if step:
                    self._skipped.add(place)
                return number, index % self._shards[number].count
        return place

    def close(self) -> None:
        """Close all shards, and forget the images that are kept. Reading opens them again."""
        self._opened.close()
        self._kept.clear()

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
    cache: ShardCache,
    shards: Shards,
    config: DataConfig,
    classes: Sequence[int],
    helper: Native | None = None,
    *,
    once: bool = False,
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
        once=once,
        native=helper,
    )
