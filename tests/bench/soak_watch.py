"""What a process holds while it reads a data set, for `tests.bench.soak`: memory, files, descriptors."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Held:
    """What is held at one moment."""

    samples: int
    """Read so far."""
    rss: int
    """Resident memory in bytes."""
    own: int
    """Of that what is no file's, as libraries are: what this process has allocated, in bytes."""
    descriptors: int
    threads: int
    files: int
    """In the cache's folder."""
    cached: int
    """Bytes of the whole files there."""
    folder: int
    """Bytes of all files there, those included that are being fetched."""
    evicted: int
    """Bytes of files that are gone from that folder, and that this process has open still."""
    temporary: int
    """Files in the temporary folder."""


@dataclass
class Watch:
    """Looks at this process, its cache's folder and its temporary one, and remembers what it saw."""

    cache: Path
    temporary: Path
    seen: list[Held] = field(default_factory=list)

    def look(self, samples: int) -> Held:
        """What is held now, with so many samples read."""
        memory = Path("/proc/self/smaps_rollup").read_text()
        sizes = _sizes(self.cache)
        found = Held(
            samples=samples,
            rss=1024 * _kilobytes(memory, "Rss"),
            own=1024 * _kilobytes(memory, "Anonymous"),
            descriptors=len(os.listdir("/proc/self/fd")),
            threads=threading.active_count(),
            files=len(sizes),
            cached=sum(size for name, size in sizes.items() if name.endswith(".cached")),
            folder=sum(sizes.values()),
            evicted=evicted_bytes(self.cache),
            temporary=sum(len(names) for _, _, names in os.walk(self.temporary)),
        )
        self.seen.append(found)
        return found

    def most(self, name: str) -> int:
        """The largest value of a field."""
        return max(getattr(held, name) for held in self.seen)

    def at(self, name: str, share: float) -> int:
        """A field when that share of the samples had been read."""
        return getattr(self.seen[round(share * (len(self.seen) - 1))], name)

    def growth(self, name: str) -> float:
        """Bytes that a field grows by in a sample, by least squares over the second half."""
        half = self.seen[len(self.seen) // 2 :]
        line = np.polyfit([held.samples for held in half], [getattr(held, name) for held in half], 1)
        return float(line[0])

    def left(self) -> list[str]:
        """Names of files in the cache's folder that are neither whole shards nor locks, and of temporary ones."""
        names = [name for name in _sizes(self.cache) if not name.endswith((".cached", ".lock"))]
        return sorted([*names, *(name for _, _, own in os.walk(self.temporary) for name in own)])


def _kilobytes(text: str, name: str) -> int:
    found = re.search(rf"^{name}: +(\d+) kB$", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file by its name; those that go meanwhile are left out."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                found[entry.name] = entry.stat().st_size
            except FileNotFoundError:
                continue
    return found


def open_files() -> list[str]:
    """Files that this process has open; not its connections, which its clients use again."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(path for path in found if path.startswith("/") and not path.startswith("/proc/"))


def evicted_bytes(folder: Path) -> int:
    """Bytes of files of a folder that this process has open, each once, and that have no name any more."""
    found = {}
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            path, status = os.readlink(f"/proc/self/fd/{descriptor}"), os.stat(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue
        if path.startswith(f"{folder}/") and status.st_nlink == 0:
            found[status.st_ino] = status.st_size
    return sum(found.values())
