"""Which tars there are, and which class each of them is of: files of a folder, or members of a tar."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.errors import UserError
from stages.ingest.headers import SUFFIXES
from stages.ingest.sources import imagenet
from stages.ingest.sources.tar_members import tar_members
from stages.ingest.sources.unused import OUTSIDE, kind_of

_COMPRESSED = re.compile(r"\.(tgz|tar\.\w+)$")
_WINTER = "winter21_whole"
_KNOWN_CLASSES = {
    1000: "ILSVRC 2012",
    19_167: "ImageNet's winter 2021 release",
    21_841: "ImageNet's fall 2011 release",
    21_843: "the heads of models that were published for ImageNet-21k",
}


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A tar of images: a whole file, or a part of one. `name` is its class; "" is for ILSVRC's validation."""

    name: str
    file: str
    """Below the root."""
    start: int = 0
    length: int | None = None


def root_of(path: Path) -> Path:
    """The folder with the tars: `path`, or that of the tar at `path`."""
    if not path.is_dir():
        return path.parent
    # The winter release unpacks into a folder of this name.
    return path / _WINTER if (path / _WINTER).is_dir() else path


def find_tars(path: Path) -> list[str]:
    """Names below the root of the tars with training images, sorted. Raises UserError where there are none."""
    root = root_of(path)
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_file()) if root.is_dir() else []
    if not path.is_dir():
        names = [name for name in names if name == path.name]
    elif imagenet.TRAIN in names:
        return [imagenet.TRAIN]
    elif imagenet.VALIDATION in names:
        raise UserError(f"{root} has {imagenet.VALIDATION} alone: put {imagenet.TRAIN} beside it")
    compressed = [name for name in names if _COMPRESSED.search(name)]
    if compressed:
        raise UserError(
            f"{root / compressed[0]}: a compressed tar cannot be read at random: unpack it once and take it away"
        )
    tars = [name for name in names if name.endswith(".tar")]
    if not tars:
        raise UserError(f"{path}: expected a folder with .tar files, one for each class, or one .tar of such")
    return tars


def find_archives(path: Path, tars: Sequence[str]) -> tuple[list[Archive], list[tuple[str, str]], Counter[str]]:
    """The tars of the classes, sorted by class; of the tars that they lie in, the refused members and the unused ones.

    Raises UserError where two are of the same class.
    """
    root, found = root_of(path), dict[str, Archive]()
    refused: list[tuple[str, str]] = []
    unused: Counter[str] = Counter()
    for file in tars:
        for archive in _classes(path, file, refused, unused):
            other = found.setdefault(archive.name, archive)
            if other is not archive:
                files = f"{other.file} and in {archive.file}" if other.file != archive.file else f"{other.file} twice"
                raise UserError(f"{root}: class {archive.name} is in {files}: expected one tar for each class")
    return [found[name] for name in sorted(found)], refused, unused


def check_count(path: Path, found: int, expected: int | None) -> None:
    """Raise UserError where there are not as many classes as expected."""
    if expected is not None and expected != found:
        known = [f"; {_KNOWN_CLASSES[count]}: {count:,}" for count in (found, expected) if count in _KNOWN_CLASSES]
        raise UserError(
            f"{path} has {found:,} classes and expected_classes={expected:,}{''.join(known)}. "
            "Fetch what is missing, or give the number that you mean"
        )


def _classes(path: Path, file: str, refused: list[tuple[str, str]], unused: Counter[str]) -> Iterator[Archive]:
    """The tars in a tar of tars; else the file itself. What else it has goes to `refused` and `unused`."""
    tar = root_of(path) / file
    if not _is_nested(tar):
        if file == imagenet.TRAIN or not path.is_dir():
            raise UserError(f"{tar} has no .tar in it: expected one for each class; where it is one, give its folder")
        yield Archive(name=PurePosixPath(file).stem, file=file)
        return
    for member in tar_members(tar):
        name = PurePosixPath(member.name)
        if member.refused is not None:
            refused.append((f"{file}/{member.name}", member.refused))
        elif _COMPRESSED.search(name.name):
            raise UserError(f"{tar}: {member.name} is compressed and cannot be read at random: unpack the tars once")
        elif name.suffix == ".tar":
            yield Archive(name=name.stem, file=file, start=member.offset, length=member.bytes)
        else:
            unused[OUTSIDE if name.suffix.lower() in SUFFIXES else kind_of(member.name)] += 1


def _is_nested(tar: Path) -> bool:
    """Whether a tar has tars in it: its first tar or image tells."""
    for member in tar_members(tar):
        if member.refused is None:
            name = PurePosixPath(member.name)
            if name.suffix == ".tar" or _COMPRESSED.search(name.name):
                return True
            if name.suffix.lower() in SUFFIXES:
                return False
    return False
