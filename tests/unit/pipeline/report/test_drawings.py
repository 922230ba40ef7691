"""Charts and the chain: places follow from values and times."""

from __future__ import annotations

import math
import re

import pytest

from pipeline.head import HeadDocument
from pipeline.report.chain import CUT, chain
from pipeline.report.chart import Styled, chart, of_curve
from pipeline.report.curves import BINS, StagePoints, curves, split, stage_points, thin
from pipeline.report.document import Cost, Curve, Report, Series, Span, StageReport
from stages.metrics import Point, points_body


def series(values: list[tuple[float, float]], metric: str = "train/loss", attempt: int | None = None) -> Series:
    return Series(metric=metric, label="training", points=[[x, y, y, y] for x, y in values], attempt=attempt)


def drawn(values: list[tuple[float, float]], unit: str = "number"):
    return chart("Loss", unit, [Styled(series=series(values), label="training", look="one")])


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_a_line_goes_through_the_places_of_its_values():
    found = drawn([(0, 0.0), (50, 2.0), (100, 1.0)], "rate")
    assert places(found.lines[0].path) == [(0, 1000), (500, 0), (1000, 500)]
    assert found.y_ticks == [(100, "0"), (75, "0.5"), (50, "1"), (25, "1.5"), (0, "2")]
    assert found.x_ticks == [(0, "0"), (25, "25"), (50, "50"), (75, "75"), (100, "100")]


def test_values_of_several_magnitudes_are_drawn_by_logarithm():
    found = drawn([(0, 100.0), (10, 1.0), (20, 0.1)])
    assert found.logarithmic
    assert [text for _, text in found.y_ticks] == ["0.1", "1", "10", "100"]
    heights = [y for _, y in places(found.lines[0].path)]
    assert heights == [0, pytest.approx(1000 * 2 / 3, abs=0.1), 1000]
    assert not drawn([(0, 20.0), (10, 1.0)]).logarithmic
    assert not drawn([(0, 100.0), (10, 0.0)]).logarithmic


@pytest.mark.parametrize("values", [[(5, 1.0)], [(0, 0.0), (9, 0.0)], [(0, -3.0), (9, -3.0)], [(0, 1e-9), (9, 2e9)]])
@pytest.mark.parametrize("unit", ["number", "rate", "percent"])
def test_whatever_the_values_the_line_is_within_the_chart(values, unit):
    found = drawn(values, unit)
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in places(found.lines[0].path))
    assert all(0 <= place <= 100.01 for place, _ in found.y_ticks)


def test_an_axis_of_updates_that_begin_late_begins_with_them():
    assert drawn([(1, 1.0), (100, 2.0)]).x_ticks[0] == (0, "0")
    assert drawn([(900, 1.0), (1000, 2.0)]).x_ticks[0] == (0, "900")


def test_many_points_become_few_with_what_they_stand_for():
    values = [(step, math.sin(step) + step / 1000) for step in range(1, 100_001)]
    found = thin(values)
    assert len(found) == BINS
    assert found[0][0] == pytest.approx(1 + 100_000 / BINS / 2, abs=1)
    assert math.isclose(min(low for *_, low, _ in found), min(value for _, value in values))
    assert math.isclose(max(point[3] for point in found), max(value for _, value in values))
    assert all(low <= mean <= high for _, mean, low, high in found)
    assert of_curve(Curve(name="loss", title="", unit="number", series=[series(values)])).lines[0].band == ""
    whole = Series(metric="train/loss", label="", points=found)
    assert of_curve(Curve(name="loss", title="", unit="number", series=[whole])).lines[0].band.endswith("Z")


def head(attempt: int, *history: tuple[int, int, int]) -> HeadDocument:
    parts = [{"attempt": number, "start": start, "end": end} for number, start, end in history]
    return HeadDocument.model_validate(
        {
            "owner": "o",
            "epoch": 1,
            "nonce": "n",
            "ttl_seconds": 1,
            "state": "done",
            "attempt": attempt,
            "history": parts,
        }
    )


def point(step: int, value: float = 1.0, name: str = "train/loss") -> Point:
    return Point(name=name, value=value, step=step, time_ms=step)


def test_what_counts_is_what_checkpoints_cover_and_what_the_newest_attempt_makes():
    attempts = {1: [point(step) for step in range(1, 8)], 2: [point(step) for step in range(5, 10)]}
    kept, again = split(attempts, head(2, (1, 0, 4)))
    assert {attempt: [p.step for p in points] for attempt, points in kept.items()} == {
        1: [1, 2, 3, 4],
        2: [5, 6, 7, 8, 9],
    }
    assert [p.step for p in again[1]] == [5, 6, 7]


@pytest.mark.parametrize("history", [[(1, 0, 4)], [(1, 0, 4), (2, 4, 9)]], ids=["before its commit", "after it"])
def test_an_evaluation_that_the_attempt_before_left_to_this_one_counts(history):
    left = point(4, 0.5, "validation/loss")
    attempts = {1: [point(step) for step in range(1, 5)], 2: [point(4, name="system/a"), left, point(5), point(6)]}
    kept, again = split(attempts, head(2, *history))
    assert kept == {1: attempts[1], 2: [left, point(5), point(6)]}
    assert again == {2: [point(4, name="system/a")]}


def test_losses_that_are_no_numbers_are_no_points():
    points = [point(1), point(2, math.nan), point(3, math.inf), point(4)]
    (curve,) = curves(StagePoints(attempts={1: points}), head(1, (1, 0, 4)), [])
    assert [found[0] for found in curve.series[0].points] == [1, 4]


def test_of_many_files_of_points_some_are_read_and_the_page_says_so(any_root):
    for number in range(95):
        body = points_body([point(number + 1, float(number))])
        any_root.write(f"stages/x/attempts/1/metrics/{number:06d}.jsonl", body)
    found = stage_points(any_root, "stages/x", head(1, (1, 0, 95)), files=10)
    assert found.every == 10
    assert [p.step for p in found.attempts[1]] == [*range(1, 95, 10), 95]
    (curve,) = curves(found, head(1, (1, 0, 95)), [])
    assert of_curve(curve).note == "one of 10 stored files of points was read"
    assert stage_points(any_root, "stages/x", head(1), files=95).every == 1


@pytest.fixture
def any_root(tmp_path):
    from cluster.storage import open_storage

    return open_storage(f"file://{tmp_path}")


def report(*spans: tuple[str, float, float], drivers: tuple[float, ...] = (0,)) -> Report:
    """Attempts of stages from a second to a second."""
    stages: dict[str, StageReport] = {}
    for name, start, end in spans:
        stage = stages.setdefault(name, StageReport(name=name, kind="toy", outcome="done"))
        times = {"started_ms": int(1000 * start), "ended_ms": int(1000 * end)}
        stage.spans.append(Span(attempt=len(stage.spans) + 1, folder="f", outcome="done", **times))
    nothing = Cost(seconds=0, process_hours=0, gpu_hours=0)
    return Report(
        id="toy-1", name="toy", description="", state="done", message="", root="", place="", origin={}, started_ms=0,
        ended_ms=0, made_ms=0, drivers_ms=[int(1000 * moment) for moment in drivers], figures=[], warnings=[],
        stages=list(stages.values()), losses=[], troubles=[], cost=nothing, workflow="", version="",
    )  # fmt: skip


def test_bars_lie_where_their_times_lie():
    found = chain(report(("first", 0, 25), ("second", 25, 100)))
    (first,), (second,) = (row.bars for row in found.rows)
    assert (first.left, first.width, second.left, second.width) == (0, 25, 25, 75)
    assert found.cuts == []
    assert found.ticks[0] == (0, "0:00 min")
    assert (30, "0:30 min") in found.ticks


def test_a_long_pause_is_cut_out_and_its_length_written():
    found = chain(report(("first", 0, 50), ("first", 50 + 7200, 100 + 7200), drivers=(0, 7240)))
    whole = 100 * (1 + CUT)
    first, second = found.rows[0].bars
    assert (first.left, first.width) == (0, pytest.approx(100 * 50 / whole))
    assert second.left == pytest.approx(100 * (50 + 100 * CUT) / whole)
    assert second.left + second.width == pytest.approx(100)
    ((place, text),) = found.cuts
    assert first.width < place < second.left
    assert text == "2 h 00 min"
    # The driver went on within the pause, which is drawn already.
    assert found.drivers == []


def test_a_short_pause_is_none_and_a_driver_that_went_on_in_it_is_drawn():
    found = chain(report(("first", 0, 50), ("second", 52, 100), drivers=(0, 51)))
    assert found.cuts == []
    assert found.drivers == [51]


def test_an_attempt_of_a_moment_is_seen_and_stays_within_the_drawing():
    found = chain(report(("first", 0, 10_000), ("second", 10_000, 10_000)))
    (bar,) = found.rows[1].bars
    assert bar.width > 0.5
    assert bar.left + bar.width <= 100
