"""Progress as people see it: in a terminal, in a notebook, and where nothing can move."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pexpect
import pytest
from jupyter_client.manager import start_new_kernel
from rich.console import Console
from rich.live import Live

from cluster.storage import Storage, open_storage
from pipeline import task_progress
from pipeline.display_live import html, view
from pipeline.live import Lines, Terminal
from pipeline.progress import Progress
from pipeline.record import EventLog
from pipeline.status import StatusReader
from pipeline.task_progress import Counted, read_tasks
from stages.context import SizedIterable
from stages.metrics import MetricWriter

REPOSITORY = Path(__file__).parents[3]
TEXT = """
name: tiny
stages:
  ingest: {source: {kind: digits}, samples_per_shard: 100, test_fraction: 0.25}
"""


@pytest.fixture
def storage(tmp_path) -> Storage:
    return open_storage(f"file://{tmp_path}/root")


def under_way(storage: Storage) -> tuple[StatusReader, Progress]:
    """A workflow that trains, and one of whose stages writes shards."""
    log = EventLog(storage, "toy-1")
    log.append("workflow_started", owner="x", driver=None)
    for name in ("ingest", "pretrain"):
        log.append("stage_started", name, folder=f"stages/{name}/x")
        log.append("attempt_started", name, attempt=1, folder=f"stages/{name}/x", checkpoint=None, differs=[])
    log.append("stage_length", "pretrain", updates=200)
    writer = MetricWriter(storage, "stages/pretrain/x/attempts/1", interval=3600)
    for update in (40, 50):
        writer.log({"train/loss": 1.2345, "train/images_per_s": 321.0}, update)
    writer.close()
    counted = Counted(storage, "stages/ingest/x/attempts/1", lambda function, items, **_: map(function, items))
    list(counted(abs, SizedIterable(iter(range(30)), 1281), label="shards"))
    reader = StatusReader(storage, "toy-1", ["ingest", "pretrain", "fewshot"])
    return reader, Progress(storage)


def drawn(reader: StatusReader, progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    reader.update()
    console.print(view(progress.measure(reader.status), progress))
    return console.file.getvalue()


def test_stages_have_a_line_each_with_a_bar_where_it_is_known_how_far_they_are(storage, monkeypatch):
    monkeypatch.setattr(task_progress, "SECONDS", 0)
    head, ingest, pretrain, fewshot = drawn(*under_way(storage)).splitlines()
    assert head.split() == ["toy-1", "running"]
    assert re.search(r"▶ +ingest +[━╸╺ ]+ +shards 30/1,281$", ingest.rstrip())
    assert re.search(r"▶ +pretrain +[━╸╺]+ +50/200 updates  321 images/s  .* left  loss 1\.23[45]$", pretrain.rstrip())
    assert fewshot.split() == ["·", "fewshot"]


def test_tasks_are_noted_now_and_then_and_forgotten_when_the_stage_is_done(storage, monkeypatch):
    counted = Counted(storage, "a", lambda function, items, **_: map(function, items))
    list(counted(abs, [1, 2, 3], label="shards"))
    assert read_tasks(storage, "a") is None, "a note costs a request: none is made within two seconds"
    monkeypatch.setattr(task_progress, "SECONDS", 0)
    assert list(counted(abs, iter([-1, -2]), label="shards")) == [1, 2]
    assert str(read_tasks(storage, "a")) == "shards 2"
    reader, progress = under_way(storage)
    assert "shards" in drawn(reader, progress)
    EventLog(storage, "toy-1").append("stage_done", "ingest", metrics={"images": 1797.0}, seconds=3.0)
    assert "shards 30" not in drawn(reader, progress)


def test_lines_are_one_for_each_event_and_one_a_minute_of_what_gets_on(storage, monkeypatch):
    monkeypatch.setattr(task_progress, "SECONDS", 0)
    reader, progress = under_way(storage)
    console = Console(file=io.StringIO(), width=60, color_system=None)
    lines, now = Lines(console), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for seconds in (0, 30, 31, 30):
        now[0] += seconds
        lines.show(reader.update(), progress.measure(reader.status), progress)
    said = [line.partition("  ")[2] for line in console.file.getvalue().splitlines()]
    assert said[:2] == ["ingest: attempt 1 started", "pretrain: attempt 1 started"]
    assert said[2] == "ingest: shards 30/1,281"
    assert said[3].startswith("pretrain: 50/200 updates  321 images/s")
    assert len(said) == 4, "what has not moved is not told again"


def test_a_notebook_s_view_is_one_block_of_text(storage, monkeypatch):
    monkeypatch.setattr(task_progress, "SECONDS", 0)
    reader, progress = under_way(storage)
    reader.update()
    found = html(view(progress.measure(reader.status), progress))
    assert found.startswith("<pre")
    assert "50/200 updates" in re.sub("<[^>]*>", "", found)


def seen(height: int, width: int = 80, **outcomes: str) -> list[str]:
    """The lines of a terminal of this height in which a workflow with stages of these outcomes is followed."""
    told = {"done": {"seconds": 3.0, "metrics": {"images": 5.0}}, "failed": {"message": "a disk is full " * 20}}
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, force_terminal=True)
    with tempfile.TemporaryDirectory() as folder, Live(console=console, auto_refresh=False, transient=True) as live:
        storage = open_storage(f"file://{folder}")
        log = EventLog(storage, "toy-1")
        log.append("workflow_started", owner="x", driver=None)
        for name, outcome in outcomes.items():
            if outcome != "pending":
                log.append("stage_started", name, folder=f"stages/{name}/x")
                log.append("attempt_started", name, attempt=1, folder=f"stages/{name}/x", checkpoint=None, differs=[])
            if outcome in told:
                log.append(f"stage_{outcome}", name, **told[outcome])
        reader = StatusReader(storage, "toy-1", list(outcomes))
        Terminal(live).show(reader.update(), reader.status, Progress(storage))
        live.refresh()
        drawn = console.file.getvalue()
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).replace("\r", "").splitlines()]


def stages(count: int, outcome: str, letter: str) -> dict[str, str]:
    return {f"{letter}{number}": outcome for number in range(count)}


def test_of_a_long_workflow_a_terminal_shows_what_runs_what_failed_and_how_many_others_there_are():
    outcomes = {**stages(40, "done", "d"), "bad": "failed", **stages(2, "running", "r"), **stages(20, "pending", "p")}
    lines = seen(24, **outcomes)
    assert len(lines) < 24
    words = [line.split() for line in lines]
    assert words[0][:2] == ["toy-1", "running"]
    assert words[1] == ["…", "31", "done"]
    assert [line[1] for line in words[2:11]] == [f"d{number}" for number in range(31, 40)]
    assert [line[:2] for line in words[11:14]] == [["✗", "bad"], ["▶", "r0"], ["▶", "r1"]]
    assert [line[1] for line in words[14:22]] == [f"p{number}" for number in range(8)]
    assert words[22] == ["…", "12", "waiting"]


def test_a_terminal_that_is_high_enough_shows_all_and_long_lines_are_cut_only_where_it_is_not():
    outcomes = {**stages(20, "done", "d"), "bad": "failed"}
    assert len(seen(60, **outcomes)) > 22, "the message of the one that failed takes several lines"
    low = seen(24, **outcomes)
    assert len(low) == 22
    assert low[-1].endswith("…")


def test_of_more_stages_that_run_than_there_are_lines_the_failed_ones_are_shown_and_the_others_counted():
    words = [line.split() for line in seen(10, **stages(30, "running", "r"), **stages(3, "failed", "f"))]
    assert len(words) == 9
    assert [line[1] for line in words[1:5]] == ["r0", "r1", "r2", "r3"]
    assert words[5] == ["…", "26", "running"]
    assert [line[1] for line in words[6:]] == ["f0", "f1", "f2"]


def environment(tmp_path: Path) -> dict[str, str]:
    places = {"PATCHLINE_ROOT": f"file://{tmp_path}/root", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    return {**os.environ, **places, "PYTHONPATH": str(REPOSITORY), "PATCHLINE_HOME": str(tmp_path / "home")}


@pytest.fixture
def workflow_file(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT)
    return path


def test_a_run_in_a_terminal_moves_and_leaves_its_results(workflow_file, tmp_path):
    # Of so many shards that it is at work at several looks, of which there are two a second.
    workflow_file.write_text(TEXT.replace("samples_per_shard: 100", "samples_per_shard: 5"))
    words = ["-m", "pipeline.cli", "run", str(workflow_file)]
    child = pexpect.spawn(
        sys.executable,
        words,
        env=environment(tmp_path),
        cwd=tmp_path,
        dimensions=(30, 110),
        encoding="utf-8",
        timeout=300,
    )
    said = child.read()
    child.close()
    assert child.exitstatus == 0, said
    moving, _, table = said.rpartition("┏")
    assert "▶" in moving, "the stage was never seen at work"
    assert "\x1b[" in moving
    assert "images 1,797" in table


def test_a_run_into_a_pipe_has_plain_lines(workflow_file, tmp_path):
    words = [sys.executable, "-m", "pipeline.cli", "run", str(workflow_file)]
    done = subprocess.run(
        words, check=False, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    lines = [line.partition("  ")[2] for line in done.stdout.splitlines()]
    assert "ingest: attempt 1 started" in lines
    assert "workflow done" in lines
    assert lines.index("ingest: attempt 1 started") < lines.index("workflow done")


def test_a_notebook_s_cell_is_one_output_that_is_replaced(workflow_file, tmp_path):
    manager, client = start_new_kernel(
        startup_timeout=300, kernel_name="python3", env=environment(tmp_path), cwd=str(tmp_path)
    )
    try:
        code = (
            "from pipeline.api import follow, run\n"
            "from pipeline.config import load_workflow\n"
            "from pipeline.settings import resolve\n"
            f"workflow_id, state = run(load_workflow({str(workflow_file)!r}), resolve())\n"
            "print(follow(workflow_id, resolve()).state)\n"
        )
        messages = []
        reply = client.execute_interactive(code, timeout=300, output_hook=messages.append)
        assert reply["content"]["status"] == "ok", reply
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    shown = [message for message in messages if message["msg_type"] in ("display_data", "update_display_data")]
    assert [message["msg_type"] for message in shown].count("display_data") == 1
    assert "images 1,797" in re.sub("<[^>]*>", "", shown[-1]["content"]["data"]["text/html"])
    printed = "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")
    assert printed.splitlines()[-1] == "done"
    noise = [line for line in printed.splitlines() if re.search(r"INFO|Warning", line)]
    assert noise == []
