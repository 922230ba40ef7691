"""Tables and pictures as the bytes of files. Equal ones give equal bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows of one form, at least one, as CSV with a head line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def png_bytes(figure: Figure) -> bytes:
    """A picture as PNG, without the version of what drew it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
