"""Ranges and files, as the storages behind a network read them."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cluster.storage.retry import Transient

PART_BYTES = 8 * 2**20
"""Of each part but the last in a download by parts: a fault costs the reading of one part again."""
PARTS_AT_ONCE = 8
"""Parts of one download that are on their way at once."""
PIECE_BYTES = 256 * 2**10
"""Of a part, as it comes from the network and goes to the file: it stays in the processor's cache on the way, and few
are in memory."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def content_range(header: str | None) -> tuple[int, int, int]:
    """First byte, end (exclusive) and size of the whole, of a partial answer's Content-Range.

    Raises Transient where there is none: then the answer is to another question. A size that the server
    does not know is taken to be the end.
    """
    if (match := _CONTENT_RANGE.fullmatch(header or "")) is None:
        raise Transient(f"a part came without a range that can be read: {header!r}")
    first, end = int(match[1]), int(match[2]) + 1
    return first, end, end if match[3] == "*" else int(match[3])


def check_part(header: str | None, found: int, start: int, length: int) -> None:
    """Raises Transient unless `found` bytes are what `length` bytes from `start` come to, which may end with the whole.

    A body that was cut by a machine on the way, which also set Content-Length, shows here alone.
    """
    first, _, size = content_range(header)
    if first != start or found != min(length, size - start):
        raise Transient(f"asked for {length} bytes from {start} of {size}, {found} from {first} came")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which gets the name `path` at the end of the block, and none where the block raises."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_at(file: BinaryIO, start: int, pieces: Iterable[bytes]) -> None:
    """Write pieces one after the other from byte `start` on; other threads may write elsewhere meanwhile."""
    for piece in pieces:
        data = memoryview(piece)
        while data:
            written = os.pwrite(file.fileno(), data, start)
            data, start = data[written:], start + written


def fetch_parts(fetch: Callable[[int, int], None], size: int) -> None:
    """Call `fetch(start, length)` for the parts of `size` bytes, several at once. Raises what `fetch` raises."""
    if size <= PART_BYTES:
        return fetch(0, size) if size else None
    pool = ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="download")
    parts = ((start, min(PART_BYTES, size - start)) for start in range(0, size, PART_BYTES))
    try:
        for part in as_completed([pool.submit(fetch, *part) for part in parts]):
            part.result()
    finally:
        # After a failure no other part begins, and those under way end before the file is closed.
        pool.shutdown(cancel_futures=True)
    return None
