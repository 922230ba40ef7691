"""Figures as people say them."""

from __future__ import annotations


def headline(metrics: dict[str, float]) -> str:
    """The main figures of a stage on one line."""
    shown = []
    for name in ("images", "classes", "shards", "updates", "validation/accuracy", "test/accuracy"):
        if name in metrics:
            value = metrics[name]
            text = f"{value:.1%}" if name.endswith("accuracy") else f"{value:,.0f}"
            shown.append(f"{name.replace('/', ' ')} {text}")
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
