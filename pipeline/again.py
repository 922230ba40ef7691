"""Going on with many workflows at once, and making a stage anew."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cluster import jobs
from cluster.errors import UserError
from pipeline.api import all_states, jobs_address, newest_driver, resume, state_of, submit_driver
from pipeline.config import Workflow
from pipeline.driver import read_workflow
from pipeline.identity import determining, references
from pipeline.record import EventLog, listed
from pipeline.retries import make_anew
from pipeline.settings import Settings
from pipeline.status import StatusReader, match_id

RESUMABLE = ("failed", "silent", "stopped", "submitted")
DEFAULT = ("failed", "silent")
"""What was stopped was stopped by somebody, who may have had a reason."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A workflow that `resume_all` found."""

    id: str
    state: str
    """In which it was found."""
    submitted: bool
    problem: str = ""


def resume_all(
    settings: Settings,
    *,
    states: Collection[str] = DEFAULT,
    name: str | None = None,
    seconds: float | None = None,
    dry_run: bool = False,
) -> list[Resumed]:
    """Submit a driver for every workflow in one of these states, oldest first; of this name, of the last `seconds`.

    One that is refused keeps none of the others back. A driver that another process submits meanwhile is not followed
    by a second one. Raises UserError for a state that cannot be resumed, and where no cluster answers.
    """
    if unknown := [state for state in states if state not in RESUMABLE]:
        raise UserError(f"--state {unknown[0]}: expected one of {', '.join(RESUMABLE)}")
    storage, drivers = settings.storage(), dict[str, int | None]()
    if not dry_run:
        jobs.check(jobs_address(settings))

    def matching() -> dict[str, str]:
        known = all_states(settings, name=name, seconds=seconds)
        return {workflow_id: state for workflow_id, state in known.items() if state in states}

    found = matching()
    if not dry_run:
        # Before the states are looked at: so a driver that somebody submits after this look is noticed.
        drivers = {workflow_id: newest_driver(storage, workflow_id) for workflow_id in found}
        found = {workflow_id: state for workflow_id, state in matching().items() if workflow_id in drivers}
    items = [Resumed(id=workflow_id, state=state, submitted=False) for workflow_id, state in found.items()]
    return items if dry_run else [_resumed(item, drivers[item.id], settings) for item in items]


def _resumed(item: Resumed, newest: int | None, settings: Settings) -> Resumed:
    storage, problem, number = settings.storage(), "", None
    try:
        number = submit_driver(storage, item.id, settings, after=newest)
        if number is None:
            problem = "another driver has been submitted meanwhile"
    except Exception as error:
        # One that cannot go on says why; the others do go on.
        problem = str(error)
    return Resumed(id=item.id, state=item.state, submitted=number is not None, problem=problem)


@dataclass(frozen=True, kw_only=True)
class Retried:
    """A workflow some of whose stages are made anew."""

    id: str
    state: str
    stages: tuple[str, ...]


def retry(workflow_id: str | None, stage: str, settings: Settings, *, foreground: bool = False) -> Retried:
    """Make a stage that has ended anew, from its beginning, and all that depends on it.

    The attempts, checkpoints and records of before stay where they are, for other workflows; this one uses them no
    more. Raises UserError where there is no such stage, where it has not ended, or where the workflow runs.
    """
    storage = settings.storage()
    found = match_id(storage, list(listed(storage)), workflow_id)
    workflow = read_workflow(storage, found)
    workflow.check_imported()
    names = (stage, *dependents(workflow, stage))
    _check_ended(found, stage, settings)
    if not foreground:
        # Before anything is written: a refused retry changes nothing.
        jobs.check(jobs_address(settings))
    make_anew(storage, found, names)
    EventLog(storage, found).append("stages_retried", stages=list(names))
    _, state = resume(found, settings, foreground=foreground)
    return Retried(id=found, state=state, stages=names)


def dependents(workflow: Workflow, stage: str) -> list[str]:
    """The stages whose results depend on a stage's output, or on that of one that does, in their order.

    Raises UserError.
    """
    if stage not in workflow.stages:
        raise UserError(f"--from {stage}: expected one of the stages: {', '.join(workflow.stages)}")
    found: list[str] = []
    for name in workflow.order():
        config = workflow.stages[name]
        if not {stage, *found}.isdisjoint(determining(config, references(config)).values()):
            found.append(name)
    return found


def _check_ended(workflow_id: str, stage: str, settings: Settings) -> None:
    state = state_of(settings.storage(), workflow_id, settings)
    if state in ("running", "submitted"):
        raise UserError(f"{workflow_id} is {state}: `patchline cancel {workflow_id}` first, or wait for its end")
    reader = StatusReader(settings.storage(), workflow_id, [])
    reader.update()
    outcome = reader.status.stages[stage].outcome if stage in reader.status.stages else "pending"
    if outcome in ("pending", "skipped"):
        raise UserError(f"--from {stage}: it has not run yet: `patchline resume {workflow_id}` runs it")
