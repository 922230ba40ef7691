"""Two workflows side by side: what differs in their settings, and in what came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.report.chart import Chart, Styled, chart
from pipeline.report.document import Curve, Figure, Picture, Report, StageReport, Table
from pipeline.report.render import field_text, flat, template
from pipeline.report.tables import value_text
from pipeline.words import duration

T = TypeVar("T", Curve, Table, Picture)
FIRST_OF_ALL = ("test/accuracy", "validation/accuracy", "test/loss", "validation/loss")
"""Metrics of a stage that are shown before its others."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A stage of both workflows that is called the same."""

    name: str
    first: StageReport
    second: StageReport
    charts: list[Chart]
    metrics: Table
    tables: list[tuple[Table | None, Table | None]]
    pictures: list[tuple[Picture | None, Picture | None]]

    @property
    def same(self) -> bool:
        """Whether they are the very same result."""
        return self.first.digest is not None and self.first.digest == self.second.digest


def comparison_page(first: Report, second: Report) -> str:
    """The page about both. What is of the first has one colour everywhere, what is of the second another."""
    pairs = [_pair(own, other) for own in first.stages for other in second.stages if own.name == other.name]
    return template("compare.html.j2").render(
        first=first,
        second=second,
        version=first.version,
        made_ms=max(first.made_ms, second.made_ms),
        figures=figures_table(first, second),
        settings=settings_table(first, second, "settings"),
        placement=settings_table(first, second, "placement"),
        times=times_table(first, second),
        alone=[(report, names) for report, names in _alone(first, second) if names],
        pairs=pairs,
    )


def _alone(first: Report, second: Report) -> Iterator[tuple[str, list[str]]]:
    """The stages that one of the two has alone."""
    names = [{stage.name for stage in report.stages} for report in (first, second)]
    yield "a", [stage.name for stage in first.stages if stage.name not in names[1]]
    yield "b", [stage.name for stage in second.stages if stage.name not in names[0]]


def _table(name: str, columns: list[str], numeric: list[bool], rows: list[list[str]]) -> Table:
    return Table(name=name, title="", columns=columns, numeric=numeric, rows=rows)


def figures_table(first: Report, second: Report) -> Table:
    """The figures at the heads of both reports, and by how much the second one's are greater."""
    own, other = ({figure.name: figure for figure in report.figures} for report in (first, second))
    rows = []
    for name in dict.fromkeys([*own, *other]):
        a, b = own.get(name), other.get(name)
        known = a or b
        assert known is not None
        difference = _difference(a, b) if a is not None and b is not None else ""
        rows.append([known.label, a.text if a else "", b.text if b else "", difference])
    return _table("figures", ["", "A", "B", "B − A"], [False, True, True, True], rows)


def _difference(a: Figure, b: Figure) -> str:
    if a.value == b.value:
        return "="
    if a.text.endswith("%"):
        return f"{100 * (b.value - a.value):+.1f} points".replace("-", "−")
    return f"{100 * (b.value / a.value - 1):+.1f} %".replace("-", "−") if a.value else ""


def settings_table(first: Report, second: Report, which: str) -> Table:
    """The fields of stages of one name that differ: those that determine results (`settings`), or `placement`."""
    rows = []
    others = {stage.name: stage for stage in second.stages}
    for stage in first.stages:
        if stage.name not in others:
            continue
        own, other = (dict(flat(getattr(item, which))) for item in (stage, others[stage.name]))
        rows += [
            [f"{stage.name}.{name}", _shown(own, name), _shown(other, name)]
            for name in dict.fromkeys([*own, *other])
            if own.get(name) != other.get(name)
        ]
    return _table(which, ["field", "A", "B"], [False, False, False], rows)


def _shown(fields: dict[str, object], name: str) -> str:
    return field_text(fields[name]) if name in fields else "—"


def times_table(first: Report, second: Report) -> Table:
    """How long each stage took, over all its attempts, and whether it was reused."""
    rows = []
    both = [{stage.name: stage for stage in report.stages} for report in (first, second)]
    for name in dict.fromkeys([*both[0], *both[1]]):
        rows.append([name, *(_time(stages.get(name)) for stages in both)])
    return _table("times", ["stage", "A", "B"], [False, True, True], rows)


def _time(stage: StageReport | None) -> str:
    if stage is None:
        return "—"
    if stage.seconds is None:
        return stage.outcome
    return duration(stage.seconds) + (", reused" if stage.outcome == "reused" else "")


def _pair(first: StageReport, second: StageReport) -> Pair:
    return Pair(
        name=first.name,
        first=first,
        second=second,
        charts=[_chart(own, other) for own, other in _matched(first.curves, second.curves)],
        metrics=metrics_table(first, second),
        tables=[(own, other) for own, other in _matched(first.tables, second.tables) if own != other],
        pictures=list(_matched(first.pictures, second.pictures)),
    )


def _matched(first: Sequence[T], second: Sequence[T]) -> Iterator[tuple[T | None, T | None]]:
    """Those of one name beside each other."""
    own, other = ({item.name: item for item in items} for items in (first, second))
    for name in dict.fromkeys([*own, *other]):
        yield own.get(name), other.get(name)


def _chart(first: Curve | None, second: Curve | None) -> Chart:
    """The lines of both, without what was made again; of the second and later metrics dashed."""
    known = first or second
    assert known is not None
    both = [(first, "a", "one"), (second, "b", "b")]
    metrics = list(dict.fromkeys(own.metric for curve, _, _ in both if curve for own in curve.series))
    styled = [
        Styled(
            series=own,
            label=f"{letter.upper()} {own.label}",
            look=f"{look}{' dashed' if metrics.index(own.metric) else ''}",
        )
        for curve, letter, look in both
        for own in (curve.series if curve else ())
        if own.attempt is None
    ]
    return chart(known.title, known.unit, styled)


def metrics_table(first: StageReport, second: StageReport) -> Table:
    """The metrics of both, with their differences."""
    names = dict.fromkeys([*(name for name in FIRST_OF_ALL if name in first.metrics), *first.metrics, *second.metrics])
    rows = []
    for name in names:
        a, b = first.metrics.get(name), second.metrics.get(name)
        difference = "" if a is None or b is None else f"{b - a:+.4g}".replace("-", "−")
        if a is not None and a == b:
            difference = "="
        rows.append([name, value_text(name, a), value_text(name, b), difference])
    return _table("metrics", ["metric", "A", "B", "B − A"], [False, True, True, True], rows)
