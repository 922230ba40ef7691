"""Stages and their attempts against time, with what the time was cut out of in which nothing ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.report.document import Report, Span, StageReport
from pipeline.report.figures import busy
from pipeline.words import duration

LONG = 0.08
"""A pause of more than this part of all work is drawn as a cut."""
CUT = 0.04
"""How wide, as a part of all work."""
NARROW = 0.6
"""Percent of the width that the shortest attempt has, so that it is seen."""
APART = 9.0
"""Percent of the width between two ticks at least."""
EARLY = ("lost", "failed", "stopped")
"""Attempts that ended before their stage was done."""
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Seconds between ticks."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An attempt: places in percent of the width."""

    left: float
    width: float
    outcome: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A stage and its attempts."""

    stage: StageReport
    bars: list[Bar]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The drawing. Cuts and ticks are places in percent of the width with what is written there."""

    rows: list[Row]
    ticks: list[tuple[float, str]]
    cuts: list[tuple[float, str]]
    drivers: list[float]
    """Where a driver went on, outside of cuts."""


def chain(report: Report) -> Chain:
    """The drawing of a report's stages; without ticks where nothing has run."""
    spans = [span for stage in report.stages for span in stage.spans]
    clock = _Clock(busy(spans))
    rows = [
        Row(stage=stage, bars=[bar for span in stage.spans for bar in _bars(span, clock)]) for stage in report.stages
    ]
    later = [clock.place(moment) for moment in report.drivers_ms[1:] if not clock.is_cut(moment)] if spans else []
    return Chain(rows=rows, ticks=clock.ticks(), cuts=clock.cuts(), drivers=later)


def _bars(span: Span, clock: _Clock) -> Iterator[Bar]:
    """What stays of an attempt, and what of it was made again."""
    told = f"attempt {span.attempt}, {duration(span.seconds)}, {span.outcome}"
    told += f", from update {span.began_at:,}" if span.began_at else ""
    parted = span.outcome in EARLY and span.lost_seconds is not None
    middle = span.ended_ms - round(1000 * (span.lost_seconds or 0.0)) if parted else span.ended_ms
    yield _bar(span.started_ms, max(span.started_ms, middle), "kept" if parted else span.outcome, told, clock)
    if parted and span.lost_seconds:
        again = f"{duration(span.lost_seconds)} of attempt {span.attempt} were made again"
        yield _bar(middle, span.ended_ms, "lost", again, clock)


def _bar(start: int, end: int, outcome: str, text: str, clock: _Clock) -> Bar:
    left, right = clock.place(start), clock.place(end)
    width = max(NARROW, right - left)
    return Bar(left=min(left, 100 - width), width=width, outcome=outcome, text=text)


class _Clock:
    """Where a moment lies, with long pauses cut out."""

    def __init__(self, intervals: Sequence[tuple[int, int]]) -> None:
        work = sum(end - start for start, end in intervals) or 1
        self._pieces: list[tuple[int, int, float]] = []
        """Begin, end, and place of the begin, before all is scaled to 100 percent."""
        self._cuts: list[tuple[int, int, float]] = []
        place = 0.0
        for number, (start, end) in enumerate(intervals):
            if number:
                last = intervals[number - 1][1]
                cut = start - last > LONG * work
                if cut:
                    self._cuts.append((last, start, place))
                place += CUT * work if cut else start - last
            self._pieces.append((start, end, place))
            place += end - start
        self._whole = place or 1.0
        self._begin = intervals[0][0] if intervals else 0

    def place(self, moment: int) -> float:
        before = [piece for piece in self._pieces if piece[0] <= moment]
        if not before:
            return 0.0
        start, end, place = before[-1]
        following = self._pieces[len(before)][2] if len(before) < len(self._pieces) else self._whole
        shown = min(moment, end) if self.is_cut(moment) else moment
        return 100 * min(place + shown - start, following) / self._whole

    def is_cut(self, moment: int) -> bool:
        return any(start < moment < end for start, end, _ in self._cuts)

    def cuts(self) -> list[tuple[float, str]]:
        width = self._whole_cut()
        return [
            (100 * (place + width / 2) / self._whole, duration((end - start) / 1000))
            for start, end, place in self._cuts
        ]

    def _whole_cut(self) -> float:
        return CUT * (sum(end - start for start, end, _ in self._pieces) or 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Time since the beginning, at round moments at which something ran."""
        if not self._pieces:
            return []
        seconds = self._whole / 1000
        step = next((step for step in STEPS if step * 6 >= seconds), 86400 * max(1, round(seconds / 86400 / 6)))
        found: list[tuple[float, str]] = []
        for start, end, _ in self._pieces:
            first = -(-(start - self._begin) // (1000 * step))
            last = (end - self._begin) // (1000 * step)
            for number in range(first, last + 1):
                place = self.place(self._begin + 1000 * step * number)
                if not found or place - found[-1][0] >= APART:
                    found.append((place, _since(step * number, step)))
        return found


def _since(seconds: int, step: int) -> str:
    """How long after the beginning, as exact as the steps are."""
    if step >= 86400:
        return f"{seconds // 86400} d"
    if step >= 60:
        return f"{seconds // 3600}:{seconds // 60 % 60:02d} h"
    return f"{seconds // 60}:{seconds % 60:02d} min"
