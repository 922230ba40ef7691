"""Workflows on a cluster that has no machine until there is work."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import api
from pipeline.config import Workflow
from pipeline.settings import resolve
from tests.integration.flows import record, small_workflow, state, wait_for
from tests.integration.growing import growing_cluster

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
        wait_for(lambda: state(storage, workflow_id) in ("done", "failed"), 240, "end of the workflow")
        assert state(storage, workflow_id) == "done"
        assert record(storage, workflow_id, "pretrain").placement["workers"] == 2
