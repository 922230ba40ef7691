"""Storage in a local folder. Conditional writes hold between processes of one machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from cluster.errors import UserError
from cluster.storage.base import Conflict, Digest, NotFound, Stat, file_digest

HIDDEN = ".patchline"
"""Folder of temporary files and locks below the root. Its files are no keys."""


class FileStorage:
    """Keys are paths below a folder; the tag is made of the file's inode, time of change and size.

    Every write makes a new file, so every write makes a new tag.
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
        try:
            with open(self._path(key), "rb") as file:
                return file.read(), _tag(os.fstat(file.fileno()))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFound(key) from None

    def read_range(self, key: str, start: int, length: int) -> bytes:
        try:
            with open(self._path(key), "rb") as file:
                file.seek(start)
                data = file.read(length)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFound(key) from None
        if len(data) != length:
            raise ValueError(f"{key}: asked for {length} bytes from {start}, found {len(data)}")
        return data

    def stat(self, key: str) -> Stat | None:
        try:
            found = self._path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stat(bytes=found.st_size, tag=_tag(found)) if S_ISREG(found.st_mode) else None

    def write(self, key: str, data: bytes) -> str:
        with self._temporary(data) as temporary:
            tag = _tag(temporary.stat())
            os.replace(temporary, self._made(key))
        return tag

    def write_if_absent(self, key: str, data: bytes) -> str:
        with self._temporary(data) as temporary:
            try:
                # A link appears whole or not at all, and never replaces a file.
                os.link(temporary, self._made(key))
            except FileExistsError:
                body, tag = self.read_tagged(key)
                if body != data:
                    raise Conflict(f"{key} exists") from None
                return tag
            return _tag(temporary.stat())

    def compare_and_swap(self, key: str, data: bytes, tag: str) -> str:
        with self._lock(key):
            try:
                body, found = self.read_tagged(key)
            except NotFound:
                raise Conflict(f"{key} does not exist") from None
            if found == tag:
                return self.write(key, data)
            if body != data:
                raise Conflict(f"{key} has changed")
            return found

    def upload(self, key: str, path: Path) -> Digest:
        temporary = self._hidden("tmp") / secrets.token_hex(16)
        try:
            shutil.copyfile(path, temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            digest = file_digest(temporary)
            if digest.bytes != path.stat().st_size:
                raise OSError(f"{path} changed while it was stored as {key}")
            os.replace(temporary, self._made(key))
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    def download(self, key: str, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            shutil.copyfile(self._path(key), temporary)
            os.replace(temporary, path)
        except FileNotFoundError:
            if not self._path(key).exists():
                raise NotFound(key) from None
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[str]:
        folder = self._root / prefix.rpartition("/")[0]
        found = []
        for place, folders, files in os.walk(folder):
            if Path(place) == self._root:
                folders[:] = [name for name in folders if name != HIDDEN]
            keys = (str((Path(place) / name).relative_to(self._root)) for name in files)
            found += [key for key in keys if key.startswith(prefix)]
        return iter(sorted(found))

    def list_folders(self, prefix: str) -> list[str]:
        try:
            names = sorted(entry.name for entry in os.scandir(self._root / prefix) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [n for n in names if n != HIDDEN and next(self.list(f"{prefix}{n}/"), None) is not None]

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not key or key.startswith("/") or any(part in ("", ".", "..") for part in parts) or parts[0] == HIDDEN:
            raise ValueError(f"{key!r} is no storage key")
        return self._root.joinpath(*parts)

    def _made(self, key: str) -> Path:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _hidden(self, name: str) -> Path:
        folder = self._root / HIDDEN / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """A file with this body that is on disk before it gets its name."""
        path = self._hidden("tmp") / secrets.token_hex(16)
        try:
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        # One of 64 lock files, so that their number stays small however many keys there are.
        number = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 64
        with open(self._hidden("locks") / str(number), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _tag(found: os.stat_result) -> str:
    return f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
