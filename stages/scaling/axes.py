"""Logarithmic axes whose ticks are few and can be read, and large numbers in few characters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

MOST_TICKS = 5
APART = 0.19
"""Least distance of two ticks that stand at values themselves, as a part of the axis."""
SERIES = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))
"""What ticks within a power of ten may be; the first of which there are three or more is taken."""


def log_axis(panel: Any, values: Sequence[float], *, at_values: bool = False) -> None:
    """Make a panel's x axis logarithmic, from the least value to the greatest with a margin.

    `at_values` puts the ticks at the values, where they are far enough apart, as whole numbers.
    """
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.07, 1.05)
    own = sorted(set(values))
    apart = all(math.log(b / a) > APART * math.log(high / low) for a, b in itertools.pairwise(own))
    ticks, label = rounded_ticks(low, high), _plain if at_values else None
    if at_values and apart:
        ticks, label = own, short_count
    panel.set_xscale("log")
    panel.set_xlim(low / margin, high * margin)
    panel.set_xticks(ticks, list(map(label or labels_for(ticks), ticks)))
    panel.minorticks_off()


def rounded_ticks(low: float, high: float) -> list[float]:
    """At most five numbers of few digits between two positive ones, evenly spread on a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for series in SERIES:
        # From text: 10.0 ** -5 is not always 1e-05.
        found = [float(f"{digit:g}e{decade}") for decade in decades for digit in series]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            break
    else:
        found = _even(low, high)
    return found[:: -(-len(found) // MOST_TICKS)]


def _even(low: float, high: float) -> list[float]:
    """For values so close that no power of ten lies among them."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(f"{value:.6g}") for value in ticks if low <= value <= high]


def labels_for(ticks: Sequence[float]) -> Callable[[float], str]:
    """How to write these ticks: as they are, or where one is very small or large, with powers of ten."""
    return _plain if all(0.01 <= tick < 100_000 for tick in ticks) else _scientific


def _plain(value: float) -> str:
    return short_count(round(value)) if value >= 1000 else f"{value:.6g}"


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.6e}".split("e")
    power = f"10^{{{int(exponent)}}}"
    digits = f"{float(mantissa):g}"
    return f"${power}$" if digits == "1" else f"${digits}\\times{power}$"


def short_count(value: float) -> str:
    """A whole number in at most seven characters: 12,544, 1.28M, 303M, 5.5B."""
    for unit, sign in ((1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.3g}{sign}"
    return f"{value:,.0f}"


def different_counts(values: Sequence[int]) -> list[str]:
    """Each in short; in full where two would read alike."""
    found = [short_count(value) for value in values]
    return found if len(set(found)) == len(found) else [f"{value:,}" for value in values]
