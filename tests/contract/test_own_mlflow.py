"""What a user's own process has of MLflow is as it was after patchline has run in it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cluster.errors import UserError
from pipeline import api
from pipeline.config import parse_workflow
from pipeline.mlflow_settings import CHATTY, OURS, UNLESS_SET, client_settings
from pipeline.register import register
from pipeline.settings import Settings
from tests.contract.trained import METRIC, TEXT, Trained

pytestmark = pytest.mark.usefixtures("patient")
REGISTER = f"register: {{name: small, from: finetune, champion: {{metric: {METRIC}}}}}\n"


@pytest.fixture
def trained(trained: Trained, tmp_path: Path) -> Trained:
    """In a root of its own: these tests leave workflows there."""
    return trained.apart(tmp_path / "apart")


def left() -> dict[str, Any]:
    """All that a user would notice."""
    run = mlflow.active_run()
    return {
        "environment": {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")},
        "tracking": mlflow.get_tracking_uri(),
        "registry": mlflow.get_registry_uri(),
        "run": run.info.run_id if run is not None else None,
        "level": logging.getLogger(CHATTY).level,
    }


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The user's own server, with a run under way; returns its address."""
    before = mlflow.get_tracking_uri()
    address = f"sqlite:///{tmp_path}/own.db"
    mlflow.set_tracking_uri(address)
    mlflow.set_experiment("mine")
    with mlflow.start_run(run_name="notebook"):
        # As a launcher of theirs may have set it, for runs that are still to come.
        monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
        yield address
    mlflow.set_tracking_uri(before)


def check_own(address: str, before: dict[str, Any]) -> None:
    assert left() == before
    mlflow.log_metric("after", 1.0)
    client = mlflow.MlflowClient(address)
    assert {found.name for found in client.search_experiments()} == {"Default", "mine"}
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.metrics) == ("notebook", "RUNNING", {"after": 1.0})
    assert client.search_registered_models() == []


def test_a_workflow_that_runs_in_it_shows_itself_elsewhere(trained: Trained, tmp_path: Path, own: str):
    before, ours = left(), trained.database(tmp_path / "ours")
    workflow = parse_workflow(TEXT + REGISTER, "small.yaml")
    workflow_id, state = api.run(workflow, Settings(root=trained.storage.url, mlflow=ours))
    assert state == "done"
    check_own(own, before)
    runs = trained.runs(ours)
    found = runs.client.search_runs([runs.experiment], f"tags.`patchline.workflow` = '{workflow_id}'")
    assert {"small", "pretrain · small", "finetune · small"} <= {run.info.run_name for run in found}
    assert [version.version for version in runs.client.search_model_versions("name = 'small'")] in ([1], ["1"])


def test_a_model_that_is_registered_from_it_is_registered_elsewhere(trained: Trained, tmp_path: Path, own: str):
    before, ours = left(), trained.database(tmp_path / "ours")
    settings = Settings(root=trained.storage.url, mlflow=ours)
    assert register(trained.workflow_id, settings, name="small", stage="finetune").version == 1
    check_own(own, before)
    with pytest.raises(UserError, match="does not answer"):
        register(trained.workflow_id, Settings(root=settings.root, mlflow="http://127.0.0.1:9"), name="small")
    check_own(own, before)


def test_of_several_in_one_process_the_last_one_puts_things_back(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before, inside, leave = left(), threading.Event(), threading.Event()

    def other() -> None:
        with client_settings():
            inside.set()
            leave.wait(300)

    thread = threading.Thread(target=other)
    with client_settings():
        thread.start()
        assert inside.wait(120)
    ours = {name: os.environ.get(name) for name in (*OURS, *UNLESS_SET)}
    assert ours == {**OURS, **UNLESS_SET, "MLFLOW_HTTP_REQUEST_TIMEOUT": "77"}
    leave.set()
    thread.join()
    assert left() == before
