"""Folders for large files that are needed for a while. What killed processes have left is removed by the next one."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "patchline-temporary"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty one, which is removed at the end of the block."""
    folder = new_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_folder() -> Path:
    """An empty one. What killed processes have left is removed: a checkpoint may be as large as the disk's rest.

    Where the system does not tell which processes there are, it stays.
    """
    if not Path("/proc/self/ns/pid").exists():
        return Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
    own = f"{PREFIX}-{_processes()}-"
    for path in Path(tempfile.gettempdir()).glob(f"{own}*"):
        if not Path(f"/proc/{path.name.removeprefix(own).split('-')[0]}").exists():
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{own}{os.getpid()}-"))


def machine_id() -> str:
    """Equal on ranks that see the same folder for temporary files, so in one container of one machine."""
    place = os.stat(tempfile.gettempdir())
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {place.st_dev} {place.st_ino}"


def _processes() -> str:
    """Tells whose process ids these are: those of another machine that shares the folder, or of another container,
    mean nothing here."""
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return hashlib.sha256(f"{machine_id()} {namespace}".encode()).hexdigest()[:12]
