"""MNIST's four files, and those of data sets that took their names and form."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.ingest.sources.base import SPLITS, Listing, RawImage, Reference
from stages.ingest.sources.files import digest_files
from stages.ingest.sources.png import grey_png

_PARTS = {"train": "train", "test": "t10k"}
_KINDS = ("images-idx3", "labels-idx1")


class Idx:
    """A folder with the four files, plain or compressed by gzip."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def listing(self) -> Listing:
        parts = {split: self._labels(name) for split, name in _PARTS.items()}
        labels = np.concatenate(list(parts.values())).astype(np.int64)
        numbers = [SPLITS.index(split) for split in parts]
        return Listing(
            classes=tuple(str(label) for label in range(labels.max(initial=-1) + 1)),
            references=range(len(labels)),
            labels=labels,
            sizes=np.full(len(labels), self._pixels_of_an_image()),
            splits=np.repeat(numbers, [len(part) for part in parts.values()]).astype(np.int8),
        )

    def digest(self) -> str:
        return digest_files(self._folder, [self._file(name, kind) for name in _PARTS.values() for kind in _KINDS])

    def read(self, references: Sequence[Reference]) -> Iterator[RawImage]:
        pixels = np.concatenate([self._read(name, _KINDS[0], 3) for name in _PARTS.values()])
        for reference in references:
            yield RawImage(name=f"image-{reference}.png", data=grey_png(pixels[int(reference)]))

    def _file(self, name: str, kind: str) -> Path:
        plain = self._folder / f"{name}-{kind}-ubyte"
        for file in (plain, plain.with_name(f"{plain.name}.gz")):
            if file.exists():
                return file
        raise UserError(f"{plain} is not there, neither plain nor as .gz: path must hold MNIST's four files")

    def _read(self, name: str, kind: str, dimensions: int) -> NDArray[np.uint8]:
        """An IDX file of unsigned bytes: two zeros, 8, the number of dimensions, their big-endian sizes, the data."""
        file = self._file(name, kind)
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        header = 4 + 4 * dimensions
        shape = np.frombuffer(data[4:header], dtype=">u4").astype(np.int64)
        if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != header + shape.prod():
            raise UserError(
                f"{file} is no IDX file of unsigned bytes in {dimensions} dimensions: it begins with "
                f"{data[:4].hex(' ')} and has {len(data)} bytes; fetch it again"
            )
        return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)

    def _labels(self, name: str) -> NDArray[np.uint8]:
        labels = self._read(name, _KINDS[1], 1)
        count = self._header(name)[0]
        if count != len(labels):
            images = self._file(name, _KINDS[0])
            raise UserError(f"{images} has {count} images and its labels are {len(labels)}: fetch both again")
        return labels

    def _pixels_of_an_image(self) -> int:
        return int(np.prod(self._header(_PARTS["train"])[1:]))

    def _header(self, name: str) -> list[int]:
        """Images, rows and columns."""
        file = self._file(name, _KINDS[0])
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as opened:
            return np.frombuffer(opened.read(16)[4:], dtype=">u4").tolist()
