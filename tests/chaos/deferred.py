"""Breaks the rule that a manifest comes last: storage in which an object counts as stored before it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.storage import Storage
from cluster.storage.base import Digest


class Deferred:
    """A storage whose large objects are uploaded when `upload` is called; all else goes through at once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._later: dict[str, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    @contextmanager
    def writer(self, key: str) -> Iterator[_Sink]:
        sink = _Sink()
        yield sink
        self._later[key] = data = bytes(sink.data)
        sink.digest = Digest(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def upload(self) -> None:
        """What should have come first."""
        for key, data in self._later.items():
            self._storage.write(key, data)


class _Sink:
    def __init__(self) -> None:
        self.data = bytearray()
        self.digest: Digest | None = None

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        self.data += data
        return len(data)
