"""A gang that grows when there is room, and goes on when a worker is told to end, on a real cluster."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from cluster.local.stack import Stack
from cluster.storage import Storage
from pipeline import api
from pipeline.display import describe
from pipeline.head import read_head
from pipeline.record import EventLog
from pipeline.settings import resolve
from tests.integration.flows import descendants, processes, small_workflow, stage, steps_logged, wait_for

pytestmark = pytest.mark.cluster


def trains(storage: Storage, workflow_id: str, attempt: int) -> str | None:
    """The pretraining's folder, once this attempt has made updates."""
    status = stage(storage, workflow_id, "pretrain")
    ours = status.folder and status.attempt == attempt
    return status.folder if ours and steps_logged(storage, str(status.folder), attempt) else None


def told(storage: Storage, workflow_id: str, type_: str) -> list[Any]:
    return [event for event in EventLog(storage, workflow_id).new_events() if event.type == type_]


def test_a_gang_grows_into_room_and_goes_on_when_a_worker_is_told_to_end(
    stack_environment: Stack, s3_root: str, monkeypatch: pytest.MonkeyPatch
):
    from ray.job_submission import JobSubmissionClient

    stack = stack_environment
    monkeypatch.setenv("PATCHLINE_GROWTH_SECONDS", "2")
    monkeypatch.setenv("PATCHLINE_LEASE_SECONDS", "5")
    client = JobSubmissionClient(stack.jobs_address)
    # Somebody else has all of the cluster but for one worker's place.
    cpus = os.cpu_count() or 1
    other = client.submit_job(entrypoint="sleep 3600", entrypoint_num_cpus=cpus - 1)
    try:
        settings = resolve(root=s3_root)
        storage = settings.storage()
        overrides = ("workers=[1,2]", "updates=100000", "save_every=100000", "retries=0", "preemptions=1")
        workflow_id = api.submit(small_workflow(*(f"pretrain.{field}" for field in overrides)), settings)
        folder = wait_for(lambda: trains(storage, workflow_id, 1), 300, "training in the room that there is")
    finally:
        client.stop_job(other)

    wait_for(lambda: trains(storage, workflow_id, 2), 300, "training in the larger room")
    assert [event.data["workers"] for event in told(storage, workflow_id, "gang")] == [1, 2]
    own = descendants(stack.processes["ray"].pid)
    workers = [pid for pid in processes("ray::", "TrainWorker") if pid in own]
    os.kill(workers[0], signal.SIGTERM)

    wait_for(lambda: trains(storage, workflow_id, 3), 300, "training after the signal")
    api.cancel(workflow_id, settings)
    wait_for(lambda: told(storage, workflow_id, "workflow_ended"), 300, "end")

    assert [event.data["workers"] for event in told(storage, workflow_id, "gang")] == [1, 2, 2]
    assert [event.data["reason"] for event in told(storage, workflow_id, "stage_interrupted")] == [
        "resized",
        "terminated",
    ]
    assert [describe(event) for event in told(storage, workflow_id, "stage_interrupted")] == [
        "pretrain: there is room for more workers: going on with them",
        "pretrain: saved a checkpoint, since it was sent SIGTERM; going on",
    ]
    # Each attempt saved at its last update, and the next one went on with the very next one.
    head = read_head(storage, folder)[0]
    assert [segment.attempt for segment in head.history] == [1, 2, 3]
    for segment in head.history:
        steps = steps_logged(storage, folder, segment.attempt)
        assert (steps[0], steps[-1]) == (segment.start + 1, segment.end)
