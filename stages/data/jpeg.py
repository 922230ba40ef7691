"""JPEGs by libjpeg-turbo's own interface, which is faster than Pillow's and says more. The only importer of simplejpeg.

libjpeg paints over damage within the compressed pixels with grey or shifted blocks and counts a warning. Pillow drops
it; simplejpeg tells it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.data.decode import open_image, orientation

SAMPLINGS = ("444", "422", "420", "440", "411")
"""How the colours of three-channel JPEGs are sampled, that the native helper reads."""

_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG")
"""How libjpeg's warnings of damage begin; others are of markers that say nothing about the pixels."""


def pixel_damage(data: bytes) -> str | None:
    """What libjpeg finds wrong with the compressed pixels of a JPEG, None where it finds nothing."""
    import simplejpeg

    try:
        # All of them are read, and an eighth of the size is drawn, in grey: a fifth of the time of decoding.
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_factor=8, strict=True)
    except ValueError as error:
        return str(error) if str(error).startswith(_DAMAGE) else None
    return None


def jpeg_pixels(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels [H, W, 3] that `decode_rgb` gives, or None where the image is not a plain JPEG without any damage.

    Pillow reads the header and so says what the image is; the first JPEG of several, one that is to be turned, or one
    of other colours is left to it altogether. So are progressive ones: what is missing of one is filled by smoothing,
    which versions of libjpeg do in different ways.
    """
    import simplejpeg

    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        with open_image(data) as image:
            plain = image.format == "JPEG" and image.mode in ("RGB", "L") and "progressive" not in image.info
            if not plain or orientation(image) != 1:
                return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except MemoryError:
        raise
    except Exception:
        # Pillow says what is wrong, or that nothing is.
        return None


def encode_jpeg(image: NDArray[np.uint8], sampling: str, quality: int = 90) -> bytes:
    """A JPEG of an image [H, W, 3], its colours sampled in one of the SAMPLINGS."""
    import simplejpeg

    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling=sampling)
