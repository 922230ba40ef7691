"""Logarithmic axes whose ticks are few and can be read, and large numbers in few characters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

APART = 0.19
"""Least distance of two ticks, as a part of the axis: in one of two panels the labels fit."""
SERIES = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))
"""What ticks within a power of ten may be; the first of which three or more fit is taken."""
ENOUGH = 3


def log_axis(panel: Any, values: Sequence[float], label: str, *, at_values: bool = False, **text: Any) -> None:
    """Make a panel's x axis logarithmic, from the least value to the greatest with a margin.

    Where numbers are very small or large, the label has the power of ten that they are to be multiplied by. `at_values`
    puts the ticks at the values, where they are far enough apart. `text` is how the label is written.
    """
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.07, 1.05)
    own = sorted(set(values))
    ticks = own if at_values and _fit(own, low, high) else rounded_ticks(low, high)
    labels, power = tick_labels(ticks)
    panel.set_xscale("log")
    panel.set_xlim(low / margin, high * margin)
    panel.set_xticks(ticks, labels)
    panel.minorticks_off()
    panel.set_xlabel(f"{label} ({power})" if power else label, **text)


def rounded_ticks(low: float, high: float) -> list[float]:
    """A few numbers of few digits between two positive ones, spread on a logarithmic axis."""
    best: list[float] = []
    for found in _candidates(low, high):
        thinned = (found[::step] for step in range(1, len(found) + 1))
        fitting = next((ticks for ticks in thinned if _fit(ticks, low, high)), [])
        if len(fitting) >= ENOUGH:
            return fitting
        best = max(best, fitting, key=len)
    return best


def _candidates(low: float, high: float) -> Iterator[list[float]]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for series in SERIES:
        # From text: 10.0 ** -5 is not always 1e-05.
        found = (float(f"{digit:g}e{decade}") for decade in decades for digit in series)
        yield [value for value in found if low <= value <= high]
    # For values so close that none of these lies among them.
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(low, high)
    yield [value for value in (float(f"{value:.6g}") for value in found) if low <= value <= high]


def _fit(ticks: Sequence[float], low: float, high: float) -> bool:
    return all(math.log(b / a) >= APART * math.log(high / low) for a, b in itertools.pairwise(ticks))


def tick_labels(ticks: Sequence[float]) -> tuple[list[str], str]:
    """How ticks are written, and the power of ten that all of them are multiplied by, if there is one."""
    least, greatest = min(ticks), max(ticks)
    if least >= 0.01 and greatest < 1e5:
        return [_plain(tick) for tick in ticks], ""
    if least >= 1000:
        return [short_count(tick) for tick in ticks], ""
    exponents = [math.log10(tick) for tick in ticks]
    if greatest / least > 1000 and all(abs(exponent - round(exponent)) < 1e-9 for exponent in exponents):
        return [f"$10^{{{round(exponent)}}}$" for exponent in exponents], ""
    common = math.floor(math.log10(greatest) + 1e-9)
    return [f"{tick / 10.0**common:.4g}" for tick in ticks], f"$\\times 10^{{{common}}}$"


def _plain(value: float) -> str:
    return short_count(value) if value >= 1000 else f"{value:.6g}"


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
