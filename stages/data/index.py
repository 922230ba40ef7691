"""The index of a shard: where each sample's image lies in the tar, and what it is labelled with.

16 bytes a sample with one label, 4 more for each label where samples have several; read lazily, one
shard's at a time. It is enough to read any sample with one range request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Index:
    """Offsets and lengths in bytes [n] of the images within the tar; the labels of all samples, end to end."""

    offsets: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    labels: NDArray[np.int32]
    """[n] with one label each, else [starts[n]]."""
    starts: NDArray[np.int64] | None = None
    """[n + 1]: sample i has the labels [starts[i], starts[i + 1]). None where each sample has one."""

    def __len__(self) -> int:
        return len(self.offsets)

    def labels_of(self, sample: int) -> list[int]:
        """The labels of one sample."""
        if self.starts is None:
            return [int(self.labels[sample])]
        return self.labels[int(self.starts[sample]) : int(self.starts[sample + 1])].tolist()

    def class_counts(self) -> dict[int, int]:
        """Samples by label, sorted by label."""
        return dict(sorted(Counter(self.labels.tolist()).items()))

    def to_bytes(self) -> bytes:
        """The stored form, which `read_index` takes."""
        arrays = {"offsets": self.offsets, "lengths": self.lengths, "labels": self.labels}
        if self.starts is not None:
            arrays["starts"] = self.starts
        return safetensors.numpy.save(arrays)


def make_index(places: Sequence[tuple[int, int]], labels: Sequence[Sequence[int]], *, multi_label: bool) -> Index:
    """An index of images at (offset, length), each with its labels; one each unless `multi_label`."""
    flat = [label for own in labels for label in own]
    starts = np.cumsum([0, *(len(own) for own in labels)], dtype=np.int64) if multi_label else None
    if starts is None and len(flat) != len(places):
        raise ValueError(f"{len(places)} samples have {len(flat)} labels: one each, or multi_label")
    table = np.array(places, dtype=np.int64).reshape(-1, 2)
    return Index(
        offsets=table[:, 0].astype(np.uint64),
        lengths=table[:, 1].astype(np.uint32),
        labels=np.array(flat, dtype=np.int32),
        starts=starts,
    )


def read_index(data: bytes) -> Index:
    """An index from its stored form. Raises ValueError where it is something else."""
    try:
        arrays = safetensors.numpy.load(data)
        return Index(**{name: arrays[name] for name in arrays})
    except (safetensors.SafetensorError, TypeError) as error:
        raise ValueError(f"no shard index: {error}; it begins with {data[:40]!r}") from error
