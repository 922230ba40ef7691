"""The native helper: JPEGs decoded only where a crop needs them, resized, straight into the batch.

It changes speed alone. What it makes has the bytes of `decode_rgb` and `train_crop`, which is tried with a few small
images before it is used; and it takes those JPEGs alone that Pillow reads without a doubt: 8 bits, grey or three
colours, upright, one image, its end where it belongs. All others, and those in which it meets the least sign of damage,
it leaves to the plain way. ctypes lets go of the interpreter's lock, so threads decode on all cores of one process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.data.native.build import NotBuilt, load

SWITCH = "PATCHLINE_NATIVE"
"""The environment's variable that turns the helper off where it is 0."""

Image = NDArray[np.uint8]

_Pair, _Box = ctypes.c_int32 * 2, ctypes.c_int32 * 4
_lock = threading.Lock()


class Native:
    """The compiled functions. Safe among threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._look, self._crop, self._resize = library.patchline_look, library.patchline_crop, library.patchline_resize
        self._look.argtypes = [ctypes.c_char_p, ctypes.c_size_t, _Pair]
        self._crop.argtypes = [ctypes.c_char_p, ctypes.c_size_t, _Box, ctypes.c_int, _Pair, ctypes.c_void_p]
        self._resize.argtypes = [
            *(ctypes.c_void_p, ctypes.c_ssize_t, _Pair, ctypes.c_int, _Pair, ctypes.c_void_p),
        ]

    def look(self, data: bytes) -> tuple[int, int] | None:
        """Height and width of a JPEG that is for the helper, None for all other bytes."""
        size = _Pair()
        return None if self._look(data, len(data), size) else (size[0], size[1])

    def crop(self, data: bytes, box: Sequence[int], flip: bool, out: Image) -> bool:
        """What `train_crop` makes of the decoded image, into `out` [H, W, 3]; whether it could be done.

        `data` is what `look` has given a size for. Where it could not be done, `out` holds anything.
        """
        return not self._crop(data, len(data), _Box(*box), flip, _Pair(*_shape(out)), out.ctypes.data)

    def resize(self, image: Image, box: Sequence[int], flip: bool, out: Image) -> bool:
        """`train_crop` of a decoded image [h, w, 3] into `out` [H, W, 3]; whether it could be done."""
        top, left, height, width = box
        cut = image[top : top + height, left : left + width]
        if cut.shape != (height, width, 3) or cut.strides[1:] != (3, 1):
            return False
        where = (cut.ctypes.data, cut.strides[0], _Pair(height, width))
        return not self._resize(*where, flip, _Pair(*_shape(out)), out.ctypes.data)


def _shape(out: Image) -> tuple[int, int]:
    if out.dtype != np.uint8 or out.shape[2:] != (3,) or not out.flags.c_contiguous:
        raise ValueError(f"an image of {out.dtype} {out.shape} cannot be written to: uint8 [H, W, 3] in one piece can")
    return out.shape[0], out.shape[1]


def native() -> Native | None:
    """The helper of this process, None where it cannot be built or is turned off. The first call may compile it."""
    if os.environ.get(SWITCH) == "0":
        return None
    with _lock:
        return _native()


@functools.cache
def _native() -> Native | None:
    # Here, since it needs torch and Pillow, which whoever only looks for the helper need not have loaded.
    from stages.data.native.check import check

    try:
        helper = Native(load())
        check(helper)
    except NotBuilt as error:
        print(
            f"images are decoded without the native helper, which is up to twice as fast: {error}. Where it is wanted: "
            "apt install gcc libjpeg-dev (or what this system calls them)",
            flush=True,
        )
        return None
    return helper
