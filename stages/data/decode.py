"""From a file's bytes to RGB, by one stated rule for every kind of image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from cluster.errors import UserError


class UnreadableImage(UserError):
    """The bytes are no image that can be decoded; the message names the sample."""


def decode_rgb(data: bytes, name: str = "image") -> Image.Image:
    """The first frame in RGB, 8 bits a channel, upright.

    EXIF rotation is applied. Grey, palette and CMYK are converted, 16-bit grey is scaled to 8 bits with
    rounding, and anything transparent is laid on white. Raises UnreadableImage, naming `name`.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(
            f"{name} ({len(data)} bytes) cannot be decoded: {error}; replace the file or leave it out"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"grey levels reach from {values.min()} to {values.max()}, beyond 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
