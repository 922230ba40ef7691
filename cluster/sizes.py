"""Bytes as people say them, and write them."""

from __future__ import annotations

import re

from cluster.errors import UserError

_BYTES = {
    **{unit: 1000**power for power, unit in enumerate(("B", "kB", "MB", "GB", "TB", "PB"))},
    **{unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB", "PiB"), start=1)},
}


def size(count: int) -> str:
    """Bytes as people say them, in powers of 1,000."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" or value >= 100 else f"{value:.1f} {units[0]}"


def bytes_of(text: str, option: str) -> int:
    """Bytes of a size such as `500 GB` or `1.5TiB`. `option` names it in errors. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGTP]i?B|B)", text.strip())
    if found is None or found[2] not in _BYTES or not float(found[1]):
        raise UserError(f"{option}: got {text!r}, expected a size above 0 such as 500 GB, 2 TB or 1.5 TiB")
    return round(float(found[1]) * _BYTES[found[2]])
