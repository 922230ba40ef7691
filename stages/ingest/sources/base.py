"""What a source of images is: a listing without pixels, and a way to read images by reference.

A reference and the source's config are all that a worker needs to read an image, on whatever machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Reference = int | str
"""What a source knows an image by: its number, or a name such as a path. A name is shown in reports."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source holds, in an order that does not change.

    `references`, `sizes` [n] and `splits` [n] belong to one image each. `labels` are indices into
    `classes`: [n] with one each, or, where `starts` [n + 1] is given, image i has
    labels[starts[i] : starts[i + 1]].
    """

    classes: tuple[str, ...]
    references: Sequence[Reference]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64] | None = None
    sizes: NDArray[np.int64]
    """Bytes of each image, as far as they are known without reading it; an estimate else. They fill shards."""
    splits: NDArray[np.int8]
    """Index into SPLITS; `train` throughout where the source has no splits."""
    refused: Sequence[tuple[str, str]] = ()
    """Name and reason of each image that is not listed since it could not be used. They count as bad."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """Files that are not taken for images, by what they are (see `stages.ingest.sources.unused`): no errors."""
    image_name: Callable[[Reference], str] = str
    """What people call an image, given its reference."""

    def __len__(self) -> int:
        return len(self.references)

    def labels_of(self, image: int) -> tuple[int, ...]:
        """The labels of one image."""
        if self.starts is None:
            return (int(self.labels[image]),)
        return tuple(self.labels[int(self.starts[image]) : int(self.starts[image + 1])].tolist())


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """An image's bytes as the source has them. `name` is shown in reports; its suffix is what it claims to be."""

    name: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Missing:
    """An image that the source lists and cannot give, with the reason."""

    name: str
    reason: str


class Source(Protocol):
    """One kind of source."""

    def listing(self) -> Listing:
        """Everything that there is, without pixels. Raises UserError."""
        ...

    def digest(self) -> str:
        """sha256 over what determines the listing and the pixels, at the cost of a listing. Raises UserError."""
        ...

    def read(self, references: Sequence[Reference]) -> Iterator[RawImage | Missing]:
        """The images in the order of `references`."""
        ...
