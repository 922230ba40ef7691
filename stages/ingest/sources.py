"""The kinds of source: what each one holds, how its images are read, and its digest.

An image is known by its number in the listing, or in a folder by its path; so a list of references and
the source's config are all that a worker needs to read them.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cluster.errors import UserError
from stages.context import canonical_json, sha256
from stages.data.decode import decode_rgb
from stages.ingest.config import DigitsSource, FolderSource, IdxSource, IngestConfig

Reference = int | str
_DIGITS_FILE = "datasets/data/digits.csv.gz"
_DIGITS_LEVELS = 16
_IDX_FILES = {"train": "train", "test": "t10k"}
_SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_KEPT = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
_CONVERTED = {".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source holds: references, labels and, as far as it has them, splits, each [n]."""

    classes: tuple[str, ...]
    references: Sequence[Reference]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    """`train`, `validation` or `test`; `train` throughout where the source has no splits."""


def list_source(source: DigitsSource | IdxSource | FolderSource) -> Listing:
    """The source's images without their pixels, in an order that does not change. Raises UserError."""
    if isinstance(source, DigitsSource):
        _, labels = _digits()
        return _numbered([str(digit) for digit in range(10)], labels, np.full(len(labels), "train"))
    if isinstance(source, IdxSource):
        parts = {split: _idx_labels(source, name) for split, name in _IDX_FILES.items()}
        labels = np.concatenate(list(parts.values())).astype(np.int64)
        splits = np.repeat(list(parts), [len(part) for part in parts.values()])
        return _numbered([str(label) for label in range(labels.max(initial=-1) + 1)], labels, splits)
    return _list_folder(Path(source.path))


def read_images(
    source: DigitsSource | IdxSource | FolderSource, references: Sequence[Reference]
) -> Iterator[tuple[str, bytes]]:
    """Extension and bytes of each image, in the order of `references`.

    JPEG, PNG and WebP files are kept byte for byte; all else becomes PNG. Every image is decoded once, so
    that a file that cannot be read stops ingestion, not training. Raises UnreadableImage.
    """
    if isinstance(source, FolderSource):
        for reference in references:
            yield _read_file(Path(source.path) / str(reference))
        return
    if isinstance(source, DigitsSource):
        pixels = np.rint(_digits()[0] * (255 / _DIGITS_LEVELS)).astype(np.uint8)
    else:
        pixels = np.concatenate([_read_idx(source, name, "images-idx3", 3) for name in _IDX_FILES.values()])
    for reference in references:
        yield "png", _png(Image.fromarray(pixels[int(reference)]))


def digest_source(config: IngestConfig) -> str:
    """sha256 over name, size and time of change of every file of the source. Raises UserError.

    For the digits, which are installed anew with every environment, it is that of the file's content.
    """
    source = config.source
    if isinstance(source, DigitsSource):
        return hashlib.sha256(_digits_file().read_bytes()).hexdigest()
    if isinstance(source, IdxSource):
        kinds = ("images-idx3", "labels-idx1")
        files = [_idx_file(source, name, kind) for name in _IDX_FILES.values() for kind in kinds]
    else:
        files = [Path(source.path) / name for _, _, name in _folder_files(Path(source.path))]
    listing = []
    for file in files:
        status = file.stat()
        listing.append([file.relative_to(source.path).as_posix(), status.st_size, status.st_mtime_ns])
    return sha256(canonical_json(listing))


def _numbered(classes: Sequence[str], labels: NDArray[np.int64], splits: NDArray[np.str_]) -> Listing:
    return Listing(classes=tuple(classes), references=range(len(labels)), labels=labels, splits=splits)


def _digits_file() -> Path:
    # Found without importing scikit-learn, which takes seconds.
    package = importlib.util.find_spec("sklearn")
    file = Path(package.origin or "").parent / _DIGITS_FILE if package else None
    if file is None or not file.exists():
        raise UserError("source kind=digits reads scikit-learn's data: install scikit-learn, or choose another source")
    return file


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Grey levels [1797, 8, 8] from 0 to 16, and labels."""
    table = np.loadtxt(io.StringIO(gzip.decompress(_digits_file().read_bytes()).decode()), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def _idx_file(source: IdxSource, name: str, kind: str) -> Path:
    plain = Path(source.path) / f"{name}-{kind}-ubyte"
    for file in (plain, plain.with_name(f"{plain.name}.gz")):
        if file.exists():
            return file
    raise UserError(f"{plain} is not there, neither plain nor as .gz: path must hold MNIST's four files")


def _read_idx(source: IdxSource, name: str, kind: str, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes: two zeros, 8, the number of dimensions, their big-endian sizes, the data."""
    file = _idx_file(source, name, kind)
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    header = 4 + 4 * dimensions
    shape = np.frombuffer(data[4:header], dtype=">u4").astype(np.int64)
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != header + shape.prod():
        raise UserError(
            f"{file} is no IDX file of unsigned bytes in {dimensions} dimensions: it begins with {data[:4].hex(' ')} "
            f"and has {len(data)} bytes; fetch it again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _idx_labels(source: IdxSource, name: str) -> NDArray[np.uint8]:
    labels = _read_idx(source, name, "labels-idx1", 1)
    images = _idx_file(source, name, "images-idx3")
    with gzip.open(images) if images.suffix == ".gz" else open(images, "rb") as file:
        count = int.from_bytes(file.read(8)[4:], "big")
    if count != len(labels):
        raise UserError(f"{images} has {count} images and its labels are {len(labels)}: fetch both again")
    return labels


def _list_folder(root: Path) -> Listing:
    files = _folder_files(root)
    classes = sorted({name for split, name, _ in files if split == "train"})
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [f"{split}/{name}" for split, name, _ in files if name not in numbers]
    if unknown:
        raise UserError(f"{root}: class {unknown[0]} has no training images: add a folder of that name to them")
    return Listing(
        classes=tuple(classes),
        references=[path for _, _, path in files],
        labels=np.array([numbers[name] for _, name, _ in files], dtype=np.int64),
        splits=np.array([split for split, _, _ in files]),
    )


def _folder_files(root: Path) -> list[tuple[str, str, str]]:
    """Split, class and path below `root` of every image, sorted. Raises UserError where there is none."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: path must hold a folder of images for each class")
    tops = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    parts = (
        {name: _SPLIT_FOLDERS[name] for name in tops if name in _SPLIT_FOLDERS} if "train" in tops else {"": "train"}
    )
    found = []
    for folder, split in (parts or {"": "train"}).items():
        for label in (entry for entry in os.scandir(root / folder) if entry.is_dir()):
            for place, _, names in os.walk(label.path):
                images = [name for name in names if Path(name).suffix.lower() in _CONVERTED | _KEPT.keys()]
                found += [(split, label.name, Path(place, name).relative_to(root).as_posix()) for name in images]
    if not any(split == "train" for split, _, _ in found):
        formats = ", ".join(sorted(suffix[1:] for suffix in _CONVERTED | _KEPT.keys()))
        raise UserError(f"{root} has no images to train on: put them into a folder for each class ({formats})")
    return sorted(found, key=lambda entry: entry[2])


def _read_file(path: Path) -> tuple[str, bytes]:
    data = path.read_bytes()
    image = decode_rgb(data, str(path))
    extension = _KEPT.get(path.suffix.lower())
    return (extension, data) if extension else ("png", _png(image))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
