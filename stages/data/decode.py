"""From a file's bytes to RGB, by one stated rule for every kind of image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from cluster.errors import UserError


class UnreadableImage(UserError):
    """The bytes are no image that can be decoded; the message names the sample."""


def decode_rgb(data: bytes, name: str = "image") -> Image.Image:
    """The first frame in RGB, 8 bits a channel, upright.

    EXIF's orientation is applied where it can be read. Grey, palette and CMYK are converted, 16-bit grey is
    scaled to 8 bits with rounding, and anything transparent is laid on white. Raises UnreadableImage, naming `name`.
    """
    try:
        image = open_image(data)
        # Before: a TIFF is turned as it is decoded, and a PNG may have its EXIF at its end.
        image.load()
        turn = _TURNS.get(orientation(image))
        return _to_rgb(image if turn is None else image.transpose(turn))
    except MemoryError:
        # The machine's trouble, not the image's.
        raise
    except Exception as error:
        # Pillow's decoders and its readers of metadata raise whatever a damaged file makes them stumble over.
        raise UnreadableImage(
            f"{name} ({len(data)} bytes) cannot be decoded: {_reason(data, error)}; replace the file or leave it out"
        ) from error


def _reason(data: bytes, error: Exception) -> str:
    """Pillow's own, but for JPEGs of 12 bits, of which it says only that it cannot identify them."""
    bits = jpeg_bits(data)
    return str(error) if bits in (None, 8) else f"a JPEG of {bits} bits a channel, of which those of 8 can be read"


def jpeg_bits(data: bytes) -> int | None:
    """The bits of a channel that the frame of a JPEG has in its header, None for what has none."""
    place = 2
    while data[:2] == b"\xff\xd8" and place + 5 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[place + 4]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def open_image(data: bytes) -> Image.Image:
    """An image whose pixels are not decoded yet. Raises whatever Pillow does.

    Pillow's own limit of pixels is lifted: ingestion's `max_pixels` is the one that says which images there are.
    """
    Image.MAX_IMAGE_PIXELS = None
    return Image.open(io.BytesIO(data))


def orientation(image: Image.Image) -> int:
    """EXIF's tag 0x0112, from 1 for an upright image to 8; 1 too where there is none that can be read."""
    try:
        found = image.getexif().get(0x0112)
    except Exception:
        return 1
    return found if found in _TURNS else 1


_TURNS = {
    **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
    **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE},
    **{8: Image.Transpose.ROTATE_90},
}
"""What makes an image upright, by its orientation."""


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
