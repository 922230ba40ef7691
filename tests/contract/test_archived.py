"""Our experiment in MLflow's trash: a workflow brings it back, or says who can, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from cluster.errors import UserError
from cluster.local.processes import free_ports
from pipeline import tracking
from pipeline.config import parse_workflow
from pipeline.driver import create
from pipeline.mlflow_page import EXPERIMENT
from pipeline.register import register
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.tracking import MlflowTracker
from tests.contract.trained import METRIC, TEXT, Trained
from tests.integration.flows import wait_for

pytestmark = pytest.mark.usefixtures("patient")
REGISTER = f"register: {{name: small, from: finetune, champion: {{metric: {METRIC}}}}}\n"
KEYS = {"workflow", "ingest", "pretrain", "finetune", "worse", "of_worse", "fewshot"}


@pytest.fixture
def trained(trained: Trained, tmp_path: Path) -> Trained:
    """In a root of its own: these tests leave workflows there."""
    return trained.apart(tmp_path / "apart")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real server of this module's own; yields its address."""
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination", str(folder / "files")]
    process = subprocess.Popen([*command, *stores], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def drive(trained: Trained, uri: str, meanwhile: Any = None) -> str:
    """Run the same stages, all of which are reused; `meanwhile` once the tracker is at work."""
    storage, workflow = trained.storage, parse_workflow(TEXT + REGISTER, "small.yaml")
    workflow_id = create(storage, workflow)
    with MlflowTracker(uri, storage, workflow_id, workflow) as tracker:
        runner = Runner(storage, workflow_id, workflow, owner="test", ray=False, tracker=tracker)
        if meanwhile is not None:
            meanwhile(tracker)
        assert runner.run(tracker.workflow_ended) == "done"
    return workflow_id


def until_in_trouble(tracker: MlflowTracker) -> None:
    """Else the end's patience may be over before a slow machine has asked MLflow for anything."""
    wait_for(lambda: tracker.problem, 120, "trouble with MLflow")


def shown(client: MlflowClient, workflow_id: str) -> dict[str, Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`patchline.workflow` = '{workflow_id}'")
    return {run.data.tags["patchline.key"].removeprefix(f"{workflow_id}:"): run for run in runs}


def check_whole(client: MlflowClient, workflow_id: str, trained: Trained) -> None:
    runs = shown(client, workflow_id)
    assert runs.keys() == KEYS
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    accuracy = trained.done["finetune"].record.metrics["test/accuracy"]
    assert runs["finetune"].data.metrics["test/accuracy"] == accuracy
    assert runs["workflow"].data.metrics[METRIC] == accuracy
    files = {item.path for item in client.list_artifacts(runs["workflow"].info.run_id)}
    assert {"workflow.yaml", "environment.json", "plan.txt", "report.html"} <= files


def test_one_that_was_deleted_is_restored_with_its_runs_and_told(trained: Trained, server: str, capsys):
    client = MlflowClient(server)
    first = drive(trained, server)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    capsys.readouterr()
    second = drive(trained, server)
    said = capsys.readouterr().out
    assert said.count(f"the experiment {EXPERIMENT} had been deleted in MLflow: it is restored, with its runs") == 1
    assert "does not take this" not in said
    for workflow_id in (first, second):
        check_whole(client, workflow_id, trained)


def deleted_meanwhile(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> str:
    """Delete our experiment when the next workflow first sends points; returns its number."""
    found = client.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    real, deleted = MlflowClient.log_batch, list[bool]()

    def log_batch(self: Any, run: str, *arguments: Any, **options: Any) -> Any:
        if not deleted:
            deleted.append(True)
            client.delete_experiment(found.experiment_id)
        return real(self, run, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    return found.experiment_id


def refuse(*_: Any) -> None:
    raise MlflowException("not yours", error_code=PERMISSION_DENIED)


def test_one_that_is_deleted_while_a_workflow_runs_comes_back_and_nothing_is_lost(
    trained: Trained, server: str, capsys, monkeypatch
):
    client = MlflowClient(server)
    drive(trained, server)
    deleted_meanwhile(client, monkeypatch)
    capsys.readouterr()
    workflow_id = drive(trained, server)
    said = capsys.readouterr().out
    assert said.count("it is restored, with its runs") == 1
    assert "does not take this" not in said
    check_whole(client, workflow_id, trained)


def test_where_we_may_not_restore_it_all_is_sent_once_somebody_else_has(
    trained: Trained, server: str, capsys, monkeypatch
):
    client = MlflowClient(server)
    drive(trained, server)
    restore, tries = client.restore_experiment, list[str]()

    def refuse_until_restored(self: Any, experiment: str) -> None:
        tries.append(experiment)
        if len(tries) == 3:
            # By somebody else.
            restore(experiment)
        refuse()

    monkeypatch.setattr(MlflowClient, "restore_experiment", refuse_until_restored)
    experiment = deleted_meanwhile(client, monkeypatch)
    capsys.readouterr()
    workflow_id = drive(trained, server)
    said = capsys.readouterr().out
    assert len(tries) == 3
    assert said.count(f"restore it by `mlflow experiments restore -x {experiment}`") == 1
    assert "does not take this" not in said
    check_whole(client, workflow_id, trained)


def test_where_we_may_not_restore_it_the_next_move_is_told_and_the_next_driver_sends_all(
    trained: Trained, server: str, capsys, monkeypatch
):
    client = MlflowClient(server)
    drive(trained, server)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "restore_experiment", refuse)
        patch.setattr(tracking, "PATIENCE_SECONDS", 3.0)
        capsys.readouterr()
        workflow_id = drive(trained, server, until_in_trouble)
        said = capsys.readouterr().out
        assert f"restore it by `mlflow experiments restore -x {experiment.experiment_id}`; the work goes on" in said
        assert f"`patchline resume {workflow_id}` sends it" in said
        with pytest.raises(UserError, match="mlflow experiments restore"):
            register(trained.workflow_id, Settings(root=trained.storage.url, mlflow=server), name="small")
    client.restore_experiment(experiment.experiment_id)
    storage, workflow = trained.storage, parse_workflow(TEXT + REGISTER, "small.yaml")
    with MlflowTracker(server, storage, workflow_id, workflow) as tracker:
        runner = Runner(storage, workflow_id, workflow, owner="next", ray=False, tracker=tracker)
        assert runner.run(tracker.workflow_ended) == "done"
    check_whole(client, workflow_id, trained)
