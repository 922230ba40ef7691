"""Workflows on a cluster that has no machine until there is work."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cluster.local.processes import stop
from pipeline import api
from pipeline.config import Workflow
from pipeline.display import describe
from pipeline.settings import resolve
from tests.integration.flows import record, small_workflow, state, steps_logged, wait_for
from tests.integration.growing import add_machine, growing_cluster
from tests.integration.test_elastic import told, trains

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("ingested", [False, True])
def test_an_empty_cluster_grows_for_tasks_and_for_a_gang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ingested: bool
):
    """Tasks that wait are what it grows by; where ingestion has been done before, a gang alone asks for machines."""
    workflow = small_workflow("pretrain.updates=8")
    places = {"root": f"file://{tmp_path}/root", "mlflow": f"sqlite:///{tmp_path}/mlflow.db"}
    if ingested:
        first = Workflow(name="first", seed=workflow.seed, stages={"ingest": workflow.stages["ingest"]})
        assert api.run(first, resolve(**places))[1] == "done"
    with growing_cluster({"CPU": 1}, most=2) as cluster:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", cluster.token)
        settings = resolve(**places, address=cluster.jobs)
        storage = settings.storage()
        workflow_id = api.submit(workflow, settings)
        wait_for(lambda: state(storage, workflow_id) in ("done", "failed"), 480, "end of the workflow")
        assert state(storage, workflow_id) == "done"
        assert record(storage, workflow_id, "pretrain").placement["workers"] == 2


def test_a_machine_that_is_told_to_end_lets_training_save_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a pod is, by SIGTERM; the next attempt is on the machine that comes in its place."""
    workflow = small_workflow("pretrain.workers=1", "pretrain.updates=100000", "pretrain.save_every=100000")
    with growing_cluster({"CPU": 1}, most=0) as cluster:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", cluster.token)
        mlflow = f"sqlite:///{tmp_path}/mlflow.db"
        settings = resolve(root=f"file://{tmp_path}/root", mlflow=mlflow, address=cluster.jobs)
        storage = settings.storage()
        first = add_machine(cluster, "first", notice_s=240)
        try:
            workflow_id = api.submit(workflow, settings)
            wait_for(lambda: trains(storage, workflow_id, 1), 300, "training")
            os.kill(first.pid, signal.SIGTERM)
            (event,) = wait_for(
                lambda: told(storage, workflow_id, "stage_interrupted"), 300, "word of the interruption"
            )
            # Without work it ends before its notice is over.
            wait_for(lambda: not first.alive, 300, "end of the machine")
            second = add_machine(cluster, "second", notice_s=1)
            try:
                folder = wait_for(lambda: trains(storage, workflow_id, 2), 300, "training on the other machine")
                api.cancel(workflow_id, settings)
                wait_for(lambda: told(storage, workflow_id, "workflow_ended"), 300, "end")
            finally:
                stop(second)
        finally:
            stop(first)
    assert (event.data["reason"], describe(event)) == (
        "preempted",
        "pretrain: saved a checkpoint, since its machine is taken away; going on",
    )
    steps = [steps_logged(storage, folder, attempt) for attempt in (1, 2)]
    assert steps[1][0] == steps[0][-1] + 1
