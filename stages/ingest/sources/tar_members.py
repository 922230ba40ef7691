"""The members of a tar, found by its headers alone, also of a tar that lies inside another."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cluster.errors import UserError
from stages.ingest.sources.ranges import RangeFile

_BUFFER_BYTES = 4096
"""A header and what follows it; the data between two headers is skipped."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A regular file: `bytes` from `offset` of the outermost file. `refused` says why it is not used."""

    name: str
    offset: int
    bytes: int
    refused: str | None = None


def refusal(member: tarfile.TarInfo) -> str | None:
    """Why a member is not even looked at: what unpacking it could do."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "path leads out of the tar"
    if not (member.isfile() or member.isdir()):
        return "link or device"
    if member.issparse():
        return "sparse file"
    return None


def check_end(file: BinaryIO, place: int, start: int = 0) -> None:
    """Raise tarfile.ReadError unless nothing but zeros follows byte `place` of a tar, one block of them at least.

    `tarfile` ends at damaged headers and at the end of the file silently, as it does at the zeros of a tar's end.
    `start` is where the tar begins, for the message.
    """
    file.seek(place)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {start + place}")
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it stops at byte {start + place + len(block)}, before the zeros that end a tar")
    while block := file.read(_BUFFER_BYTES):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"something follows the zeros at byte {start + place}")


def tar_members(path: Path, start: int = 0, length: int | None = None) -> Iterator[Member]:
    """The files in the tar at `path`, or in that which fills `length` bytes of it from `start`, without folders.

    Reads headers only, of all forms that `tarfile` knows. Raises UserError where the tar is damaged or cut.
    """
    with open(path, "rb") as file:
        whole = RangeFile(
            os.fstat(file.fileno()).st_size - start if length is None else length,
            lambda place, wanted: os.pread(file.fileno(), wanted, start + place),
        )
        part = io.BufferedReader(whole, _BUFFER_BYTES)
        try:
            with tarfile.open(fileobj=part, mode="r:") as tar:
                for member in tar:
                    reason = refusal(member)
                    if reason is not None or not member.isdir():
                        yield Member(
                            name=posixpath.normpath(member.name) if reason is None else member.name,
                            offset=start + member.offset_data,
                            bytes=member.size,
                            refused=reason,
                        )
                check_end(part, tar.offset, start)
        except tarfile.TarError as error:
            where = f"{path}, the tar at byte {start}" if start else f"{path}"
            raise UserError(f"{where}: damaged or cut: {error}; fetch it again") from error
