"""A finding of `preflight`, and rates of machines that are held against each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]

SLOW = 0.75
"""Part of the median below which a machine is called slow."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check came to."""

    level: Level
    check: str
    told: str


def compared(check: str, rates: dict[str, float], unit: str, size: float = 1.0) -> Iterable[Finding]:
    """Slow machines by name, and what the others reach."""
    if not rates:
        return
    median = statistics.median(rates.values())
    slow = {name: rate for name, rate in rates.items() if rate < SLOW * median}
    for name, rate in slow.items():
        told = f"{name} is slow: {figure(rate / size)} {unit}, half of the machines reach {figure(median / size)}"
        yield Finding(level="warning", check=check, told=told)
    if not slow:
        low, high = figure(min(rates.values()) / size), figure(max(rates.values()) / size)
        reached = low if low == high else f"{low} to {high}"
        yield Finding(level="ok", check=check, told=f"{reached} {unit}{' each' if len(rates) > 1 else ''}")


def figure(value: float) -> str:
    """With three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
