"""Tars of images: one for each class, in a folder or in a tar, as ImageNet is downloaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.context import canonical_json, sha256
from stages.ingest.config import ArchivesSource
from stages.ingest.headers import SUFFIXES
from stages.ingest.sources import imagenet
from stages.ingest.sources.base import SPLITS, Listing, Missing, RawImage, Reference
from stages.ingest.sources.class_archives import Archive, check_count, find_archives, find_tars, root_of
from stages.ingest.sources.class_names import class_names, map_digest
from stages.ingest.sources.files import digest_files
from stages.ingest.sources.tar_members import Member, tar_members
from stages.ingest.sources.unused import is_image_member, kind_of

_THREADS = 4
"""Tars that are listed at once: where they lie on a network, each header waits for an answer."""


@dataclass(frozen=True, kw_only=True)
class _Content:
    """The images of one tar, the members that are refused, by name and reason, and the number of others."""

    images: list[Member] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)


class Archives:
    """Images inside of tars, read from where they lie.

    A reference is `FILE:OFFSET:BYTES:NAME`: a tar below the root, quoted as in a URL, the place of the image in
    it, and the name that people know the image by: CLASS/MEMBER, of ILSVRC's validation MEMBER.
    """

    def __init__(self, config: ArchivesSource) -> None:
        self._config, self._path = config, Path(config.path)
        self._root = root_of(self._path)

    def listing(self) -> Listing:
        archives, refused, unused = find_archives(self._path, self._tars)
        names = [archive.name for archive in archives]
        check_count(self._path, len(names), self._config.expected_classes)
        if self._has_validation:
            archives.append(Archive(name="", file=imagenet.VALIDATION))
        with ThreadPoolExecutor(_THREADS) as pool:
            contents = list(pool.map(self._scan, archives))
        labels = np.repeat(np.arange(len(names)), [len(content.images) for content in contents[: len(names)]])
        if not len(labels):
            formats = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
            raise UserError(f"{self._path}: its tars have no images: expected {formats}")
        validation = self._validation_labels(contents[-1], names) if self._has_validation else labels[:0]
        splits = [SPLITS.index("train"), SPLITS.index(self._config.validation_as)]
        listed = list(zip(archives, contents, strict=True))
        return Listing(
            classes=class_names(self._names_file, names),
            references=[_reference(archive, image) for archive, content in listed for image in content.images],
            labels=np.concatenate([labels, validation]).astype(np.int64),
            sizes=np.array([image.bytes for content in contents for image in content.images], dtype=np.int64),
            splits=np.repeat(splits, [len(labels), len(validation)]).astype(np.int8),
            refused=[*refused, *(entry for content in contents for entry in content.refused)],
            unused=sum((content.unused for content in contents), unused),
            image_name=lambda reference: _parse(reference)[3],
        )

    def digest(self) -> str:
        files = [self._root / name for name in self._tars]
        if self._has_validation:
            files += [self._root / imagenet.VALIDATION, imagenet.labels_file(self._root)]
        return sha256(canonical_json([digest_files(self._root, files), map_digest(self._names_file)]))

    def read(self, references: Sequence[Reference]) -> Iterator[RawImage | Missing]:
        for file, places in groupby(map(_parse, references), key=lambda place: place[0]):
            try:
                descriptor = os.open(self._root / file, os.O_RDONLY)
            except OSError as error:
                yield from (Missing(name=name, reason=f"cannot be read: {error.strerror}") for *_, name in places)
                continue
            try:
                yield from (_read(descriptor, offset, length, name) for _, offset, length, name in places)
            finally:
                os.close(descriptor)

    def _scan(self, archive: Archive) -> _Content:
        content, seen = _Content(), set[str]()
        with open(self._root / archive.file, "rb", buffering=0) as file:
            members = tar_members(self._root / archive.file, archive.start, archive.length)
            for member in members:
                self._take(file.fileno(), archive, member, content, seen)
        return content

    def _take(self, tar: int, archive: Archive, member: Member, content: _Content, seen: set[str]) -> None:
        name = f"{archive.name}/{member.name}"
        if member.refused is not None:
            content.refused.append((f"{archive.file}/{name}", member.refused))
        elif not is_image_member(tar, member.name, member.offset, member.bytes):
            content.unused[kind_of(member.name)] += 1
        elif member.name in seen:
            content.refused.append((name, "name is in the tar twice"))
        else:
            seen.add(member.name)
            content.images.append(member)

    def _validation_labels(self, content: _Content, names: Sequence[str]) -> NDArray[np.int64]:
        """Classes of the validation images, which are brought into the order of their names: so are the labels."""
        content.images.sort(key=lambda image: image.name)
        file = imagenet.labels_file(self._root)
        numbers = {name: number for number, name in enumerate(names)}
        found = imagenet.validation_labels(file, [image.name for image in content.images])
        unknown = next((label for label in found if label not in numbers), None)
        if unknown is not None:
            raise UserError(f"{file} has class {unknown}, which {imagenet.TRAIN} has not: fetch both again")
        return np.array([numbers[label] for label in found], dtype=np.int64)

    @cached_property
    def _tars(self) -> list[str]:
        return find_tars(self._path)

    @property
    def _has_validation(self) -> bool:
        return self._tars == [imagenet.TRAIN] and (self._root / imagenet.VALIDATION).exists()

    @property
    def _names_file(self) -> Path | None:
        if self._config.class_map is not None:
            return Path(self._config.class_map)
        file = self._root / imagenet.CLASS_NAMES
        return file if file.exists() else None


def _reference(archive: Archive, image: Member) -> str:
    name = f"{archive.name}/{image.name}" if archive.name else image.name
    return f"{quote(os.fsencode(archive.file))}:{image.offset}:{image.bytes}:{name}"


def _parse(reference: Reference) -> tuple[str, int, int, str]:
    """File, offset, bytes and name."""
    file, offset, length, name = str(reference).split(":", 3)
    return os.fsdecode(unquote_to_bytes(file)), int(offset), int(length), name


def _read(descriptor: int, offset: int, length: int, name: str) -> RawImage | Missing:
    try:
        data = os.pread(descriptor, length, offset)
    except OSError as error:
        return Missing(name=name, reason=f"cannot be read: {error.strerror}")
    if len(data) < length:
        return Missing(name=name, reason="the tar has become shorter")
    return RawImage(name=name, data=data)
