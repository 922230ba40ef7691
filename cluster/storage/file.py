"""Storage in a local folder, or on a file system that machines share.

There are no locks: a process that is paused while it holds one would keep all others out. A key is a plain
file until its first compare-and-swap; from then on its bodies are numbered files in a hidden folder, each made
by a hard link, which only one process can make. The highest number counts, and a copy of it stays at the
key's own place for people to read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from cluster.errors import UserError
from cluster.storage.base import Conflict, Digest, NotFound, ObjectWriter, Stat, file_digest
from cluster.storage.keys import HIDDEN, check_key, check_prefix

ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
TEMPORARY = f"{HIDDEN}/tmp"
"""Where bodies lie until they have their names."""
UNFINISHED_SECONDS = 86400.0
"""What nobody has written to for so long, there, is what a killed process has left."""
VERSIONS_KEPT = 64
"""Of a key that is swapped. A process that was paused for more swaps than that cannot tell whether it won."""


class FileStorage:
    """Keys are paths below a folder; the tag is made of the file's inode, time of change and size.

    Every write makes a new file, so every write makes a new tag. A key that is swapped is not to be written
    in other ways while processes may swap it for the first time.
    """

    def __init__(self, url: str) -> None:
        root = Path(url.removeprefix("file://"))
        if not root.is_absolute():
            raise UserError(f"{url}: expected an absolute folder, for example file://{root.absolute()}")
        self.url = f"file://{root}"
        self._root = root

    def read(self, key: str) -> bytes:
        return self.read_tagged(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        with self._opened(key) as file:
            return file.read(), _tag(os.fstat(file.fileno()))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._opened(key) as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise ValueError(f"{key}: asked for {length} bytes from {start}, found {len(data)}")
        return data

    def stat(self, key: str) -> Stat | None:
        try:
            with self._opened(key) as file:
                found = os.fstat(file.fileno())
        except NotFound:
            return None
        return Stat(bytes=found.st_size, tag=_tag(found))

    def write(self, key: str, data: bytes) -> str:
        with self._temporary(data) as temporary:
            return self._publish(temporary, key)

    def write_if_absent(self, key: str, data: bytes) -> str:
        with self._temporary(data) as temporary:
            tag, path = _tag(temporary.stat()), self._made(key)
            try:
                # A link appears whole or not at all, and never replaces a file.
                os.link(temporary, path)
            except FileExistsError:
                return self._own(key, data)
            _sync_folder(path.parent)
            return tag

    def compare_and_swap(self, key: str, data: bytes, tag: str) -> str:
        number = self._newest(key)
        found = self.stat(key)
        if found is None or found.tag != tag:
            return self._own(key, data)
        with self._temporary(data) as temporary:
            swapped = self._link(temporary, key, number + 1)
            return swapped if swapped is not None else self._own(key, data)

    def upload(self, key: str, path: Path) -> Digest:
        with self._temporary() as temporary:
            with _explained(self.url):
                shutil.copyfile(path, temporary)
                _finish(temporary)
            digest = file_digest(temporary)
            if digest.bytes != path.stat().st_size:
                raise OSError(f"{path} changed while it was stored as {key}")
            self._publish(temporary, key)
        return digest

    @contextmanager
    def writer(self, key: str) -> Iterator[ObjectWriter]:
        with self._temporary() as temporary:
            with open(temporary, "wb") as file:
                yield (written := _FileWriter(file, self.url))
                with _explained(self.url):
                    file.flush()
            with _explained(self.url):
                _finish(temporary)
            self._publish(temporary, key)
        written.digest = Digest(bytes=written.bytes, sha256=written.sha256.hexdigest())

    def download(self, key: str, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with self._opened(key) as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, 2**20)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[str]:
        folder, _, beginning = check_prefix(prefix).rpartition("/")
        return iter(sorted(self._keys(folder, beginning)))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        for key in self.list(prefix):
            # What is removed meanwhile is no longer listed.
            if (found := self.stat(key)) is not None:
                yield key, found.bytes

    def list_folders(self, prefix: str, limit: int | None = None) -> list[str]:
        folder = self._root / check_prefix(prefix)
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except ABSENT:
            return []
        found = (name for name in names if (prefix or name != HIDDEN) and any(self._keys(f"{prefix}{name}")))
        return list(islice(found, limit))

    def delete(self, key: str) -> None:
        with suppress(*ABSENT):
            self._path(key).unlink()
        shutil.rmtree(self._versions(key), ignore_errors=True)

    def remove_unfinished(self, *, dry_run: bool = False) -> list[int]:
        """Remove what killed processes have left of bodies that never got their names; returns the sizes in bytes.

        With `dry_run` nothing changes. Who writes to a body once a day at least is not disturbed.
        """
        entries, sizes = list(self._entries(TEMPORARY)), []
        oldest = self._now(dry_run=dry_run) - UNFINISHED_SECONDS if entries else 0.0
        for entry in entries:
            # Somebody may be done with it meanwhile.
            with suppress(FileNotFoundError), _explained(self.url):
                found = entry.stat(follow_symlinks=False)
                if found.st_mtime <= oldest:
                    if not dry_run:
                        os.unlink(entry.path)
                    sizes.append(found.st_size)
        return sizes

    def _now(self, *, dry_run: bool) -> float:
        """By the file system's clock, which may be that of another machine; not where nothing may be written."""
        if dry_run:
            return time.time()
        with _explained(self.url), tempfile.TemporaryFile(dir=self._temporaries()) as file:
            return os.fstat(file.fileno()).st_mtime

    def _keys(self, folder: str, beginning: str = "") -> Iterator[str]:
        """All keys below a folder whose next part begins so, in no order, as they are found."""
        # With strings alone: an index of 10,000 folders is read in a fraction of the time that paths would take.
        waiting = [(folder, beginning)]
        while waiting:
            below, beginning = waiting.pop()
            for entry in self._entries(below):
                if not entry.name.startswith(beginning) or (not below and entry.name == HIDDEN):
                    continue
                key = f"{below}/{entry.name}" if below else entry.name
                if not entry.is_dir():
                    yield key
                elif not entry.is_symlink():
                    waiting.append((key, ""))

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        with suppress(*ABSENT), os.scandir(f"{self._root}/{folder}") as found:
            yield from found

    def _own(self, key: str, data: bytes) -> str:
        """The tag, if the body there is the one that the caller wanted to write; else Conflict."""
        try:
            body, tag = self.read_tagged(key)
        except NotFound:
            raise Conflict(f"{key} does not exist") from None
        if body != data:
            raise Conflict(f"{key} has another body")
        return tag

    def _path(self, key: str) -> Path:
        return self._root.joinpath(check_key(key))

    def _made(self, key: str) -> Path:
        path = self._path(key)
        with _explained(self.url):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _temporaries(self) -> Path:
        folder = self._root / TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _opened(self, key: str) -> BinaryIO:
        path = self._path(key)
        while True:
            number = self._newest(key)
            try:
                return open(self._version(key, number) if number else path, "rb")
            except ABSENT:
                # Between the two looks others may have swapped so often that the version has been removed.
                if self._newest(key) == number:
                    raise NotFound(key) from None

    @contextmanager
    def _temporary(self, data: bytes = b"") -> Iterator[Path]:
        """A file with this body, on disk before it gets its name."""
        with _explained(self.url):
            path = self._temporaries() / secrets.token_hex(16)
        try:
            with _explained(self.url):
                path.write_bytes(data)
                _finish(path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _publish(self, temporary: Path, key: str) -> str:
        while number := self._newest(key):
            if (tag := self._link(temporary, key, number + 1)) is not None:
                return tag
        tag, path = _tag(temporary.stat()), self._made(key)
        os.replace(temporary, path)
        _sync_folder(path.parent)
        return tag

    # The versions of a key that is swapped

    def _versions(self, key: str) -> Path:
        """The folder of a key's versions: its name is a hash, since a key may begin with another one."""
        return self._root / HIDDEN / "versions" / hashlib.sha256(check_key(key).encode()).hexdigest()[:32]

    def _version(self, key: str, number: int) -> Path:
        return self._versions(key) / str(number)

    def _numbers(self, key: str) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self._versions(key)))
        except FileNotFoundError:
            return []

    def _newest(self, key: str) -> int:
        """The version that counts; 0 for the plain file, or where there is nothing."""
        return max(self._numbers(key), default=0)

    def _link(self, temporary: Path, key: str, number: int) -> str | None:
        """Make a file the key's version of this number; its tag, or None where somebody else's is there."""
        versions, version = self._versions(key), self._version(key, number)
        if not versions.is_dir():
            versions.mkdir(parents=True, exist_ok=True)
            _sync_folder(versions.parent)
        tag = _tag(temporary.stat())
        try:
            os.link(temporary, version)
        except (FileExistsError, FileNotFoundError):
            # There is one, or the key has just been removed.
            return None
        _sync_folder(versions)
        numbers = self._numbers(key)
        if max(numbers, default=0) >= number + VERSIONS_KEPT:
            # Others went on for so long that this number may have been theirs before, and removed.
            version.unlink(missing_ok=True)
            return None
        self._show(version, key)
        for old in numbers:
            if old <= number - VERSIONS_KEPT:
                self._version(key, old).unlink(missing_ok=True)
        return tag

    def _show(self, version: Path, key: str) -> None:
        """Put a copy at the key's own place. A late one may show an older body there, which nobody acts on."""
        copy = self._temporaries() / secrets.token_hex(16)
        with suppress(FileNotFoundError):
            os.link(version, copy)
            os.replace(copy, self._made(key))
        copy.unlink(missing_ok=True)


class _FileWriter:
    """Writes to a file and hashes on the way."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._file, self._url = file, url
        self.bytes, self.sha256 = 0, hashlib.sha256()
        self.digest: Digest | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        with _explained(self._url):
            return self._file.write(data)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Within it, what a user can mend of a file system's errors is said in this program's words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"no room left ({error.strerror}): make room on its disk, then `resume`; or name another --root"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            why = f"nothing can be written ({error.strerror}): mount it for writing, or name another --root"
        else:
            raise
        raise UserError(f"{url}: {why}") from error


def _finish(path: Path) -> None:
    """Bring a temporary file to disk, with a time of change of its own."""
    with open(path, "rb+") as file:
        # The kernel's time moves in steps of milliseconds. Within one step a later file can have the
        # inode and the size of an earlier one, and would have its tag.
        now = time.time_ns()
        os.utime(file.fileno(), ns=(now, now))
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Bring the new name to disk, before anything that refers to it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tag(found: os.stat_result) -> str:
    return f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
