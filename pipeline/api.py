"""The verbs, in Python: run, submit, resume, follow, cancel. The command line is a thin layer over these.

`again.py`, `cancelling.py`, `outputs.py`, `register.py`, `removal.py`, `collection.py`, `reporting.py` and
`verification.py` have the others.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import jobs
from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.driver import create, drive, end_failed, newest_driver, read_workflow
from pipeline.driver_numbers import take_next, take_number
from pipeline.ids import drivers_before
from pipeline.keeper import request_cancel
from pipeline.kinds import own_code
from pipeline.record import EventLog, listed, mark
from pipeline.reporting import compare_reports as compare_reports
from pipeline.reporting import report as report
from pipeline.settings import Settings, check_reachable
from pipeline.status import StatusReader, WorkflowStatus, in_doubt, match_id, settle, silence, states
from pipeline.versions import check_versions

PACKAGES = ("pipeline", "stages", "cluster")
PATIENCE_SECONDS = 60.0
"""How long a cluster that does not answer is asked again."""
SENDING_SECONDS = 30.0
"""How long it may take from a driver's number until the cluster knows its job."""
ANY: Any = object()
"""Whatever drivers there are."""


def run(workflow: Workflow, settings: Settings, *, created: str | None = None) -> tuple[str, str]:
    """Run a workflow in this process, without a Ray cluster; returns its id and its state."""
    storage = settings.storage()
    workflow_id = created or create(storage, workflow)
    state = drive(storage, workflow_id, mlflow=settings.mlflow, ray=False)
    return workflow_id, state


def submit(workflow: Workflow, settings: Settings, *, workflow_id: str | None = None, supervised: bool = True) -> str:
    """Send a workflow to a Ray cluster as a job; returns its id. See `submit_once`."""
    return submit_once(workflow, settings, workflow_id=workflow_id, supervised=supervised).id


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What became of a submission."""

    id: str
    state: str
    """In which the workflow was found: `new`, or one of a workflow's states."""
    driver: int | None
    """Number of the driver that was submitted; None where none was, since the workflow is done or under way."""


def submit_once(
    workflow: Workflow, settings: Settings, *, workflow_id: str | None = None, supervised: bool = True
) -> Submitted:
    """Send a workflow to a Ray cluster, once for each id: where it runs or is done under this id, nothing is sent.

    Where it has failed, was stopped or is silent it goes on, as `resume` does. Where it is not `supervised`, whoever
    submits it goes on with it when its driver is lost, and no supervisor does. Raises UserError where no cluster
    answers, and where the id is another workflow's.
    """
    storage = settings.storage()
    jobs_address(settings)
    check_versions(settings)
    # Before it is stored: what cannot be sent is refused as a whole.
    own_code(workflow.stages.values())
    found = create(storage, workflow, workflow_id)
    newest = newest_driver(storage, found)
    new = newest is None or newest < drivers_before(storage, found)
    state = "new" if new else state_of(storage, found, settings)
    if state == "submitted" and newest is not None and _never_sent(found, newest, settings):
        state = "failed"
    if state in ("submitted", "running", "done"):
        return Submitted(id=found, state=state, driver=None)
    # Whoever submits the same id in this very moment takes the same number, and one of the two gets it.
    number = submit_driver(storage, found, settings, after=newest, supervised=supervised)
    return Submitted(id=found, state=state if number is not None else "submitted", driver=number)


def _never_sent(workflow_id: str, number: int, settings: Settings) -> bool:
    """Whether the cluster has not come to know a driver that somebody took a number for, and was lost before sending.

    Waits SENDING_SECONDS for it. Asked of another cluster than the driver was meant for, the answer is wrong, and a
    second driver waits for the lease of the first.
    """
    deadline = time.monotonic() + SENDING_SECONDS
    while jobs.status(jobs_address(settings), f"{workflow_id}-d{number}") == "GONE":
        if time.monotonic() > deadline:
            return True
        time.sleep(1.0)
    return False


def resume(workflow_id: str | None, settings: Settings, *, foreground: bool = False) -> tuple[str, str]:
    """Go on with a failed, killed or cancelled workflow from its records and its last committed checkpoint.

    Returns its id and its state; the state is `submitted` where a Ray cluster runs it.
    """
    storage = settings.storage()
    workflow_id = match_id(storage, list(listed(storage)), workflow_id)
    workflow = read_workflow(storage, workflow_id)
    workflow.check_imported()
    if foreground:
        return run(workflow, settings, created=workflow_id)
    jobs_address(settings)
    check_versions(settings)
    submit_driver(storage, workflow_id, settings)
    return workflow_id, "submitted"


def follow(workflow_id: str | None, settings: Settings) -> WorkflowStatus:
    """Show a workflow until its newest driver ends: a table that moves in a terminal or notebook, else lines.

    Returns its status. Interrupting it leaves the workflow to itself, and says how to come back.
    """
    from rich.console import Console

    from pipeline.live import follow as show

    storage = settings.storage()
    found = match_id(storage, list(listed(storage)), workflow_id)
    stages, driver = list(read_workflow(storage, found).stages), newest_driver(storage, found)
    try:
        return show(storage, found, stages, Console(), died=DriverWatch(storage, found, settings).died, driver=driver)
    except KeyboardInterrupt:
        # Whatever would come after it is not to begin as if the workflow had ended.
        print(_left(found, settings), flush=True)
        raise


def _left(workflow_id: str, settings: Settings) -> str:
    places = {"root": settings.root, "mlflow": settings.mlflow, "address": settings.jobs}
    named = ", ".join(f"{name}={value!r}" for name, value in places.items() if value)
    return "\n  ".join(
        (
            f"{workflow_id} goes on without this process",
            "from pipeline import api",
            "from pipeline.settings import resolve",
            f"settings = resolve({named})",
            f"api.follow({workflow_id!r}, settings)  # shows it again",
            f"api.cancel({workflow_id!r}, settings)  # stops it",
        )
    )


def cancel(workflow_id: str | None, settings: Settings) -> str:
    """Ask a workflow to save a checkpoint and stop; returns its id. It can be resumed."""
    storage = settings.storage()
    workflow_id = match_id(storage, list(listed(storage)), workflow_id)
    request_cancel(storage, workflow_id)
    return workflow_id


class DriverWatch:
    """Asks the cluster whether a workflow's newest driver still runs.

    A cluster that does not know the driver says something only where it is the one that took it: it was
    submitted `here`, or no other cluster works in this root.
    """

    def __init__(self, storage: Storage, workflow_id: str, settings: Settings, *, here: bool = False) -> None:
        self._storage, self._id, self._settings = storage, workflow_id, settings
        self._here = here or settings.alone
        self._unanswered: float | None = None
        self.at_work: int | None = None
        """Number of the driver that the cluster runs, or is about to run, as far as it said so when asked last."""

    def died(self) -> str | None:
        """Why the driver runs no more, or None while it runs or nothing is known of it.

        Raises UserError where the cluster has not answered for PATIENCE_SECONDS.
        """
        self.at_work = None
        number = newest_driver(self._storage, self._id)
        if self._settings.jobs is None or number is None:
            return None
        job = f"{self._id}-d{number}"
        try:
            state = jobs.status(self._settings.jobs, job)
            if state in ("PENDING", "RUNNING"):
                self._unanswered, self.at_work = None, number
                return None
            log = "" if state == "GONE" else jobs.logs(self._settings.jobs, job)
        except (UserError, RuntimeError):
            self._unanswered = self._unanswered or time.monotonic()
            if time.monotonic() - self._unanswered > PATIENCE_SECONDS:
                raise
            return None
        if state == "GONE":
            gone = f"its driver has ended: the Ray cluster at {self._settings.jobs} knows it no more"
            return gone if self._here else None
        return "\n".join([f"its driver has ended ({state}); the end of its log:", *log.splitlines()[-15:]])


def ask_cluster(reader: StatusReader, storage: Storage, settings: Settings) -> None:
    """Find out from the cluster what storage leaves open: whether the driver is still to come, or has died."""
    status = reader.status
    settle(storage, status)
    if not in_doubt(storage, status):
        return
    reason = DriverWatch(storage, status.id, settings).died()
    # It may have told its end itself just now.
    reader.update()
    if reason is not None and in_doubt(storage, status):
        status.state, status.message = "failed", reason


def state_of(storage: Storage, workflow_id: str, settings: Settings) -> str:
    """The state of one workflow: submitted, running, done, failed, stopped, or silent where its driver is gone."""
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    ask_cluster(reader, storage, settings)
    if reader.status.state == "running" and silence(storage, workflow_id) is not None:
        return "silent"
    return reader.status.state


def all_states(settings: Settings, *, name: str | None = None, seconds: float | None = None) -> dict[str, str]:
    """The states of workflows, oldest first; `failed` also where a submitted driver has died before its start.

    All of them, or those of this name (see `pipeline.ids.chosen`), or those of the last `seconds`.
    """
    storage = settings.storage()
    found = states(storage, name=name, seconds=seconds)
    waiting = [name for name, state in found.items() if state == "submitted"]
    dead = [name for name in waiting if DriverWatch(storage, name, settings).died() is not None]
    now = listed(storage) if dead else {}
    return {**found, **{name: "failed" for name in dead if now[name] == "submitted"}}


def jobs_address(settings: Settings) -> str:
    """Address of the cluster that the settings name. Raises UserError where there is none, or it cannot do."""
    if settings.jobs is None:
        raise UserError(
            "no Ray cluster: give --address http://HOST:8265, or start the local stack with `patchline up`, "
            "or run here with `patchline run`"
        )
    check_reachable(settings)
    return settings.jobs


def submit_driver(
    storage: Storage,
    workflow_id: str,
    settings: Settings,
    *,
    after: int | None = ANY,
    again: bool = False,
    supervised: bool = True,
) -> int | None:
    """Start a driver for a stored workflow, as a job of its own; returns its number. The lease orders drivers.

    `after` is the newest driver that the caller knows of (None: of none). Where there is another one, somebody else
    was faster: then nothing is started, and None comes back. Where the cluster does not take it, the workflow has
    failed, unless somebody will try `again`. Raises UserError, and starts nothing, where a stage cannot be imported.
    """
    address = jobs_address(settings)
    # Before a number is taken: a driver that cannot be sent is none.
    workflow = read_workflow(storage, workflow_id)
    workflow.check_imported()
    code = own_code(workflow.stages.values())
    if workflow_id not in listed(storage, workflow_id):
        # Before a number is taken: whatever happens then, it can be found by its id.
        mark(storage, workflow_id, "submitted")
    if after is ANY:
        number = take_number(storage, workflow_id, supervised=supervised)
    else:
        number = take_next(storage, workflow_id, after, supervised=supervised)
    if number is None:
        return None
    # The local stack runs on this very installation; another cluster is sent the three packages.
    python = sys.executable if settings.local else "python"
    modules = None if settings.local else [Path(__file__).parents[1] / name for name in PACKAGES]
    places = ["--root", settings.root, "--mlflow", settings.mlflow]
    command = [python, "-m", "pipeline.driver", *places, "--number", str(number), workflow_id]
    # Before the job, so that its own events and marks come after these.
    EventLog(storage, workflow_id).append("driver_submitted", number=number)
    mark(storage, workflow_id, "submitted")
    try:
        jobs.submit(
            address,
            # Without a shell in between, a signal to the job is one to the driver.
            f"exec {shlex.join(command)}",
            submission_id=f"{workflow_id}-d{number}",
            environment=settings.passed_on(),
            modules=modules,
            code=code,
            metadata={"patchline_workflow": workflow_id},
        )
    except Exception as error:
        if not again:
            end_failed(storage, workflow_id, number, str(error))
        raise
    return number
