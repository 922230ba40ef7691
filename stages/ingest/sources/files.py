"""Files of a source on a disk that all workers see."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stages.context import canonical_json, sha256


def digest_files(root: Path, files: Iterable[Path]) -> str:
    """sha256 over name, size and time of change of every file."""
    listing = []
    for file in files:
        status = file.stat()
        listing.append([file.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns])
    return sha256(canonical_json(listing))
