"""A folder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from cluster.errors import UserError
from stages.context import canonical_json, sha256
from stages.ingest.config import SPLIT_NAMES, FolderSource
from stages.ingest.headers import SUFFIXES
from stages.ingest.sources.base import SPLITS, Listing, Missing, RawImage, Reference
from stages.ingest.sources.class_names import class_names, map_digest
from stages.ingest.sources.unused import EMPTY_CLASS, OUTSIDE, is_image_file, kind_of


@dataclass
class _Found:
    """What a folder holds."""

    images: list[tuple[str, str, str, int, int]] = field(default_factory=list)
    """Split, class, path below the root, size and time of change of every image."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of what cannot be read."""
    unused: Counter[str] = field(default_factory=Counter)


class Folder:
    """A folder of images for each class; these may lie below `train`, `validation` (`val`, `valid`), and `test`."""

    def __init__(self, config: FolderSource) -> None:
        self._root = Path(config.path)
        self._map = None if config.class_map is None else Path(config.class_map)

    def listing(self) -> Listing:
        found = self._found
        files = found.images
        classes = sorted({name for split, name, *_ in files if split == "train"})
        numbers = {name: number for number, name in enumerate(classes)}
        unknown = [f"{split}/{name}" for split, name, *_ in files if name not in numbers]
        if unknown:
            raise UserError(
                f"{self._root}: class {unknown[0]} has no training images: add a folder of that name to them"
            )
        return Listing(
            classes=class_names(self._map, classes),
            references=[path for _, _, path, *_ in files],
            labels=np.array([numbers[name] for _, name, *_ in files], dtype=np.int64),
            sizes=np.array([size for *_, size, _ in files], dtype=np.int64),
            splits=np.array([SPLITS.index(split) for split, *_ in files], dtype=np.int8),
            refused=found.refused,
            unused=found.unused,
        )

    def digest(self) -> str:
        return sha256(canonical_json([[entry[2:] for entry in self._found.images], map_digest(self._map)]))

    def read(self, references: Sequence[Reference]) -> Iterator[RawImage | Missing]:
        root = str(self._root)
        for reference in references:
            name = str(reference)
            try:
                # Unbuffered: a file is read at once.
                with open(f"{root}/{name}", "rb", buffering=0) as file:
                    yield RawImage(name=name, data=file.readall())
            except OSError as error:
                yield Missing(name=name, reason=f"cannot be read: {error.strerror}")

    @cached_property
    def _found(self) -> _Found:
        """Everything below the root, images by path. Raises UserError where there are none to train on."""
        if not self._root.is_dir():
            raise UserError(f"{self._root} is not a folder: path must hold a folder of images for each class")
        found = _Found()
        for folder, split in self._parts(found).items():
            _list_classes(found, split, str(self._root / folder), f"{folder}/" if folder else "")
        if not any(split == "train" for split, *_ in found.images):
            formats = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
            raise UserError(
                f"{self._root} has no images to train on: put them into a folder for each class ({formats})"
            )
        found.images.sort(key=lambda entry: entry[2])
        found.refused.sort()
        return found

    def _parts(self, found: _Found) -> dict[str, str]:
        """The folders below the root that hold classes, with their splits; what lies beside them is noted."""
        parts = split_folders(self._root)
        for entry in os.scandir(self._root) if "" not in parts else ():
            if entry.name not in SPLIT_NAMES:
                found.unused["folder beside train" if entry.is_dir() else _kind(entry)] += 1
        return parts


def split_folders(root: Path) -> dict[str, str]:
    """The folders below a root that hold classes, with their splits; the root itself, "", where it has no splits.

    Raises UserError where it has some and no train.
    """
    tops = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    named = [name for name in tops if name in SPLIT_NAMES]
    if "train" in tops:
        return {name: SPLIT_NAMES[name] for name in named}
    if named and (len(named) > 1 or len(tops) == 1):
        raise UserError(
            f"{root} has {' and '.join(named)} and no train: put the training images into a folder of "
            "that name beside them; where these are classes, give them other names"
        )
    return {"": "train"}


def _list_classes(found: _Found, split: str, folder: str, below: str) -> None:
    """Add the images of the classes in a folder, which has the path `below` the root."""
    ancestors = (_identity(folder),)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir():
            found.unused[_kind(entry)] += 1
            continue
        before = len(found.images) + len(found.refused)
        _list_images(found, (split, entry.name), entry.path, f"{below}{entry.name}", ancestors)
        if len(found.images) + len(found.refused) == before:
            found.unused[EMPTY_CLASS] += 1


def _list_images(
    found: _Found, place: tuple[str, str], folder: str, below: str, ancestors: tuple[tuple[int, int], ...]
) -> None:
    """Add the images of a class in a folder and in those in it. `ancestors` are the folders that it lies in."""
    try:
        own = _identity(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        found.refused.append((below, f"cannot be read: {error.strerror}"))
        return
    if own in ancestors:
        found.refused.append((below, "link to a folder that it lies in"))
        return
    for entry in entries:
        name = f"{below}/{entry.name}"
        try:
            if entry.is_dir():
                _list_images(found, place, entry.path, name, (*ancestors, own))
                continue
            status = entry.stat()
            if is_image_file(entry):
                found.images.append((*place, name, status.st_size, status.st_mtime_ns))
            else:
                found.unused[kind_of(entry.name)] += 1
        except FileNotFoundError:
            found.refused.append((name, "link to nothing"))
        except OSError as error:
            found.refused.append((name, f"cannot be read: {error.strerror}"))


def _kind(entry: os.DirEntry[str]) -> str:
    """What a file outside of the classes' folders is counted as."""
    try:
        return OUTSIDE if is_image_file(entry) else kind_of(entry.name)
    except OSError:
        return kind_of(entry.name)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
