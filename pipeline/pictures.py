"""Pictures for pages that show them at their own size."""

from __future__ import annotations

import io

WIDTH = 720
"""Pixels that the text of a page has room for."""


def small_picture(png: bytes) -> bytes:
    """A PNG no wider than WIDTH."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        if image.width <= WIDTH:
            return png
        # A palette's colours cannot be mixed.
        mixed = image.convert("RGBA" if image.has_transparency_data else "RGB")
        small = mixed.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return out.getvalue()
