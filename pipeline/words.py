"""Figures as people say them."""

from __future__ import annotations

import re

from cluster.errors import UserError

_BYTES = {
    **{unit: 1000**power for power, unit in enumerate(("B", "kB", "MB", "GB", "TB", "PB"))},
    **{unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB", "PiB"), start=1)},
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def headline(metrics: dict[str, float]) -> str:
    """The main figures of a stage on one line."""
    shown = []
    for name in ("images", "classes", "shards", "updates", "validation/accuracy", "test/accuracy"):
        if name in metrics:
            value = metrics[name]
            text = f"{value:.1%}" if name.endswith("accuracy") else f"{value:,.0f}"
            shown.append(f"{name.replace('/', ' ')} {text}")
    for split in ("validation", "test"):
        # What predicts pixels is never right or wrong.
        if f"{split}/loss" in metrics and f"{split}/accuracy" not in metrics:
            shown.append(f"{split} loss {metrics[f'{split}/loss']:.4g}")
    for name, value in metrics.items():
        if name.startswith("features/all/"):
            shown.append(f"{name.rsplit('/', 1)[1].replace('_', '-')} {value:.1%}")
    return "  ".join(shown)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: int) -> str:
    """Bytes as people say them, in powers of 1,000."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" or value >= 100 else f"{value:.1f} {units[0]}"


def seconds_of(text: str, option: str) -> float:
    """Seconds of a length of time such as `90m` or `2d`. `option` names it in errors. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if found is None:
        raise UserError(f"{option} {text!r}: expected a number and one of s, m, h, d, w, for example 90m or 2d")
    return float(found[1]) * _UNITS[found[2]]


def bytes_of(text: str, option: str) -> int:
    """Bytes of a size such as `500 GB` or `1.5TiB`. `option` names it in errors. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGTP]i?B|B)", text.strip())
    if found is None or found[2] not in _BYTES or not float(found[1]):
        raise UserError(f"{option}: got {text!r}, expected a size above 0 such as 500 GB, 2 TB or 1.5 TiB")
    return round(float(found[1]) * _BYTES[found[2]])
