"""Small pictures with every kind of content, as JPEGs of every kind."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from stages.data.jpeg import SAMPLINGS, encode_jpeg


def picture(height, width, seed=0):
    """Waves, edges and noise, uint8 [height, width, 3]."""
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(rows / 9 + columns / (5 + channel)) for channel in range(3)]
    image = np.stack(waves, axis=2).astype(np.uint8)
    image[height // 4 : height // 2, width // 3 : width // 2] = (250, 10, 30)
    noise = np.random.default_rng(seed).integers(0, 256, image[height // 2 :, : width // 2].shape, dtype=np.uint8)
    image[height // 2 :, : width // 2] = noise
    return image


def pillow(image, form="JPEG", mode="RGB", **options):
    """An image's bytes as Pillow writes them."""
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def segment(data, marker, content):
    """A JPEG with one more segment at its beginning."""
    return data[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + data[2:]


def exif(**tags):
    """Exif with an orientation, a maker and a resolution."""
    found = Image.Exif()
    found[0x010F], found[0x011A], found[0x0128] = "somebody", 72.0, 2
    if "orientation" in tags:
        found[0x0112] = tags["orientation"]
    return found


_ADOBE, _PHOTOSHOP = b"Adobe\0d\0\0\0\0", b"Photoshop 3.0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def for_the_helper(image):
    """JPEGs that the native helper decodes itself, by kind."""
    plain = pillow(image)
    resource = _PHOTOSHOP + b"8BIM\x04\x04\0\0" + (5).to_bytes(4, "big") + b"hello\0"
    return {
        **{sampling: encode_jpeg(image, sampling) for sampling in SAMPLINGS},
        **{f"Pillow's {sampling}": pillow(image, subsampling=sampling) for sampling in range(3)},
        "grey": pillow(image, mode="L"),
        "progressive": pillow(image, progressive=True),
        "progressive grey": pillow(image, mode="L", progressive=True),
        "restarts": pillow(image, restart_marker_blocks=3),
        "restarts, progressive": pillow(image, restart_marker_blocks=3, progressive=True),
        "optimised": pillow(image, optimize=True, quality=35),
        "RGB": pillow(image, keep_rgb=True, subsampling=0),
        "upright by Exif": pillow(image, exif=exif(orientation=1)),
        "Exif without orientation": pillow(image, exif=exif()),
        "comment and profile": pillow(image, comment=b"hello", icc_profile=bytes(300)),
        "Photoshop": segment(plain, 0xED, resource),
        "XMP": segment(plain, 0xE1, _XMP + b"<x/>"),
        "Adobe, of YCC": segment(plain, 0xEE, _ADOBE + b"\1"),
        "bytes behind the end": plain + b"behind",
    }


def not_for_the_helper(image):
    """Images that are left to the plain way, by kind; all can be decoded."""
    plain = pillow(image)
    return {
        **{f"orientation {turn}": pillow(image, exif=exif(orientation=turn)) for turn in range(2, 9)},
        "turned by XMP": segment(plain, 0xE1, _XMP + b'<x tiff:Orientation="6"/>'),
        "CMYK": pillow(image, mode="CMYK"),
        "several images": segment(plain, 0xE2, b"MPF\0" + bytes(40)),
        "PNG": pillow(image, "PNG"),
        "WebP": pillow(image, "WEBP", quality=90),
        "lossless WebP": pillow(image, "WEBP", lossless=True),
        "palette": pillow(image, "PNG", mode="P"),
    }
