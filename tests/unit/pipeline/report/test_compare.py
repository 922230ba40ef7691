"""Two workflows side by side: what differs is shown, and what does not is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.storage import open_storage
from pipeline.config import Workflow
from pipeline.report.compare import comparison_page, figures_table, metrics_table, settings_table, times_table
from pipeline.report.gather import gather
from tests.unit.pipeline.finished import run_to_its_end
from tests.unit.pipeline.report.html import Page, check_alone
from tests.unit.pipeline.toys import Source, Upper


@pytest.fixture
def two(tmp_path):
    """Two workflows of a root: the second one shares the first stage, and repeats its text."""
    first = Workflow(name="toy", stages={"first": Source(width=3), "second": Upper(text="first"), "own": Source()})
    second = Workflow(name="toy", seed=1, stages={"first": Source(), "second": Upper(text="first", times=2)})
    folder, one = run_to_its_end(tmp_path, first)
    _, other = run_to_its_end(tmp_path, second)
    storage = open_storage(f"file://{folder}")
    return gather(storage, one), gather(storage, other)


def test_fields_that_differ_are_listed_with_both_values_and_no_others(two):
    assert settings_table(*two, "settings").rows == [
        ["first.seed", "0", "1"],
        ["second.seed", "0", "1"],
        ["second.times", "1", "2"],
    ]
    assert settings_table(*two, "placement").rows == [["first.width", "3", "1"]]


def test_figures_are_beside_each_other_with_their_difference(finished):
    report = gather(*finished)
    accuracy = next(figure for figure in report.figures if figure.name == "pretrain/test/accuracy")
    seconds = next(figure for figure in report.figures if figure.name == "seconds")
    changed = [
        replace(accuracy, value=accuracy.value + 0.015, text="x %"),
        replace(seconds, value=2 * seconds.value, text="y s"),
    ]
    rows = {row[0]: row for row in figures_table(report, replace(report, figures=changed)).rows}
    assert rows["test accuracy, pretrain"] == ["test accuracy, pretrain", accuracy.text, "x %", "+1.5 points"]
    assert rows["time at work"] == ["time at work", seconds.text, "y s", "+100.0 %"]
    assert rows["images seen"] == ["images seen", "384", "", ""]
    assert {row[3] for row in figures_table(report, report).rows} == {"="}


def test_metrics_of_a_stage_have_their_differences(finished):
    (stage,) = (stage for stage in gather(*finished).stages if stage.name == "pretrain")
    other = replace(stage, metrics={**stage.metrics, "updates": 10.0, "more": 1.0})
    rows = {row[0]: row[1:] for row in metrics_table(stage, other).rows}
    assert rows["updates"] == ["12", "10", "−2"]
    assert rows["more"] == ["", "1", ""]
    assert rows["test/accuracy"][2] == "="


def test_times_say_what_was_reused(two):
    assert [row[0] for row in times_table(*two).rows] == ["first", "second", "own"]
    assert times_table(*two).rows[2][2] == "—"


def test_the_page_shows_both_and_the_same_result_once(two, finished):
    first, second = two
    found = Page(comparison_page(first, second))
    check_alone(found)
    for words in (first.id, second.id, "second.times 1 2", "A alone has own.", "1 field differs"):
        assert words in found.text
    report = gather(*finished)
    same = Page(comparison_page(report, report))
    check_alone(same)
    assert same.text.count("The same result, bit for bit: sha256:") == len(report.stages)
    assert "Nothing that determines a result." in same.text


def test_what_was_made_again_is_not_compared(killed):
    storage, workflow_id, _ = killed
    report = gather(storage, workflow_id)
    found = Page(comparison_page(report, report))
    assert {item["class"].removeprefix("dots ") for item in found.all("path")} == {"one", "b"}


def test_curves_of_a_stage_are_in_one_chart_in_both_colours(finished):
    report = gather(*finished)
    changed = [
        replace(stage, digest="another", pictures=[], tables=[], curves=stage.curves[:1]) for stage in report.stages
    ]
    found = Page(comparison_page(report, replace(report, id="other", stages=changed)))
    check_alone(found)
    lines = [item["class"] for item in found.all("path") if not item["class"].startswith("dots")]
    # Loss of both: training in full, validation dashed.
    assert lines[:4] == ["one", "one dashed", "b", "b dashed"]
    # The others are of the first one alone.
    assert not any(look.startswith("b") for look in lines[4:])
    assert len(found.all("img")) == sum(len(stage.pictures) for stage in report.stages)
