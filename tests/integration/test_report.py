"""The report of a real workflow in MLflow: after it was stopped, and after it was killed, resumed and done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import mlflow
import pytest

from pipeline.driver import create
from pipeline.report.gather import gather
from pipeline.report.sentences import lost
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.tracking import REPORT, MlflowTracker
from tests.integration.flows import in_mlflow, over, past_checkpoint, record, small_workflow, wait_for
from tests.unit.pipeline.report.html import Page, check_alone


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A root and an MLflow that are files."""
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATCHLINE_LEASE_SECONDS", "2")
    return Settings(root=f"file://{tmp_path}/root", mlflow=f"sqlite:///{tmp_path}/mlflow.db")


def started(settings: Settings, *words: str) -> subprocess.Popen[str]:
    places = ("--root", settings.root, "--mlflow", settings.mlflow)
    command = [sys.executable, "-m", "pipeline.cli", *words, *places]
    return subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(settings: Settings, process: subprocess.Popen[str], update: int, number: signal.Signals) -> str:
    """Send a process that trains a signal, past the checkpoint of this update; returns the workflow's id."""
    storage = settings.storage()
    ended = partial(over, process)
    try:
        workflow_id = wait_for(lambda: storage.list_folders("workflows/"), 300, "workflow", unless=ended)[0]
        passed = partial(past_checkpoint, storage, workflow_id, update)
        wait_for(passed, 300, f"checkpoint at {update}", unless=ended)
        process.send_signal(number)
        process.communicate(timeout=300)
    finally:
        process.kill()
    return workflow_id


def artifact(settings: Settings, workflow_id: str, to: Path) -> Page:
    """The report that MLflow has of a workflow that has ended."""
    run = in_mlflow(settings, workflow_id, "workflow")
    client = mlflow.MlflowClient(settings.mlflow)
    # The run ends first: nothing waits for the page.
    wait_for(lambda: REPORT in [item.path for item in client.list_artifacts(run.info.run_id)], 300, "report")
    found = Page(Path(client.download_artifacts(run.info.run_id, REPORT, str(to))).read_text())
    check_alone(found)
    return found


def test_mlflow_has_the_report_of_each_end_and_the_newest_one_replaces_it(settings, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(
        small_workflow("pretrain.updates=800", "pretrain.save_every=100", "pretrain.evaluate_every=0").to_yaml()
    )
    process = started(settings, "run", str(path))
    workflow_id = until(settings, process, 100, signal.SIGINT)
    assert process.returncode == 1
    first = artifact(settings, workflow_id, tmp_path)
    assert "It is not done: it was stopped." in first.text
    process = started(settings, "resume", workflow_id, "--foreground")
    assert until(settings, process, 200, signal.SIGKILL) == workflow_id
    process = started(settings, "resume", workflow_id, "--foreground")
    out, _ = process.communicate(timeout=480)
    assert process.returncode == 0, out
    second = artifact(settings, workflow_id, tmp_path)
    report = gather(settings.storage(), workflow_id)
    assert "It is not done" not in second.text
    accuracy = record(settings.storage(), workflow_id, "pretrain").metrics["test/accuracy"]
    assert f"test accuracy, pretrain {100 * accuracy:.1f} %" in second.text
    # It stopped after a checkpoint, and lost nothing; and then it was killed after one.
    assert [(loss.attempt, loss.repeated > 0) for loss in report.losses] == [(1, False), (2, True)]
    assert lost(report.losses[1]) in second.text
    assert [span.outcome for span in report.stages[1].spans] == ["stopped", "lost", "done"]
    assert report.stages[0].outcome == "done"


def test_a_workflow_whose_report_cannot_be_made_ends_as_it_would(settings, capsys):
    storage, flow = settings.storage(), small_workflow()
    del flow.stages["pretrain"]
    workflow_id = create(storage, flow)
    with MlflowTracker(settings.mlflow, storage, workflow_id, flow) as tracker:
        runner = Runner(storage, workflow_id, flow, owner="test", ray=False, tracker=tracker)

        def shown(state: str) -> None:
            storage.write(f"workflows/{workflow_id}/workflow.yaml", b"stages: [")
            tracker.workflow_ended(state, threading.Event())

        assert runner.run(shown) == "done"
    run = in_mlflow(settings, workflow_id, "workflow")
    assert (run.info.status, run.data.tags["patchline.state"]) == ("FINISHED", "done")
    there = [item.path for item in mlflow.MlflowClient(settings.mlflow).list_artifacts(run.info.run_id)]
    assert "workflow.yaml" in there
    assert REPORT not in there
    assert capsys.readouterr().out.count("MLflow is given no report: ") == 1
