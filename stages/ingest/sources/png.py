"""Pixels as PNG, for sources that have no files."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def grey_png(pixels: NDArray[np.uint8]) -> bytes:
    """A grey image [H, W] as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
