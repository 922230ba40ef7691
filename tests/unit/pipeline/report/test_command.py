"""`patchline report`, and the same in Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cluster.errors import UserError
from pipeline import api, cli, reporting
from pipeline.commands.base import console
from pipeline.config import Workflow
from pipeline.settings import Settings
from tests.unit.pipeline.finished import copied, run_to_its_end
from tests.unit.pipeline.report.html import Page, check_alone
from tests.unit.pipeline.toys import Source


@pytest.fixture
def patchline(monkeypatch, capsys, tmp_path, finished):
    """The command, run in an empty folder on a copy of the finished workflow's root."""
    storage, _ = finished
    copied(Path(storage.url.removeprefix("file://")), tmp_path / "root")
    monkeypatch.setenv("PATCHLINE_ROOT", f"file://{tmp_path}/root")
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(console, "width", 60)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["patchline", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def test_a_report_is_written_where_one_stands_and_it_is_said_where(patchline, finished, tmp_path):
    _, workflow_id = finished
    path = tmp_path / "work" / f"report-{workflow_id}.html"
    assert patchline("report") == (0, f"{path}\n", "")
    check_alone(Page(path.read_text()))
    assert patchline("report", workflow_id[:8], "--to", "one.html") == (0, f"{tmp_path}/work/one.html\n", "")
    (tmp_path / "folder").mkdir()
    code, out, _ = patchline("report", "--to", f"{tmp_path}/folder", "--price", "2")
    assert (code, out) == (0, f"{tmp_path}/folder/report-{workflow_id}.html\n")
    assert "money 0.00" in Page(Path(out.strip()).read_text()).text
    code, out, _ = patchline("report", "--to", "-")
    assert (code, out[:15]) == (0, "<!DOCTYPE html>")
    check_alone(Page(out))


def test_two_are_compared(patchline, finished, tmp_path):
    _, other = run_to_its_end(tmp_path / "root", Workflow(name="toy", stages={"first": Source()}))
    code, out, _ = patchline("report", "--compare", "small", "toy")
    assert (code, out) == (0, f"{tmp_path}/work/report-{finished[1]}-{other}.html\n")
    found = Page(Path(out.strip()).read_text())
    check_alone(found)
    assert "B alone has first." in found.text
    code, out, _ = patchline("report", "--compare", "small", "toy", "--json")
    assert [report["id"] for report in json.loads(out)] == [finished[1], other]


def test_what_it_says_can_be_had_as_json(patchline, finished):
    code, out, _ = patchline("report", "--json")
    found = json.loads(out)
    assert (code, found["id"], found["state"]) == (0, finished[1], "done")
    assert found["stages"][3]["pictures"][0] | {"caption": "", "address": ""} == {
        "name": "rollout.png", "caption": "", "address": "", "data": None, "width": 900,
        "height": found["stages"][3]["pictures"][0]["height"], "problem": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("nope",), "no single workflow 'nope'"),
        (("small", "--compare", "small", "toy"), "report small --compare small toy: expected an id, or --compare and"),
        (("--compare", "small", "small"), "both are small-"),
        (("--to", "-", "--open"), "--to - --open: what goes to stdout is in no file"),
        (("--to", "gone/report.html"), "--to gone/report.html: there is no folder"),
        (("--json", "--to", "x"), "--json --to: JSON goes to stdout"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(patchline, words, problem, tmp_path):
    code, out, error = patchline("report", *words)
    assert (code, out) == (2, "")
    assert problem in error
    assert list((tmp_path / "work").iterdir()) == []


def test_in_python_it_is_the_html(finished):
    storage, workflow_id = finished
    settings = Settings(root=storage.url, mlflow="")
    assert workflow_id in Page(api.report(workflow_id[:5], settings)).text
    with pytest.raises(UserError, match="no single workflow"):
        api.compare_reports(workflow_id, "nope", settings)


def test_a_report_that_cannot_be_made_is_told_in_a_line_and_raises_nothing(finished, tmp_path, capsys):
    storage, workflow_id = finished
    damaged = copied(Path(storage.url.removeprefix("file://")), tmp_path / "root")
    damaged.write(f"workflows/{workflow_id}/workflow.yaml", b"stages: [")
    assert reporting.page_or_word(damaged, workflow_id) == ""
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert f"`patchline report {workflow_id}` makes one" in out
