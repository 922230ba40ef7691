"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.ingest.sources.base import Listing, RawImage, Reference
from stages.ingest.sources.png import grey_png

_FILE = "datasets/data/digits.csv.gz"
_LEVELS = 16


class Digits:
    """1,797 images of 8 × 8 pixels in 17 grey levels."""

    def listing(self) -> Listing:
        _, labels = _digits()
        return Listing(
            classes=tuple(str(digit) for digit in range(10)),
            references=range(len(labels)),
            labels=labels,
            sizes=np.full(len(labels), 64),
            splits=np.zeros(len(labels), dtype=np.int8),
        )

    def digest(self) -> str:
        # Of the content: the file is installed anew with every environment.
        return hashlib.sha256(_file().read_bytes()).hexdigest()

    def read(self, references: Sequence[Reference]) -> Iterator[RawImage]:
        pixels = np.rint(_digits()[0] * (255 / _LEVELS)).astype(np.uint8)
        for reference in references:
            yield RawImage(name=f"digit-{reference}.png", data=grey_png(pixels[int(reference)]))


def _file() -> Path:
    # Found without importing scikit-learn, which takes seconds.
    package = importlib.util.find_spec("sklearn")
    file = Path(package.origin or "").parent / _FILE if package else None
    if file is None or not file.exists():
        raise UserError("source kind=digits reads scikit-learn's data: install scikit-learn, or choose another source")
    return file


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Grey levels [1797, 8, 8] from 0 to 16, and labels."""
    table = np.loadtxt(io.StringIO(gzip.decompress(_file().read_bytes()).decode()), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
