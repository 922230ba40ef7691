"""Figures as people say them."""

from __future__ import annotations

import re

from cluster.errors import UserError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
ALL = "features/all/"


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
    shots = {name.removeprefix(ALL): value for name, value in metrics.items() if name.startswith(ALL)}
    # A record has its figures by the alphabet, in which 10 comes before 5.
    for name in sorted(shots, key=lambda name: (len(name.partition("_")[0]), name)):
        shown.append(f"{name.replace('_', '-')} {shots[name]:.1%}")
    return "  ".join(shown)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def seconds_of(text: str, option: str) -> float:
    """Seconds of a length of time such as `90m` or `2d`. `option` names it in errors. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if found is None:
        raise UserError(f"{option} {text!r}: expected a number and one of s, m, h, d, w, for example 90m or 2d")
    return float(found[1]) * _UNITS[found[2]]
