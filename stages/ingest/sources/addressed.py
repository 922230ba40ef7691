"""Images behind addresses: paths on a disk that all workers see, `file:///…`, `s3://…` or `https://…`."""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import NotFound, open_storage
from stages.data.cache import locate
from stages.ingest.sources.base import Missing, RawImage

STORED = ("s3://", "https://", "http://")
"""Beginnings of addresses that are read over a network."""
_THREADS = 16
_AHEAD = 32
"""Images that are on their way while one is worked on: an answer of S3 takes longer than an image's work."""


_NOWHERE = open_storage("file:///")
"""What these addresses are relative to: they are absolute."""


def resolve(address: str, base: str) -> str:
    """The absolute form of an address that may be relative to the folder `base`. Raises UserError."""
    if address.startswith(("/", "file:///", *STORED)):
        return address
    if "://" in address:
        raise UserError(
            f"image {address!r}: expected a path, file:///…, s3://BUCKET/KEY or https://…; fetch it to one of these"
        )
    scheme, separator, folder = base.rpartition("://")
    # A bucket or a host is no folder: `..` does not lead out of it.
    bucket, _, prefix = folder.partition("/") if scheme else ("", "", folder)
    path = posixpath.normpath(f"/{prefix.strip('/')}/{address}")
    return f"{scheme}{separator}{bucket}/{path.lstrip('/')}"


def read_addresses(addresses: Iterable[str], base: str) -> Iterator[RawImage | Missing]:
    """The images at `addresses`, in their order, some of them fetched ahead."""
    pending: deque[Future[RawImage | Missing]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for address in addresses:
            pending.append(pool.submit(_read, address, resolve(address, base)))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _read(name: str, address: str) -> RawImage | Missing:
    try:
        if address.startswith(STORED):
            return _read_stored(name, address)
        return RawImage(name=name, data=Path(address.removeprefix("file://")).read_bytes())
    except FileNotFoundError:
        return Missing(name=name, reason="not found")
    except ConnectionError:
        # A network that is away is no property of the image: the attempt fails, and is tried again.
        raise
    except OSError as error:
        return Missing(name=name, reason=f"cannot be read: {error.strerror or error}")
    except UserError:
        # Rights that are missing or have run out are the stage's trouble, not this image's.
        raise
    except ValueError as error:
        return Missing(name=name, reason=f"no address: {error}")


def _read_stored(name: str, address: str) -> RawImage | Missing:
    try:
        storage, key = locate(_NOWHERE, "", address)
    except UserError as error:
        return Missing(name=name, reason=f"no address: {error}")
    try:
        return RawImage(name=name, data=storage.read(key))
    except NotFound:
        return Missing(name=name, reason="not found")
