"""A real MLflow behind a proxy that asks who one is, that takes no files, or nothing: training costs it nothing."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cluster.local.stack import Stack
from pipeline import api, mlflow_page, preflight, tracking
from pipeline.mlflow_page import address
from pipeline.mlflow_search import own_runs
from pipeline.preflight import tracking as asked
from pipeline.settings import Settings
from pipeline.tracking import MlflowTracker
from tests.contract.guard import Guard
from tests.integration.flows import curve, in_mlflow, record, small_workflow, tracked

pytestmark = pytest.mark.cluster
UPDATES, NAME, PASSWORD = 12, "ada", "lovelace"
WORKFLOW = small_workflow(f"pretrain.updates={UPDATES}", "pretrain.save_every=5", "pretrain.evaluate_every=0")
WHAT_TO_SET = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
FILES = {"workflow.yaml", "environment.json", "plan.txt", "report.html"}
"""Of a workflow's own run."""


@pytest.fixture
def guard(patient: None, stack_environment: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """Before the stack's server, which is waited for as long as a slow machine needs."""
    for module in (mlflow_page, preflight):
        monkeypatch.setattr(module, "ANSWER_SECONDS", 120.0)
    server = Guard(stack_environment.mlflow_url)
    with server.running():
        yield server


@pytest.fixture
def settings(guard: Guard, tmp_path: Path) -> Settings:
    return Settings(root=f"file://{tmp_path}/root", mlflow=guard.url)


@contextmanager
def impatient(*, for_files_alone: bool = False) -> Iterator[None]:
    """The end of a workflow waits shortly for what takes nothing: a server, or a store of files behind one."""
    made = MlflowTracker.__init__

    def make(self: MlflowTracker, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        if for_files_alone:
            self._patience = 120.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "PATIENCE_SECONDS", 4.0)
        patch.setattr(MlflowTracker, "__init__", make)
        yield


def files_in_mlflow(settings: Settings, workflow_id: str, key: str) -> set[str]:
    run = tracked(settings, workflow_id)[key]
    return {item.path for item in mlflow.MlflowClient(settings.mlflow).list_artifacts(run.info.run_id)}


def check_whole(settings: Settings, workflow_id: str) -> None:
    """Every run has ended, every update is there once, and no file is missing."""
    run = in_mlflow(settings, workflow_id, "pretrain")
    for name in ("train/loss", "train/lr"):
        assert [step for step, _ in curve(settings, run, name)] == list(range(1, UPDATES + 1))
    final = record(settings.storage(), workflow_id, "pretrain").metrics["test/accuracy"]
    assert [value for _, value in curve(settings, run, "test/accuracy")] == [final]
    assert {run.info.status for run in tracked(settings, workflow_id).values()} == {"FINISHED"}
    assert files_in_mlflow(settings, workflow_id, "workflow") >= FILES


def let_in(monkeypatch: pytest.MonkeyPatch, guard: Guard, password: str) -> None:
    """Ask for a name and a password from now on, and give this one."""
    guard.wanted = Guard("", f"{NAME}:{PASSWORD}").wanted
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", NAME)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def test_with_its_credentials_a_workflow_is_tracked_wholly(guard, settings, monkeypatch, capsys):
    let_in(monkeypatch, guard, PASSWORD)
    workflow_id, state = api.run(WORKFLOW, settings)
    assert state == "done"
    check_whole(settings, workflow_id)
    assert "MLflow at" not in capsys.readouterr().out
    assert guard.refused[401] == 0
    assert asked(guard.url).level == "ok"
    assert address(guard.url).startswith(f"{guard.url}/#/experiments/")


def test_with_wrong_ones_it_is_trained_and_what_to_set_and_what_is_missing_is_told(
    guard, settings, monkeypatch, capsys
):
    let_in(monkeypatch, guard, "byron")
    finding = asked(guard.url)
    assert finding.level == "warning"
    assert "does not let us in with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD as set (401)" in finding.told
    assert "byron" not in finding.told
    assert address(guard.url) == guard.url
    with impatient():
        workflow_id, state = api.run(WORKFLOW, settings)
    assert state == "done"
    said = capsys.readouterr().out
    assert (
        "does not let us in: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        in said
    )
    assert re.search(r"did not take everything: .*401.*; 5 of its 5 runs are not there; all is kept in storage", said)
    assert "byron" not in said
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert api.resume(workflow_id, settings, foreground=True)[1] == "done"
    check_whole(settings, workflow_id)


def is_file(path: str) -> bool:
    return "/mlflow-artifacts/" in path or "/upload-artifact" in path


@pytest.mark.parametrize("status", [507, 500])
def test_a_store_of_files_that_is_full_costs_the_files_alone_until_it_takes_them(guard, settings, capsys, status):
    guard.refuse = lambda method, path: status if method in ("PUT", "POST") and is_file(path) else None
    with impatient(for_files_alone=True):
        workflow_id, state = api.run(WORKFLOW, settings)
    assert state == "done"
    said = capsys.readouterr().out
    assert guard.refused[status] > 0
    assert "takes no files; all else is shown" in said
    (left,) = re.findall(r"(\d+) files are not in MLflow: `patchline resume", said)
    assert int(left) >= 4
    run = in_mlflow(settings, workflow_id, "pretrain")
    assert [step for step, _ in curve(settings, run, "train/loss")] == list(range(1, UPDATES + 1))
    assert files_in_mlflow(settings, workflow_id, "workflow") == set()
    guard.refuse = lambda method, path: None
    assert api.resume(workflow_id, settings, foreground=True)[1] == "done"
    check_whole(settings, workflow_id)


@pytest.mark.parametrize("status", [507, 500])
def test_a_server_that_takes_nothing_any_more_loses_nothing_once_it_does(guard, settings, capsys, status):
    """From its first points on, as a database does whose disk is full: what it is asked it still answers."""
    full = []

    def refuse(method: str, path: str) -> int | None:
        if path.endswith("/log-batch"):
            full.append(path)
        return status if len(full) > 1 and method != "GET" else None

    guard.refuse = refuse
    with impatient():
        workflow_id, state = api.run(WORKFLOW, settings)
    assert state == "done"
    said = capsys.readouterr().out
    assert f"MLflow at {guard.url} does not answer; the work goes on" in said
    assert re.search(
        rf"did not take everything: .*{status}.* are not there; all is kept in storage, and `patchline", said
    )
    guard.refuse = lambda method, path: None
    assert api.resume(workflow_id, settings, foreground=True)[1] == "done"
    check_whole(settings, workflow_id)


def test_a_server_that_lets_everybody_wait_holds_nothing_up_and_has_everything_later(guard, settings, capsys):
    """It takes every request and answers none of them until training is over."""
    awake = threading.Event()

    def wait(method: str, path: str) -> int | None:
        awake.wait(timeout=300)
        return None

    guard.refuse = wait
    with impatient():
        workflow_id, state = api.run(WORKFLOW, settings)
    assert state == "done"
    assert not awake.is_set()
    assert "are not there; all is kept in storage, and `patchline" in capsys.readouterr().out
    awake.set()
    assert api.resume(workflow_id, settings, foreground=True)[1] == "done"
    check_whole(settings, workflow_id)
    # What it made late, and what it was asked for again, are not both there.
    client = mlflow.MlflowClient(settings.mlflow)
    experiment = client.get_experiment_by_name("patchline").experiment_id
    runs = own_runs(client, experiment, f"tags.`patchline.workflow` = '{workflow_id}'", settings.root)
    keys = [run.data.tags["patchline.key"] for run in runs]
    assert len(keys) == len(set(keys)) == 5
