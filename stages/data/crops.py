"""Training crops written into a batch: by the native helper where there is one, by torch where there is none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.data.native.helper import Native
from stages.data.reader import Decoded, Stored
from stages.data.transforms import train_crop


class Crops:
    """Writes crops; their bytes are the same with and without a helper."""

    def __init__(self, native: Native | None) -> None:
        self._native = native

    def write(self, sample: Decoded | Stored, box: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]) -> bool:
        """Cut a box (top, left, height, width) out of a sample, resized to `out` [R, R, 3], mirrored or not.

        False for a stored image that the helper cannot decode after all; then `out` holds anything.
        """
        if isinstance(sample, Stored):
            return self._native is not None and self._native.crop(sample.data, box.tolist(), flip, out)
        if self._native is None or not self._native.resize(sample.image, box.tolist(), flip, out):
            out[...] = train_crop(sample.image, box, flip, len(out))
        return True
