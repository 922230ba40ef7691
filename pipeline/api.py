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
from pipeline.head import read_head
from pipeline.record import EventLog, listed, mark
from pipeline.settings import Settings
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
    storage.delete(f"workflows/{workflow_id}/CANCEL")
    if foreground:
        return run(workflow, settings, created=workflow_id)
    jobs.check(_jobs_address(settings))
    _submit_driver(storage, workflow_id, settings)
    return workflow_id, "submitted"


def cancel(workflow_id: str | None, settings: Settings) -> str:
    """Ask a workflow to save a checkpoint and stop; returns its id. It can be resumed."""
    storage = settings.storage()
    workflow_id = match_id(storage, list(listed(storage)), workflow_id)
    found = read_head(storage, f"workflows/{workflow_id}")
    if found is not None and found[0].state == "done":
        raise UserError(f"{workflow_id} is done: there is nothing to cancel")
    storage.write(f"workflows/{workflow_id}/CANCEL", b"")
    return workflow_id


def driver_died(storage: Storage, workflow_id: str, settings: Settings) -> str | None:
    """Why the newest driver's job runs no more, or None while it runs or nothing is known of it."""
    number = sum(1 for _ in storage.list(f"workflows/{workflow_id}/drivers/")) - 1
    if settings.jobs is None or number < 0:
        return None
    state = jobs.status(settings.jobs, f"{workflow_id}-d{number}")
    if state in ("PENDING", "RUNNING"):
        return None
    tail = "\n".join(jobs.logs(settings.jobs, f"{workflow_id}-d{number}").splitlines()[-15:])
    return f"its driver has ended ({state})\n{tail}"


def _jobs_address(settings: Settings) -> str:
    if settings.jobs is None:
        raise UserError(
            "no Ray cluster: give --address http://HOST:8265, or start the local stack with `patchline up`, "
            "or run here with `patchline run`"
        )
    if not settings.local and settings.root.startswith("file://"):
        raise UserError(f"root {settings.root} is on this machine alone: give --root s3://BUCKET/PREFIX")
    return settings.jobs


def _submit_driver(storage: Storage, workflow_id: str, settings: Settings) -> None:
    """Start a driver for a stored workflow. Every driver is a job of its own; the lease orders them."""
    number = sum(1 for _ in storage.list(f"workflows/{workflow_id}/drivers/"))
    storage.write(f"workflows/{workflow_id}/drivers/{number:04d}", b"")
    # The local stack runs on this very installation; another cluster is sent the three packages.
    python = sys.executable if settings.local else "python"
    modules = None if settings.local else [Path(__file__).parents[1] / name for name in PACKAGES]
    command = [python, "-m", "pipeline.driver", "--root", settings.root, "--mlflow", settings.mlflow, workflow_id]
    jobs.submit(
        _jobs_address(settings),
        shlex.join(command),
        submission_id=f"{workflow_id}-d{number}",
        environment=settings.passed_on(),
        modules=modules,
        metadata={"patchline_workflow": workflow_id},
    )
    EventLog(storage, workflow_id).append("driver_submitted", number=number)
