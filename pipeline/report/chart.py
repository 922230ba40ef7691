"""Charts as lines in a square of 1,000 × 1,000, which a page stretches, with text beside them, which it does not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.report.document import Curve, Series

SIDE = 1000.0
TICKS = 4
LOGARITHMIC = 30.0
"""From this ratio of the greatest to the least value on, numbers above 0 are drawn by their logarithm."""
FROM_ZERO = 0.2
"""Updates from this part of the last one on begin an axis of their own."""
DOTTED = 60
"""Lines of fewer points have a dot at each one."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series as it is drawn. `look` is what the style sheet knows it by."""

    look: str
    label: str
    path: str
    band: str = ""
    """From the least to the greatest of what each point stands for."""
    dots: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Places are in percent of the width from the left, and of the height from the top."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[float, float]] = field(default_factory=list)
    """Where training went back: from a place to one left of it."""
    logarithmic: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Styled:
    """A series, what it is called and how it looks."""

    series: Series
    label: str
    look: str


def of_curve(curve: Curve) -> Chart:
    """The chart of one workflow's curve."""
    styled = [Styled(series=own, label=own.label, look=_look(own, number)) for number, own in enumerate(curve.series)]
    note = f"one of {curve.thinned} stored files of points was read" if curve.thinned > 1 else ""
    return chart(curve.title, curve.unit, styled, marks=[(mark.end, mark.back_to) for mark in curve.marks], note=note)


def _look(series: Series, number: int) -> str:
    if series.attempt is not None:
        return "again"
    looks = {"train": "one", "validation": "two", "raw": "three"}
    return looks.get(series.metric.partition("/")[0], f"of-{number % 6}")


def chart(
    title: str, unit: str, styled: Sequence[Styled], *, marks: Iterable[tuple[float, float]] = (), note: str = ""
) -> Chart:
    """Lines over one pair of axes. There is at least one point."""
    points = [point for own in styled for point in own.series.points]
    first, last = min(point[0] for point in points), max(point[0] for point in points)
    across = _Axis.linear(0 if first < FROM_ZERO * last else first, last, whole=True)
    up = _vertical(unit, points)
    return Chart(
        title=title,
        lines=[_line(own, across, up) for own in styled],
        x_ticks=[(100 * across.place(value), f"{value:,.0f}") for value in across.ticks],
        y_ticks=[(100 * (1 - up.place(value)), _text(value, unit)) for value in up.ticks],
        marks=[(100 * across.place(end), 100 * across.place(back)) for end, back in marks],
        logarithmic=up.logarithmic,
        note=note,
    )


def _vertical(unit: str, points: Sequence[Sequence[float]]) -> _Axis:
    least, greatest = min(point[2] for point in points), max(point[3] for point in points)
    if unit != "number":
        return _Axis.linear(min(0.0, least), greatest, round_up=True)
    if least > 0 and greatest / least > LOGARITHMIC:
        return _Axis.powers(least, greatest)
    return _Axis.linear(least, greatest, round_up=True)


def _line(styled: Styled, across: _Axis, up: _Axis) -> Line:
    points = styled.series.points
    places = [(SIDE * across.place(x), [SIDE * (1 - up.place(y)) for y in values]) for x, *values in points]
    band = ""
    if any(least < greatest for _, _, least, greatest in points):
        there = [f"{x:.1f} {ys[1]:.1f}" for x, ys in places]
        back = [f"{x:.1f} {ys[2]:.1f}" for x, ys in reversed(places)]
        band = f"M{' L'.join([*there, *back])}Z"
    # A line of no length has round ends: a dot, however the page stretches the square.
    few = len(points) < DOTTED and styled.look != "again"
    dots = "".join(f"M{x:.1f} {ys[0]:.1f}h0" for x, ys in places) if few else ""
    path = f"M{' L'.join(f'{x:.1f} {ys[0]:.1f}' for x, ys in places)}"
    return Line(look=styled.look, label=styled.label, path=path, band=band, dots=dots)


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """From `first` to `last`, with places from 0 to 1."""

    first: float
    last: float
    ticks: list[float]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        if self.logarithmic:
            return math.log(value / self.first) / math.log(self.last / self.first)
        return (value - self.first) / (self.last - self.first)

    @classmethod
    def linear(cls, first: float, last: float, *, whole: bool = False, round_up: bool = False) -> _Axis:
        """`whole` wants whole numbers at ticks; `round_up` begins and ends the axis at ticks."""
        if first == last:
            first, last = (first - 1, last + 1) if first else (0.0, 1.0)
        step = _step((last - first) / TICKS)
        step = max(1.0, step) if whole else step
        if round_up:
            first, last = step * math.floor(first / step + 1e-9), step * math.ceil(last / step - 1e-9)
        begin, end = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
        return cls(first=first, last=last, ticks=[number * step for number in range(begin, end + 1)])

    @classmethod
    def powers(cls, first: float, last: float) -> _Axis:
        """By logarithm, from a tick to a tick."""
        ticks = list(_decades(first, last))
        return cls(first=ticks[0], last=ticks[-1], ticks=ticks, logarithmic=True)


def _decades(first: float, last: float) -> Iterator[float]:
    """1, 10, 100; with 3, 30 between them where there are few; every so many where there are more."""
    low, high = math.floor(math.log10(first)), math.ceil(math.log10(last))
    every = max(1, (high - low) // TICKS)
    candidates = [10.0**power for power in range(low, high + every, every)]
    if high - low <= 2:
        candidates = sorted([*candidates, *(3 * value for value in candidates)])
    below = [value for value in candidates if value <= first * (1 + 1e-9)][-1:]
    above = [value for value in candidates if value >= last * (1 - 1e-9)][:1]
    yield from (value for value in candidates if below[0] <= value <= above[0])


def _step(wanted: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, at least as large as wanted."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def _text(value: float, unit: str) -> str:
    value = 0.0 if abs(value) < 1e-12 else value
    return f"{100 * value:.3g} %" if unit == "percent" else f"{value:,.4g}"
