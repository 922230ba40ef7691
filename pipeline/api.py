"""The verbs, in Python: run, submit, resume, cancel. The command line is a thin layer over these."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from cluster import jobs
from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.driver import create, drive, read_workflow
from pipeline.keeper import request_cancel
from pipeline.record import EventLog, listed, mark
from pipeline.settings import Settings, check_reachable
from pipeline.status import match_id

PACKAGES = ("pipeline", "stages", "cluster")


def run(workflow: Workflow, settings: Settings, *, created: str | None = None) -> tuple[str, str]:
    """Run a workflow in this process, without a Ray cluster; returns its id and its state."""
    storage = settings.storage()
    workflow_id = created or create(storage, workflow)
    state = drive(storage, workflow_id, mlflow=settings.mlflow, ray=False)
    return workflow_id, state


def submit(workflow: Workflow, settings: Settings) -> str:
    """Send a workflow to a Ray cluster as a job; returns its id. Raises UserError where no cluster answers."""
    storage = settings.storage()
    jobs.check(_jobs_address(settings))
    workflow_id = create(storage, workflow)
    mark(storage, workflow_id, "submitted")
    _submit_driver(storage, workflow_id, settings)
    return workflow_id


def resume(workflow_id: str | None, settings: Settings, *, foreground: bool = False) -> tuple[str, str]:
    """Go on with a failed, killed or cancelled workflow from its records and its last committed checkpoint.

    Returns its id and its state; the state is `submitted` where a Ray cluster runs it.
    """
    storage = settings.storage()
    workflow_id = match_id(storage, list(listed(storage)), workflow_id)
    workflow = read_workflow(storage, workflow_id)
    if foreground:
        return run(workflow, settings, created=workflow_id)
    jobs.check(_jobs_address(settings))
    _submit_driver(storage, workflow_id, settings)
    return workflow_id, "submitted"


def cancel(workflow_id: str | None, settings: Settings) -> str:
    """Ask a workflow to save a checkpoint and stop; returns its id. It can be resumed."""
    storage = settings.storage()
    workflow_id = match_id(storage, list(listed(storage)), workflow_id)
    request_cancel(storage, workflow_id)
    return workflow_id


def driver_died(storage: Storage, workflow_id: str, settings: Settings) -> str | None:
    """Why the newest driver's job runs no more, or None while it runs or nothing is known of it."""
    number = newest_driver(storage, workflow_id)
    if settings.jobs is None or number is None:
        return None
    state = jobs.status(settings.jobs, f"{workflow_id}-d{number}")
    if state in ("PENDING", "RUNNING"):
        return None
    tail = "\n".join(jobs.logs(settings.jobs, f"{workflow_id}-d{number}").splitlines()[-15:])
    return f"its driver has ended ({state})\n{tail}"


def newest_driver(storage: Storage, workflow_id: str) -> int | None:
    """Number of the driver that was submitted last, or None where none was."""
    count = sum(1 for _ in storage.list(f"workflows/{workflow_id}/drivers/"))
    return count - 1 if count else None


def _jobs_address(settings: Settings) -> str:
    if settings.jobs is None:
        raise UserError(
            "no Ray cluster: give --address http://HOST:8265, or start the local stack with `patchline up`, "
            "or run here with `patchline run`"
        )
    check_reachable(settings)
    return settings.jobs


def _submit_driver(storage: Storage, workflow_id: str, settings: Settings) -> None:
    """Start a driver for a stored workflow. Every driver is a job of its own; the lease orders them."""
    newest = newest_driver(storage, workflow_id)
    number = 0 if newest is None else newest + 1
    storage.write(f"workflows/{workflow_id}/drivers/{number:04d}", b"")
    # The local stack runs on this very installation; another cluster is sent the three packages.
    python = sys.executable if settings.local else "python"
    modules = None if settings.local else [Path(__file__).parents[1] / name for name in PACKAGES]
    places = ["--root", settings.root, "--mlflow", settings.mlflow]
    command = [python, "-m", "pipeline.driver", *places, "--number", str(number), workflow_id]
    # Before the job, so that its own events come after this one.
    EventLog(storage, workflow_id).append("driver_submitted", number=number)
    jobs.submit(
        _jobs_address(settings),
        shlex.join(command),
        submission_id=f"{workflow_id}-d{number}",
        environment=settings.passed_on(),
        modules=modules,
        metadata={"patchline_workflow": workflow_id},
    )
