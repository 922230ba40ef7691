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
from tests.integration.flows import (
    cancelled_on_failure,
    descendants,
    processes,
    small_workflow,
    stage,
    steps_logged,
    wait_for,
)

pytestmark = pytest.mark.cluster


def trains(storage: Storage, workflow_id: str, attempt: int) -> str | None:
    """The pretraining's folder, once this attempt has made updates."""
    status = stage(storage, workflow_id, "pretrain")
    ours = status.folder and status.attempt == attempt
    return status.folder if ours and steps_logged(storage, str(status.folder), attempt) else None


def told(storage: Storage, workflow_id: str, type_: str) -> list[Any]:
    return [event for event in EventLog(storage, workflow_id).new_events() if event.type == type_]


def gangs(storage: Storage, workflow_id: str) -> list[int]:
    """How many workers each attempt had."""
    return [event.data["workers"] for event in told(storage, workflow_id, "gang")]


def has_grown(storage: Storage, workflow_id: str, *, signals: int = 0) -> bool:
    """Whether two workers train, after so many interruptions by a signal."""
    reasons = [event.data["reason"] for event in told(storage, workflow_id, "stage_interrupted")]
    sizes = gangs(storage, workflow_id)
    there = reasons.count("terminated") == signals and sizes[-1] == 2
    return there and trains(storage, workflow_id, len(sizes)) is not None


def test_a_gang_grows_into_room_and_goes_on_when_a_worker_is_told_to_end(
    stack_environment: Stack, s3_root: str, monkeypatch: pytest.MonkeyPatch
):
    from ray.job_submission import JobStatus, JobSubmissionClient

    stack = stack_environment
    monkeypatch.setenv("PATCHLINE_GROWTH_SECONDS", "2")
    monkeypatch.setenv("PATCHLINE_LEASE_SECONDS", "5")
    client = JobSubmissionClient(stack.jobs_address)
    settings = resolve(root=s3_root)
    storage = settings.storage()
    # Somebody else has all of the cluster but for one worker's place.
    cpus = os.cpu_count() or 1
    other = client.submit_job(entrypoint="sleep 3600", entrypoint_num_cpus=cpus - 1)
    try:
        wait_for(lambda: client.get_job_status(other) == JobStatus.RUNNING, 300, "somebody else's job")
        once = ("pretrain.retries=0", "pretrain.preemptions=1")
        overrides = ("workers=[1,2]", "updates=100000", "save_every=100000", "evaluate_every=0")
        workflow_id = api.submit(small_workflow(*(f"pretrain.{field}" for field in overrides), *once), settings)
        with cancelled_on_failure(settings, workflow_id):
            folder = wait_for(lambda: trains(storage, workflow_id, 1), 300, "training in the room that there is")
            assert gangs(storage, workflow_id) == [1]
    finally:
        client.stop_job(other)

    with cancelled_on_failure(settings, workflow_id):
        wait_for(lambda: has_grown(storage, workflow_id), 300, "training in the larger room")
        own = descendants(stack.processes["ray"].pid)
        workers = [pid for pid in processes("ray::", "TrainWorker") if pid in own]
        os.kill(workers[0], signal.SIGTERM)
        wait_for(lambda: has_grown(storage, workflow_id, signals=1), 300, "training after the signal")
        api.cancel(workflow_id, settings)
        wait_for(lambda: told(storage, workflow_id, "workflow_ended"), 300, "end")

    # Where a worker's place is free late, a gang begins with less, and grows; each takes what there is.
    assert all(event.data["workers"] == event.data["room"] for event in told(storage, workflow_id, "gang"))
    interruptions = told(storage, workflow_id, "stage_interrupted")
    assert interruptions[0].data["reason"] == "resized"
    assert [event.data["reason"] for event in interruptions].count("terminated") == 1
    assert {event.data["reason"]: describe(event) for event in interruptions} == {
        "resized": "pretrain: there is room for more workers: going on with them",
        "terminated": "pretrain: saved a checkpoint, since it was sent SIGTERM; going on",
    }
    # Each attempt saved at its last update, and the next one went on with the very next one.
    head = read_head(storage, folder)[0]
    attempts = list(range(1, len(gangs(storage, workflow_id)) + 1))
    assert [segment.attempt for segment in head.history] == attempts
    for segment in head.history:
        steps = steps_logged(storage, folder, segment.attempt)
        assert (steps[0], steps[-1]) == (segment.start + 1, segment.end)
