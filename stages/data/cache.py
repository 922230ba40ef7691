"""Whole shards on a node's own disk: fetched once per node, verified, and kept below a limit.

Files carry the sha256 of their content as their name, so that all runs on a node share them. A file
appears by renaming, after its bytes have been verified; so what is there is whole.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import UserError
from cluster.storage.base import Storage, file_digest
from stages.context import Output


class CorruptShard(RuntimeError):
    """A shard's bytes are not those of its manifest, also when fetched again."""


def default_folder() -> Path:
    """The cache of this user on this machine, below the temporary folder."""
    return Path(tempfile.gettempdir()) / f"patchline-{os.getuid()}" / "cache"


class ShardCache:
    """Local copies of one output's files. Safe among threads and processes of a node.

    Above `limit_bytes` the least recently used files go, never the one just asked for; whoever has a
    file open keeps it.
    """

    def __init__(self, storage: Storage, output: Output, folder: Path | None = None, limit_bytes: int = 20 * 10**9):
        self._storage = storage
        self._output = output
        self._entries = {entry["path"]: entry for entry in output.manifest["files"]}
        self._limit = limit_bytes
        self.folder = _private_folder(folder or default_folder())

    def open(self, path: str) -> int:
        """A file descriptor, to be closed by the caller, of the output's file `path`, fetched where needed.

        Raises CorruptShard; NotFound where the storage has lost the file.
        """
        entry = self._entries[path]
        local = self.folder / f"{entry['sha256']}{Path(path).suffix}"
        descriptor = self._open(local, entry["bytes"])
        while descriptor is None:
            with self._lock(entry["sha256"]):
                if not _is_whole(local, entry["bytes"]):
                    self._fetch(entry, local)
            # Another process may evict the file between its arrival and this line; then it is fetched again.
            descriptor = self._open(local, entry["bytes"])
        return descriptor

    def _open(self, local: Path, size: int) -> int | None:
        try:
            descriptor = os.open(local, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != size:
            os.close(descriptor)
            return None
        os.utime(descriptor)  # The time of change is the time of last use.
        return descriptor

    def _fetch(self, entry: dict, local: Path) -> None:
        for leftover in self.folder.glob(f"{local.stem}.*.part"):
            leftover.unlink(missing_ok=True)
        part = local.with_name(f"{local.stem}.{os.getpid()}.part")
        try:
            for _ in range(2):
                self._storage.download(self._output.key(entry["path"]), part)
                if file_digest(part).sha256 == entry["sha256"]:
                    os.replace(part, local)
                    self._evict(keep=local)
                    return
        finally:
            part.unlink(missing_ok=True)
        raise CorruptShard(
            f"{self._output.key(entry['path'])} was fetched twice and neither time had the sha256 "
            f"{entry['sha256']} of its manifest"
        )

    def _evict(self, keep: Path) -> None:
        files = []
        for file in self.folder.iterdir():
            if file.suffix in (".tar", ".npy"):
                try:
                    files.append((file.stat(), file))
                except FileNotFoundError:
                    continue  # Another process was faster.
        excess = sum(status.st_size for status, _ in files) - self._limit
        for status, file in sorted(files, key=lambda pair: pair[0].st_mtime_ns):
            if excess <= 0:
                return
            if file != keep:
                file.unlink(missing_ok=True)
                excess -= status.st_size

    @contextmanager
    def _lock(self, sha256: str) -> Iterator[None]:
        """One fetch of a file at a time on this node. There are 256 lock files at most."""
        with open(self.folder / f"{sha256[:2]}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_whole(local: Path, size: int) -> bool:
    return local.exists() and local.stat().st_size == size


def _private_folder(folder: Path) -> Path:
    """Make the folder, for this user alone. Raises UserError where it belongs to another."""
    folder.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"cache folder {folder} belongs to another user: set `cache` to a folder of your own")
    return folder
