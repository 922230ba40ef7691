"""A range of bytes as a file: a stored object, in a folder or in S3, or a part of a file."""

from __future__ import annotations

import io
from collections.abc import Callable

from cluster.errors import UserError
from cluster.storage import Storage, open_storage


class RangeFile(io.RawIOBase):
    """A file of `length` bytes of which `read_range(start, length)` gives any part.

    Wrap it in `io.BufferedReader` for small reads: each one is a call.
    """

    def __init__(self, length: int, read_range: Callable[[int, int], bytes]) -> None:
        self._length, self._read_range, self._place = length, read_range, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        return self._place

    def readinto(self, buffer, /) -> int:
        view = memoryview(buffer)
        wanted = max(0, min(len(view), self._length - self._place))
        data = self._read_range(self._place, wanted) if wanted else b""
        view[: len(data)] = data
        self._place += len(data)
        return len(data)


def open_stored(address: str) -> RangeFile:
    """The object at a path, `file:///…`, `s3://…` or `https://…`. Raises UserError where there is none."""
    storage, key = locate_object(address)
    stat = storage.stat(key)
    if stat is None:
        raise UserError(f"{address} is not there")
    return RangeFile(stat.bytes, lambda start, length: storage.read_range(key, start, length))


def locate_object(address: str) -> tuple[Storage, str]:
    """Storage and key of a path, `file:///…`, `s3://…` or `https://…`. Raises UserError for any other address."""
    root, slash, name = (address if "://" in address else f"file://{address}").rpartition("/")
    return open_storage(root + slash), name
