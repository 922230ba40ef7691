"""How much a cache's files take, without listing them for each new one, and which of them goes next.

Listing a folder takes as long as it has files, so a list for every file that comes is a cost that grows with the square
of the cache. Here a file beside the others holds their sum, for all processes of the node, and a process remembers what
it saw when it listed last: what has not been used since is older than anything that came or was used after.
"""

from __future__ import annotations

import fcntl
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

NAME = "account.lock"


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A file as it was when the folder was listed."""

    path: Path
    bytes: int
    used_ns: int


class Account:
    """The sum of the sizes of the files in `folder` with this suffix. Safe among threads and processes of a node.

    The folder is listed for the first file that this process adds, which mends what killed processes have left out of
    the sum, and again when all that was seen then has been looked at: so about once in as many files as it has.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder, self._suffix = folder, suffix
        self._oldest: deque[_Seen] = deque()
        self._listed = False

    def add(self, path: Path, size: int, room: Callable[[int], int]) -> None:
        """Count a file that has come, and delete others, the least recently used first, until there is room.

        `room` tells how many bytes all files may take, of how many they do take.
        """
        with self._locked() as file:
            listed = not self._listed
            used = self.list() if listed else _sum(file) + size
            while used > room(used) and (self._oldest or not listed):
                if self._oldest:
                    used -= _given_up(self._oldest.popleft(), path)
                else:
                    used, listed = self.list(), True
            file.seek(0)
            file.truncate()
            file.write(str(used))

    def list(self) -> int:
        """Look at all files; returns their bytes."""
        found = []
        for path in self._folder.iterdir():
            if path.suffix == self._suffix:
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # Another process was faster.
                found.append(_Seen(path=path, bytes=status.st_size, used_ns=status.st_mtime_ns))
        self._oldest, self._listed = deque(sorted(found, key=lambda seen: seen.used_ns)), True
        return sum(seen.bytes for seen in found)

    @contextmanager
    def _locked(self) -> Iterator[IO[str]]:
        with open(self._folder / NAME, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _sum(file: IO[str]) -> int:
    file.seek(0)
    # Empty where somebody has removed it, or the disk was full: the next list has the sum.
    return int(file.read() or 0)


def _given_up(seen: _Seen, keep: Path) -> int:
    """Delete a file that has not been used since it was seen; returns the bytes that this frees."""
    try:
        if seen.path == keep or seen.path.stat().st_mtime_ns != seen.used_ns:
            return 0
        seen.path.unlink()
    except FileNotFoundError:
        # Another process gave it up, and counted that.
        return 0
    return seen.bytes
