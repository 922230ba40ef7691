"""The page: whole, alone, safe, and it says what the report says."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from cluster.storage import open_storage
from pipeline.config import Workflow
from pipeline.driver import create
from pipeline.report.gather import gather
from pipeline.report.render import flat_texts, page
from pipeline.report.tables import tables, value_text
from pipeline.runner import Runner
from tests.unit.pipeline.report.html import Page, check_alone
from tests.unit.pipeline.test_runner import Silent
from tests.unit.pipeline.toys import Source, Upper

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 191919191 }}"


def test_the_page_of_a_finished_workflow_is_whole_and_needs_nothing_beside_it(finished):
    report = gather(*finished, price=2.0)
    html = page(report)
    found = Page(html)
    check_alone(found)
    assert html.startswith("<!DOCTYPE html>")
    assert report.description in found.text
    assert "<script" not in html
    for figure in report.figures:
        assert f"{figure.label} {figure.text}" in found.text
    for stage in report.stages:
        for table in stage.tables:
            for row in table.rows:
                assert " ".join(" ".join(cell for cell in row if cell).split()) in found.text
    shown = [picture.data for stage in report.stages for picture in stage.pictures]
    assert [image["src"].removeprefix("data:image/png;base64,") for image in found.all("img")] == shown
    assert all(image["alt"] for image in found.all("img"))


def test_the_workflow_file_on_the_page_is_the_one_that_ran(finished):
    storage, workflow_id = finished
    report = gather(storage, workflow_id)
    found = Page(page(report))
    (link,) = (item for item in found.all("a") if "download" in item)
    stored = storage.read(f"workflows/{workflow_id}/workflow.yaml")
    assert base64.b64decode(link["href"].partition(",")[2]) == stored
    assert link["download"] == "small.yaml"
    assert f"patchline verify pretrain --workflow {workflow_id} --root {storage.url}" in found.text
    for stage in report.stages:
        assert f"sha256:{stage.digest}" in found.text


def test_what_others_have_written_is_text(tmp_path):
    flow = Workflow(
        name="toy",
        description=HOSTILE,
        stages={"first": Source(text=HOSTILE), "second": Upper(text="first", mistake=HOSTILE)},
    )
    storage = open_storage(f"file://{tmp_path}")
    workflow_id = create(storage, flow)
    assert Runner(storage, workflow_id, flow, owner=f"x/{HOSTILE}/1/2", ray=False, tracker=Silent()).run() == "failed"
    report = gather(storage, workflow_id)
    # As a stage of somebody's own may call its tables, figures and versions.
    first = report.stages[0]
    first.metrics[HOSTILE] = 1.0
    first.builds[HOSTILE] = HOSTILE
    first.tables += tables({HOSTILE: [{HOSTILE: HOSTILE}], "summary": [{"its own": HOSTILE}]})
    html = page(report)
    found = Page(html)
    check_alone(found)
    assert "<script" not in html
    assert "<img src=x" not in html
    assert found.text.count("<script>alert(1)</script>") >= 8
    assert "1343434337" not in html
    assert "state failed" in {item.get("class") for item in found.all("span")}


def test_a_killed_training_is_told_in_words_and_drawn(killed):
    storage, workflow_id, _ = killed
    report = gather(storage, workflow_id)
    found = Page(page(report))
    check_alone(found)
    assert (
        "attempt 1: its process was killed, or lost with its machine. It had made update 57, the next attempt went on "
        "from 50: 7 updates were made again, 14.0 s of training. 10.0 s passed between the two." in found.text
    )
    assert "1 attempt ended early; 7 updates were made again, 11.7% of 60, which had taken 14.0 s." in found.text
    bars = [item["class"] for item in found.all("i") if "style" in item]
    assert bars == ["kept", "lost", "running"]
    (back,) = (item for item in found.all("span") if item.get("class") == "back")
    # From update 57 to update 50, of an axis from 0 to 60.
    assert back["style"] == f"left:{round(100 * 50 / 60, 2)}%;width:{round(100 * 7 / 60, 2)}%"
    assert "60 of 100 updates" in found.text


def test_a_workflow_of_which_nothing_has_run_has_a_page(tmp_path):
    storage = open_storage(f"file://{tmp_path}")
    workflow_id = create(storage, Workflow(name="toy", stages={"first": Source()}))
    report = gather(storage, workflow_id)
    found = Page(page(report))
    check_alone(found)
    assert "It has not begun yet" in found.text
    assert "first pending" in found.text


def test_the_same_report_gives_the_same_page(finished):
    report = gather(*finished)
    assert page(report) == page(replace(report))


def test_who_submitted_it_and_from_which_commit_is_said_where_it_is_known(finished):
    report = gather(*finished)
    git = {"commit": "0123abcd", "branch": "main", "changed": True}
    known = replace(report, origin={"user": "ada", "host": "mill", "git": git})
    words = "submitted by ada on mill commit 0123abcd of main, with changes that were not committed"
    assert words in Page(page(known)).text
    unknown = Page(page(replace(report, origin={}))).text
    assert "submitted by" not in unknown
    assert "commit " not in unknown.partition("The chain")[0]


def test_a_table_says_first_what_its_rows_are_about():
    rows = [{"accuracy": 0.5, "bytes": 1000, "split": "train", "why": None}, {"more": "a", "split": "test"}]
    (found,) = tables({"splits": rows, "empty": [], "figures": [{"figure": "a.png", "of": "b"}]})
    assert found.columns == ["split", "more", "accuracy", "bytes", "why"]
    assert found.numeric == [False, False, True, True, True]
    assert found.rows == [["train", "", "50.0 %", "1,000", ""], ["test", "a", "", "", ""]]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("test/accuracy", 0.12345, "12.3 %"),
        ("images", 1797.0, "1,797"),
        ("loss", 0.123456, "0.1235"),
        ("tokens_per_s", 12345.67, "12,345.7"),
        ("name", "a b", "a b"),
        ("missing", None, ""),
        ("flag", True, "True"),
    ],
)
def test_values_are_written_as_people_read_them(name, value, text):
    assert value_text(name, value) == text


def test_fields_of_fields_are_written_as_in_a_workflow_file():
    fields = {"lr": 0.003, "input": {"crop_area": [0.25, 1.0], "flip": False, "cache": None}, "label": {}}
    assert flat_texts(fields) == [
        ("lr", "0.003"),
        ("input.crop_area", "[0.25, 1.0]"),
        ("input.flip", "false"),
        ("input.cache", "null"),
        ("label", "{}"),
    ]
