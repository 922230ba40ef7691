"""Whole shards on a node's own disk: fetched once per node, verified, and kept below a limit.

Files carry the sha256 of their content as their name, so that all runs on a node share them. A file
appears by renaming, after its bytes have been verified; so what is there is whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import NotFound, Storage, open_storage
from cluster.storage.base import file_digest
from stages.data.cache_account import Account
from stages.data.table import File

SUFFIX = ".cached"
"""Of the files that are whole."""


class CorruptShard(RuntimeError):
    """A shard is lost, or its bytes are not those of its manifest, also when fetched again."""


def default_folder() -> Path:
    """The cache of this user on this machine, below the temporary folder."""
    return Path(tempfile.gettempdir()) / f"patchline-{os.getuid()}" / "cache"


def locate(storage: Storage, base: str, address: str) -> tuple[Storage, str]:
    """Storage and key of an address: absolute, or relative to the folder `base` of `storage`."""
    if "://" not in address:
        return storage, f"{base}/{address}"
    path, question, query = address.partition("?")
    root, _, name = path.rpartition("/")
    return open_storage(root), f"{name}{question}{query}"


class ShardCache:
    """Local copies of a data set's files. Safe among threads and processes of a node.

    Relative addresses are meant of the folder `base` in `storage`. Above `limit_bytes`, or 80 % of the
    disk that there is for them, the least recently used files go, never the one just asked for; whoever has a file open
    keeps it.
    """

    def __init__(self, storage: Storage, base: str, folder: Path | None = None, limit_bytes: int = 40 * 10**9):
        self._storage, self._base = storage, base
        self._limit = limit_bytes
        self.folder = _private_folder(folder or default_folder())
        self._account = Account(self.folder, SUFFIX)
        self._swept: set[str] = set()

    def open(self, file: File) -> int:
        """A file descriptor, to be closed by the caller, of a file, fetched where needed.

        Raises CorruptShard, also where the storage has lost the file.
        """
        local = self.folder / f"{file.sha256}{SUFFIX}"
        descriptor = self._open(local, file.bytes)
        while descriptor is None:
            with self._lock(file.sha256):
                if not _is_whole(local, file.bytes):
                    self._fetch(file, local)
            # Another process may evict the file between its arrival and this line; then it is fetched again.
            descriptor = self._open(local, file.bytes)
        return descriptor

    def read(self, file: File) -> bytes:
        """A whole file, fetched where needed."""
        with os.fdopen(self.open(file), "rb") as opened:
            return opened.read()

    def read_range(self, file: File, start: int, length: int) -> bytes:
        """A part of a file straight from storage, past the cache and its check of the sha256. Raises CorruptShard."""
        storage, key = locate(self._storage, self._base, file.address)
        try:
            return storage.read_range(key, start, length)
        except NotFound:
            raise _lost(file) from None

    def room(self) -> int:
        """Bytes that all files here may take now: the limit, or 80 % of what they take and what the disk has free."""
        return self._room(Account(self.folder, SUFFIX).list())

    def _room(self, used: int) -> int:
        return min(self._limit, int(0.8 * (used + shutil.disk_usage(self.folder).free)))

    def _open(self, local: Path, size: int) -> int | None:
        try:
            descriptor = os.open(local, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != size:
            os.close(descriptor)
            return None
        # The time of change is the time of last use; the system's own steps of milliseconds are too coarse for it.
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))
        return descriptor

    def _fetch(self, file: File, local: Path) -> None:
        storage, key = locate(self._storage, self._base, file.address)
        self._sweep(local.name[:2])
        part = local.with_name(f"{local.stem}.{os.getpid()}.part")
        try:
            for _ in range(2):
                storage.download(key, part)
                if file_digest(part).sha256 == file.sha256:
                    _sync(part)
                    os.replace(part, local)
                    self._account.add(local, file.bytes, self._room)
                    return
        except NotFound:
            raise _lost(file) from None
        finally:
            part.unlink(missing_ok=True)
        raise CorruptShard(
            f"{file.address} was fetched twice and neither time had the sha256 {file.sha256} of its manifest"
        )

    def _sweep(self, beginning: str) -> None:
        """Remove what killed processes were fetching, of names with this beginning; once, since it lists the folder.

        Whoever else fetches a file with this beginning holds the same lock.
        """
        if beginning not in self._swept:
            for pattern in (f"{beginning}*.part", f".{beginning}*.part.*"):
                for leftover in self.folder.glob(pattern):
                    leftover.unlink(missing_ok=True)
            self._swept.add(beginning)

    @contextmanager
    def _lock(self, sha256: str) -> Iterator[None]:
        """One fetch of a file at a time on this node. There are 256 lock files at most."""
        with open(self.folder / f"{sha256[:2]}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _lost(file: File) -> CorruptShard:
    return CorruptShard(f"{file.address} is no longer where its manifest says: put it back, or ingest again")


def _sync(file: Path) -> None:
    """Bring a file's bytes to disk before its name says that they are there."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_whole(local: Path, size: int) -> bool:
    return local.exists() and local.stat().st_size == size


def _private_folder(folder: Path) -> Path:
    """Make the folder, for this user alone. Raises UserError where it belongs to another."""
    folder.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"cache folder {folder} belongs to another user: set `cache` to a folder of your own")
    return folder
