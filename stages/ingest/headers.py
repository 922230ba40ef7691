"""What an image's bytes say of themselves without being decoded: format, size, pixels, and whether they end.

JPEG: ITU T.81, annex B; Exif's orientation is TIFF tag 0x0112. PNG: W3C, chunks IHDR, tRNS, eXIf, IEND. WebP: RIFF
container of Google's WebP specification. Every other format is opened by Pillow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from stages.data.decode import open_image, orientation

SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpeg"),
    **{".png": "png", ".webp": "webp", ".bmp": "bmp", ".gif": "gif", ".ppm": "ppm", ".pgm": "ppm"},
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
}
"""The format that a file's name claims."""

_START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
_PNG = b"\x89PNG\r\n\x1a\n"
_BEGINNINGS = (b"\xff\xd8\xff", _PNG, b"GIF87a", b"GIF89a", b"BM", b"P5", b"P6", b"II*\0", b"MM\0*")


class BadImage(ValueError):
    """The bytes are no whole image; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """`format` is Pillow's name in small letters; `traits` say what its conversion to RGB does."""

    format: str
    width: int
    height: int
    traits: tuple[str, ...] = ()
    """Of grey, cmyk, palette, alpha, 16-bit, rotated."""


def is_known(beginning: bytes) -> bool:
    """Whether the first 12 bytes of a file are those of a format whose suffixes are known."""
    webp = beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP"
    return webp or beginning.startswith(_BEGINNINGS)


def read_header(data: bytes) -> Header:
    """Format, size and traits of an image whose first and last bytes are there. Raises BadImage."""
    if not data:
        raise BadImage("empty")
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:8] == _PNG:
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
            raise BadImage("truncated")
        return _by_pillow(data)
    return _by_pillow(data)


def _jpeg(data: bytes) -> Header:
    size, components, bits, turned = (0, 0), 0, 8, False
    for marker, start, stop in _segments(data):
        if marker in _START_OF_FRAME:
            if stop - start < 6:
                raise BadImage("damaged header")
            bits, height, width, components = struct.unpack_from(">BHHB", data, start)
            size = (width, height)
        elif marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            turned = turned or _orientation(data[start + 6 : stop]) not in (0, 1)
        elif marker == 0xDA:
            if 0 in size:
                raise BadImage("no size in its header")
            # Within the compressed pixels 0xFF is always followed by 0 or a restart marker.
            if data.rfind(b"\xff\xd9", stop) < 0:
                raise BadImage("truncated")
            if bits != 8:
                raise BadImage(f"a JPEG of {bits} bits a channel, of which those of 8 can be read")
            kind = {1: ("grey",), 4: ("cmyk",)}.get(components, ())
            traits = (*kind, *(("rotated",) if turned else ()))
            return Header(format="jpeg", width=size[0], height=size[1], traits=traits)
    raise BadImage("truncated")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, first and last byte of each segment's content, up to the start of the compressed pixels."""
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            raise BadImage("damaged header")
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _STANDALONE:
            place += 2
        else:
            length = int.from_bytes(data[place + 2 : place + 4], "big")
            if length < 2:
                raise BadImage("damaged header")
            if place + 2 + length > len(data):
                raise BadImage("truncated")
            yield marker, place + 4, place + 2 + length
            place += 2 + length


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory of a TIFF block, or 0 where there is none that can be read."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 0
    try:
        (place,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == 0x0112:
                return value
    except struct.error:
        return 0
    return 0


def _png(data: bytes) -> Header:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadImage("damaged header")
    width, height, bits, colours = struct.unpack_from(">IIBB", data, 16)
    if data.rfind(b"IEND\xaeB`\x82") < 0:
        raise BadImage("truncated")
    alpha = colours in (4, 6) or b"tRNS" in data[33:4096]
    exif = _chunk(data, b"eXIf")
    traits = (
        *(("grey",) if colours in (0, 4) else ()),
        *(("palette",) if colours == 3 else ()),
        *(("alpha",) if alpha else ()),
        *(("16-bit",) if bits == 16 else ()),
        *(("rotated",) if exif and _orientation(exif) not in (0, 1) else ()),
    )
    return Header(format="png", width=width, height=height, traits=traits)


def _chunk(data: bytes, wanted: bytes) -> bytes | None:
    """The content of a PNG's first chunk of this kind, None where it has none."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == wanted:
            return data[place + 8 : place + 8 + length]
        place += 12 + length
    return None


_MODES = {
    **{"1": ("grey",), "L": ("grey",), "LA": ("grey", "alpha"), "P": ("palette",), "PA": ("palette", "alpha")},
    **{"RGBA": ("alpha",), "RGBX": (), "CMYK": ("cmyk",), "I": ("grey", "16-bit"), "I;16": ("grey", "16-bit")},
}


def _by_pillow(data: bytes) -> Header:
    try:
        with open_image(data) as image:
            name, (width, height) = str(image.format).lower(), image.size
            turned = ("rotated",) if orientation(image) != 1 else ()
            return Header(format=name, width=width, height=height, traits=(*_MODES.get(image.mode, ()), *turned))
    except MemoryError:
        raise
    except Exception as error:
        raise BadImage("no image that can be read") from error
