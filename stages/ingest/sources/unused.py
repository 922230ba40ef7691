"""Files that are no images this program knows: how they are told from images, and what they are counted as."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath

from stages.ingest.headers import SUFFIXES, is_known

OUTSIDE = "image outside of a class"
EMPTY_CLASS = "class without images"
NO_SUFFIX = "without a suffix"
_BEGINNING = 16
"""Bytes that a format is known by."""
_MOST_KINDS = 20
_OTHERS = "others"


def is_image_file(entry: os.DirEntry[str]) -> bool:
    """Whether a file is taken for an image: by its suffix or, where it has none, by its first bytes.

    Raises OSError where these cannot be read.
    """
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix or not entry.is_file():
        return suffix in SUFFIXES
    with open(entry.path, "rb", buffering=0) as file:
        return is_known(file.read(_BEGINNING))


def is_image_member(descriptor: int, name: str, offset: int, length: int) -> bool:
    """The same of a member of an open tar."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in SUFFIXES if suffix else is_known(os.pread(descriptor, min(length, _BEGINNING), offset))


def kind_of(name: str) -> str:
    """What an unused file is counted as: its suffix in small letters, such as `.txt`."""
    return PurePosixPath(name).suffix.lower() or NO_SUFFIX


def most_common(unused: Mapping[str, int]) -> dict[str, int]:
    """The counts with the largest ones first, those of rare kinds together."""
    ordered = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
    found = dict(ordered[:_MOST_KINDS])
    rest = sum(count for _, count in ordered[_MOST_KINDS:])
    return {**found, _OTHERS: rest} if rest else found
