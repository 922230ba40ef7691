"""Whether the native helper gives the bytes of the plain way on this machine, by a few small images."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from stages.data.decode import decode_rgb
from stages.data.jpeg import SAMPLINGS, encode_jpeg
from stages.data.native.build import NotBuilt
from stages.data.native.helper import Native
from stages.data.transforms import train_crop

_SHAPE = (53, 85)
_BOXES = ((0, 0, 53, 85), (17, 35, 21, 34), (22, 1, 31, 3))


def check(helper: Native) -> None:
    """Raises NotBuilt where it does not."""
    for kind, data in _jpegs():
        plain = np.asarray(decode_rgb(data))
        if helper.look(data) != _SHAPE or not (_decodes(helper, data, plain) and _resizes(helper, data, plain)):
            raise NotBuilt(f"its pixels are not those of Pillow and torch here, for a JPEG of the kind {kind}")


def _decodes(helper: Native, data: bytes, plain: np.ndarray) -> bool:
    """From each row on, since versions of libjpeg differ in how well they skip the rows before."""
    for top in range(_SHAPE[0]):
        height, width = min(1 + top % 19, _SHAPE[0] - top), 1 + top % 32
        out = np.zeros((height, width, 3), dtype=np.uint8)
        if not helper.crop(data, (top, top, height, width), False, out):
            return False
        if not np.array_equal(out, plain[top : top + height, top : top + width]):
            return False
    return True


def _resizes(helper: Native, data: bytes, plain: np.ndarray) -> bool:
    for number, box in enumerate(_BOXES):
        for size in (16, 61):
            flip, made = number == 1, np.zeros((2, size, size, 3), dtype=np.uint8)
            expected = train_crop(plain, np.array(box), flip, size)
            done = helper.crop(data, box, flip, made[0]) and helper.resize(plain, box, flip, made[1])
            if not done or (made != expected).any():
                return False
    return True


def _jpegs() -> Iterator[tuple[str, bytes]]:
    rows, columns = np.mgrid[: _SHAPE[0], : _SHAPE[1]]
    levels = np.stack([rows * 4, columns * 3, (rows * columns) ** 2 % 251], axis=2).astype(np.uint8)
    for sampling in SAMPLINGS:
        yield sampling, encode_jpeg(levels, sampling)
    for kind, image in (("progressive", Image.fromarray(levels)), ("grey", Image.fromarray(levels[..., 2]))):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90, progressive=kind == "progressive")
        yield kind, buffer.getvalue()
