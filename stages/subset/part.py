"""What is left out of one shard because other data sets have it: the document that says that the shard is done."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from cluster.errors import check_format
from cluster.storage import NotFound, Storage
from stages.context import canonical_json

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A sample that is left out, and the one that it is a copy of."""

    index: int
    """Within its shard."""
    offset: int
    """Of its image in the tar, in bytes."""
    distance: int | None
    """Differing bits of the perceptual hashes; None where the pixels are the same."""
    other: int
    """Number of the evaluation image that it is a copy of (see `stages.subset.others`)."""


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A sample that cannot be decoded, and so is kept without a comparison: training counts and replaces it."""

    index: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of one shard."""

    removed: tuple[Removed, ...]
    unreadable: tuple[Unreadable, ...]


def read_part(storage: Storage, key: str) -> Part | None:
    """A finished shard's, or None."""
    try:
        document = json.loads(storage.read(key))
    except NotFound:
        return None
    check_format(document["format"], FORMAT, key)
    return Part(
        removed=tuple(Removed(**one) for one in document["removed"]),
        unreadable=tuple(Unreadable(**one) for one in document["unreadable"]),
    )


def write_part(storage: Storage, key: str, part: Part) -> None:
    """Store it, last of what its task does."""
    storage.write(key, canonical_json({"format": FORMAT, **asdict(part)}))
