"""Damage within a JPEG's compressed pixels, which decoders paint over without a word. The only importer of simplejpeg.

libjpeg goes on after it with grey or shifted blocks and counts a warning, which Pillow drops.
"""

from __future__ import annotations

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
