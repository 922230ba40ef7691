"""Shards: plain WebDataset tars, and an index beside each that makes their samples addressable.

The only importer of webdataset. Equal samples give equal bytes: times, owners and modes are fixed.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from webdataset.writer import TarWriter

from cluster.errors import UserError

INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("label", "<i4")])
"""Where a sample's image bytes begin in the tar, how many they are, and the sample's label."""

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One labelled image as it is stored. `extension` is one of IMAGE_EXTENSIONS."""

    key: str
    extension: str
    data: bytes
    label: int


def write_shard(samples: Iterable[Sample], path: Path) -> tuple[NDArray[np.void], dict[int, int]]:
    """Write samples to a tar; returns its index [n] of INDEX_DTYPE and the number of samples by label.

    Raises ValueError for a key with a dot in its last part: WebDataset would read it as an extension.
    """
    with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0, user="", group="") as writer:
        for sample in samples:
            if "." in sample.key.rsplit("/", 1)[-1]:
                raise ValueError(f"sample key {sample.key!r} has a dot after its last slash")
            writer.write({"__key__": sample.key, sample.extension: sample.data, "cls": str(sample.label).encode()})
    index = index_shard(path)
    return index, dict(sorted(Counter(index["label"].tolist()).items()))


def index_shard(path: Path) -> NDArray[np.void]:
    """The index of any WebDataset tar whose samples have one image and a `cls`, in the order of the tar.

    Raises UserError, naming the tar and the sample, where one of the two is missing.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            key = f"{folder}/{stem}"
            if extension.lower() in IMAGE_EXTENSIONS:
                images[key] = (member.offset_data, member.size)
            elif extension == "cls" and (file := tar.extractfile(member)) is not None:
                labels[key] = int(file.read())
    for key in images.keys() ^ labels.keys():
        missing = "a cls" if key in images else "an image"
        raise UserError(f"{path}: sample {key.lstrip('/')} lacks {missing}; each sample needs an image and a cls")
    return np.array([(*images[key], labels[key]) for key in images], dtype=INDEX_DTYPE)


def index_bytes(index: NDArray[np.void]) -> bytes:
    """The index as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    return buffer.getvalue()


def read_index(path: Path | BinaryIO) -> NDArray[np.void]:
    """The index [n] of a shard from its .npy file, by path or opened. Raises ValueError where it is something else."""
    data = path.read_bytes() if isinstance(path, Path) else path.read()
    # The header is compared, not parsed as numpy.load does it: that takes Python's own parser, which in
    # Python 3.11 fails at random where several threads use it (github.com/python/cpython/issues/106905).
    start = 10 + int.from_bytes(data[8:10], "little")
    count = (len(data) - start) // INDEX_DTYPE.itemsize
    expected = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(expected, description)
    if data[:start] != expected.getvalue() or len(data) != start + count * INDEX_DTYPE.itemsize:
        raise ValueError(f"{path} is no shard index: it begins with {data[:start][:200]!r}")
    return np.frombuffer(data, INDEX_DTYPE, count, start)
