"""A folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from cluster.errors import UserError
from stages.context import canonical_json, sha256
from stages.ingest.config import SPLIT_NAMES, FolderSource
from stages.ingest.headers import SUFFIXES
from stages.ingest.sources.base import SPLITS, Listing, Missing, RawImage, Reference
from stages.ingest.sources.class_names import class_names, map_digest


class Folder:
    """A folder of images for each class; these may lie below `train`, `validation` (`val`, `valid`), and `test`."""

    def __init__(self, config: FolderSource) -> None:
        self._root = Path(config.path)
        self._map = None if config.class_map is None else Path(config.class_map)

    def listing(self) -> Listing:
        files = self._files
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
        )

    def digest(self) -> str:
        return sha256(canonical_json([[entry[2:] for entry in self._files], map_digest(self._map)]))

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
    def _files(self) -> list[tuple[str, str, str, int, int]]:
        """Split, class, path below the root, size and time of change of every image, by path."""
        if not self._root.is_dir():
            raise UserError(f"{self._root} is not a folder: path must hold a folder of images for each class")
        tops = [entry.name for entry in os.scandir(self._root) if entry.is_dir()]
        parts = {name: SPLIT_NAMES[name] for name in tops if name in SPLIT_NAMES} if "train" in tops else {}
        found: list[tuple[str, str, str, int, int]] = []
        for folder, split in (parts or {"": "train"}).items():
            for label in (entry for entry in os.scandir(self._root / folder) if entry.is_dir()):
                below = f"{folder}/{label.name}" if folder else label.name
                found += ((split, label.name, *file) for file in _images(label.path, below))
        if not any(split == "train" for split, *_ in found):
            formats = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
            raise UserError(
                f"{self._root} has no images to train on: put them into a folder for each class ({formats})"
            )
        return sorted(found, key=lambda entry: entry[2])


def _images(folder: str, below: str) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of every image below a folder."""
    for entry in os.scandir(folder):
        name = f"{below}/{entry.name}"
        if entry.is_dir():
            yield from _images(entry.path, name)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            status = entry.stat()
            yield name, status.st_size, status.st_mtime_ns
