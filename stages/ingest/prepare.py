"""From an image as a source has it to the bytes that are stored, or to the reason why they are not."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

from PIL import Image

from stages.data.decode import UnreadableImage, decode_rgb
from stages.data.jpeg import pixel_damage
from stages.ingest.config import IngestConfig
from stages.ingest.headers import SUFFIXES, BadImage, Header, read_header
from stages.ingest.sources.base import RawImage

KEPT = {"jpeg": "jpg", "png": "png", "webp": "webp"}
"""Formats that are stored as they are, by extension. All others become PNG."""

DEFAULT_QUALITY = 95
"""JPEG quality of what is made smaller, where none is asked for."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Bytes to store. `traits` are counted: what a decoder has to convert, and what was done here."""

    extension: str
    data: bytes
    traits: tuple[str, ...]


def prepare(raw: RawImage, config: IngestConfig) -> Prepared:
    """Check an image as `config` asks, and change what it asks for. Raises BadImage with the reason."""
    header, traits = _inspected(raw, config)
    smaller = config.longest_side is not None and max(header.width, header.height) > config.longest_side
    kept = KEPT.get(header.format)
    if kept is not None and not smaller and config.quality is None:
        if config.verify == "decode":
            _decoded(raw)
        return Prepared(extension=kept, data=raw.data, traits=traits)
    return _encoded(_decoded(raw), header, config, traits, smaller=smaller)


def check(raw: RawImage, config: IngestConfig) -> tuple[str, ...]:
    """Check an image that stays where it is; returns its traits. Raises BadImage with the reason."""
    _, traits = _inspected(raw, config)
    if config.verify == "decode":
        _decoded(raw)
    return traits


def _inspected(raw: RawImage, config: IngestConfig) -> tuple[Header, tuple[str, ...]]:
    header = read_header(raw.data)
    if header.width * header.height > config.max_pixels:
        raise BadImage(f"too many pixels: {header.width} × {header.height}")
    if config.verify == "decode" and header.format == "jpeg" and (damage := pixel_damage(raw.data)) is not None:
        raise BadImage(f"damaged pixels: {damage}")
    claimed = SUFFIXES.get(os.path.splitext(raw.name)[1].lower())
    return header, header.traits if claimed in (None, header.format) else (*header.traits, "misnamed")


def _decoded(raw: RawImage) -> Image.Image:
    try:
        return decode_rgb(raw.data, raw.name)
    except UnreadableImage as error:
        raise BadImage("cannot be decoded") from error


def _encoded(
    image: Image.Image, header: Header, config: IngestConfig, traits: tuple[str, ...], *, smaller: bool
) -> Prepared:
    """As JPEG where it was one or a quality is asked for, else as PNG, which loses nothing."""
    if smaller and config.longest_side is not None:
        image.thumbnail((config.longest_side, config.longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if config.quality is None and header.format != "jpeg":
        image.save(buffer, "PNG")
        extension = "png"
    else:
        image.save(buffer, "JPEG", quality=config.quality or DEFAULT_QUALITY)
        extension = "jpg"
    return Prepared(extension=extension, data=buffer.getvalue(), traits=(*traits, "encoded anew"))
