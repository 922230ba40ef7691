"""`cancel --now`: the work ends at once, without a checkpoint, also where its cluster does not answer.

The leases are taken away in storage first. So from this moment nothing that the driver or its workers still do can
become visible, whether or not the cluster can be told to end them: they find out by themselves, at the next renewal.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from cluster import jobs
from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.api import newest_driver
from pipeline.head import HeadDocument, read_head, seize
from pipeline.record import EventLog, listed, mark
from pipeline.settings import Settings
from pipeline.status import StatusReader, match_id

MESSAGE = "cancelled at once; `resume` goes on from the last committed checkpoint"
LOST = "cancelled; its driver was lost: `resume` goes on from the last committed checkpoint"


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """What became of a workflow that was to end at once."""

    id: str
    jobs: tuple[str, ...]
    """Ray jobs that were told to end."""
    problem: str
    """Why the cluster was not told; empty where it was, or where there was nothing to tell."""


def cancel_now(workflow_id: str | None, settings: Settings) -> Cancelled:
    """End a workflow at once: its state is `stopped` for everybody, and `resume` goes on from the last checkpoint.

    Raises UserError where nothing runs.
    """
    storage = settings.storage()
    found = match_id(storage, list(listed(storage)), workflow_id)
    reader = StatusReader(storage, found, [])
    reader.update()
    _check_runs(storage, found, reader.status.state)
    own = f"cancel/{socket.gethostname()}/{os.getpid()}"
    before = read_head(storage, f"workflows/{found}")
    head = seize(storage, f"workflows/{found}", own)
    if head.owner != own and reader.status.state != "submitted":
        raise UserError(f"{found} has just ended ({head.state}): there is nothing to cancel")
    stages = _end_stages(storage, found, reader, own)
    _tell(storage, found, head, stages, MESSAGE if before is not None else "cancelled before a driver began")
    told, problem = _stop_jobs(found, newest_driver(storage, found), settings)
    return Cancelled(id=found, jobs=told, problem=problem)


def end_lost(storage: Storage, workflow_id: str) -> bool:
    """End a workflow that was cancelled, and whose driver is lost: nobody is there to save a checkpoint first.

    Returns whether it was this call that did.
    """
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    own = f"cancel/{socket.gethostname()}/{os.getpid()}"
    head = seize(storage, f"workflows/{workflow_id}", own)
    ours = head.owner == own or reader.status.state == "submitted"
    if ours:
        _tell(storage, workflow_id, head, _end_stages(storage, workflow_id, reader, own), LOST)
    return ours


def _check_runs(storage: Storage, workflow_id: str, state: str) -> None:
    head = read_head(storage, f"workflows/{workflow_id}")
    running = head is not None and head[0].state == "running"
    if not running and state not in ("submitted", "running"):
        raise UserError(f"{workflow_id} does not run ({state}): there is nothing to cancel")


def _end_stages(storage: Storage, workflow_id: str, reader: StatusReader, own: str) -> list[str]:
    """Take the leases of the stages that this workflow's drivers hold; returns the stages' names."""
    ended = []
    for name, stage in reader.status.stages.items():
        head = read_head(storage, stage.folder) if stage.folder is not None else None
        if stage.folder is None or head is None or head[0].state != "running":
            continue
        # Another workflow's driver may have it: that one goes on.
        if head[0].owner.startswith(f"{workflow_id}/"):
            seize(storage, stage.folder, own)
            ended.append(name)
    return ended


def _tell(storage: Storage, workflow_id: str, head: HeadDocument, stages: list[str], message: str) -> None:
    """As the driver would have told its end; at the higher epoch, so that what it still says itself does not count."""
    events = EventLog(storage, workflow_id)
    events.epoch = head.epoch
    for name in stages:
        events.append("stage_stopped", name, message=message)
    events.append(
        "workflow_ended",
        state="stopped",
        driver=newest_driver(storage, workflow_id),
        message=message,
    )
    mark(storage, workflow_id, "stopped", head.epoch)


def _stop_jobs(workflow_id: str, newest: int | None, settings: Settings) -> tuple[tuple[str, ...], str]:
    """Tell the cluster to end the drivers that it runs, those that wait for the lease among them."""
    told: list[str] = []
    if settings.jobs is None or newest is None:
        return (), ""
    try:
        for number in range(newest, -1, -1):
            job = f"{workflow_id}-d{number}"
            if jobs.status(settings.jobs, job) in ("PENDING", "RUNNING"):
                jobs.stop(settings.jobs, job)
                told.append(job)
    except (UserError, RuntimeError, OSError) as error:
        return tuple(told), str(error)
    return tuple(told), ""
