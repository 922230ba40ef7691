"""What the rest of the program asks of a storage: the smallest set of operations, the same everywhere.

A storage is a flat map from keys (`str`, parts separated by "/") to bytes. Each key has a tag that
changes with every write (an S3 ETag). Writes of one key are atomic: a reader sees the whole old body
or the whole new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class NotFound(KeyError):
    """The key does not exist."""


class Conflict(Exception):
    """A conditional write was refused: the key exists, or its tag is not the one given."""


@dataclass(frozen=True, kw_only=True)
class Stat:
    """Size in bytes and tag of a stored object."""

    bytes: int
    tag: str


@dataclass(frozen=True, kw_only=True)
class Digest:
    """Size in bytes and hexadecimal sha256 of what was uploaded."""

    bytes: int
    sha256: str


def file_digest(path: Path) -> Digest:
    """Size and sha256 of a local file, read in blocks."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Digest(bytes=path.stat().st_size, sha256=sha256)


class ObjectWriter(Protocol):
    """Takes an object's bytes in order, while they are being made."""

    digest: Digest | None
    """Of the whole object; there once it is visible."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Take some more bytes; may wait until those before are on their way."""
        ...


class Storage(Protocol):
    """A place that holds bytes by key. Open one with `cluster.storage.open_storage(url)`."""

    url: str

    def read(self, key: str) -> bytes:
        """The whole body. Raises NotFound."""
        ...

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """The whole body and its tag, of the same moment. Raises NotFound."""
        ...

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start`. Raises NotFound; ValueError where the object is shorter."""
        ...

    def stat(self, key: str) -> Stat | None:
        """Size and tag, or None where the key does not exist."""
        ...

    def write(self, key: str, data: bytes) -> str:
        """Write without a condition; returns the new tag."""
        ...

    def write_if_absent(self, key: str, data: bytes) -> str:
        """Create the key; returns its tag. Raises Conflict where it exists with another body.

        Bodies that are written under a condition carry a nonce, so an equal body is the caller's own
        write whose response was lost, and counts as success.
        """
        ...

    def compare_and_swap(self, key: str, data: bytes, tag: str) -> str:
        """Replace the body if the tag is still `tag`; returns the new tag. Raises Conflict.

        As with `write_if_absent`, a lost response is told from a lost race by reading back.
        """
        ...

    def upload(self, key: str, path: Path) -> Digest:
        """Send a local file (multipart where it is large), verify its size in storage, return its digest."""
        ...

    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Write an object piece by piece, in little memory. It becomes visible, whole, at the end of the block.

        Where the block raises, or the process is killed, the key is what it was before.
        """
        ...

    def download(self, key: str, path: Path) -> None:
        """Fetch to a local file, which appears whole or not at all. Raises NotFound."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """All keys that start with `prefix`, in sorted order."""
        ...

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """The keys that start with `prefix`, in sorted order, each with the size of its body in bytes."""
        ...

    def list_folders(self, prefix: str, limit: int | None = None) -> list[str]:
        """Names directly below the folder `prefix` ("" or ending in "/") that have keys below them, sorted.

        With a limit, the first ones alone, which costs no more than these.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the key; nothing happens where it does not exist."""
        ...
