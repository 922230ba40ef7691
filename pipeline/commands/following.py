"""Commands that show a workflow while it runs, on a cluster or in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn

import typer

from cluster.errors import UserError
from pipeline.commands.base import console
from pipeline.commands.leaving import INTERRUPTED, command, print_left
from pipeline.commands.shown import Look, print_note, print_status, told_beside, told_silent
from pipeline.settings import Settings

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipeline.api import DriverWatch
    from pipeline.config import Workflow


def follow_to_end(workflow_id: str, settings: Settings, *, here: bool = True, as_json: bool = False) -> int:
    """Show a submitted workflow until its newest driver ends; returns the exit code. Ctrl-C detaches.

    `here` says that it was submitted to the cluster of these settings. `as_json`: see `follow_as_json`.
    """
    try:
        return follow_as_json(workflow_id, settings) if as_json else _follow(workflow_id, settings, here=here)
    except KeyboardInterrupt:
        print_left(workflow_id, settings, beside=as_json)
        return INTERRUPTED


def _follow(workflow_id: str, settings: Settings, *, here: bool) -> int:
    from pipeline.api import DriverWatch
    from pipeline.driver import newest_driver, read_workflow
    from pipeline.live import follow

    storage = settings.storage()
    found = follow(
        storage,
        workflow_id,
        list(read_workflow(storage, workflow_id).stages),
        console,
        died=Life(DriverWatch(storage, workflow_id, settings, here=here), storage, workflow_id).ended,
        driver=newest_driver(storage, workflow_id),
    )
    print_status(workflow_id, settings, reason=found.message)
    if found.state != "done":
        _print_again(workflow_id, settings)
    return 0 if found.state == "done" else 1


def run_here(workflow: Workflow, settings: Settings, *, as_json: bool = False) -> tuple[str, str]:
    """Run a workflow in this process, and show how far it is; returns its id and its state."""
    from pipeline.api import run
    from pipeline.driver import create

    workflow_id = create(settings.storage(), workflow)
    with shown_here(workflow_id, settings, as_json=as_json):
        return run(workflow, settings, created=workflow_id)


@contextmanager
def shown_here(workflow_id: str, settings: Settings, *, as_json: bool = False) -> Iterator[None]:
    """Within it, a workflow that this process runs is shown. A second Ctrl-C ends it at once, and says what to do."""
    from pipeline.driver import read_workflow
    from pipeline.live import shown_beside

    storage = settings.storage()
    stages = list(read_workflow(storage, workflow_id).stages)
    try:
        with told_beside(as_json), nullcontext() if as_json else shown_beside(storage, workflow_id, stages):
            yield
    except KeyboardInterrupt:
        _print_again(workflow_id, settings, "--foreground", beside=as_json)
        raise typer.Exit(INTERRUPTED) from None


def end_here(workflow_id: str, state: str, settings: Settings, *, as_json: bool = False) -> NoReturn:
    """End a command that has run a workflow in its own process: what came of it, how it goes on, the exit code."""
    print_status(workflow_id, settings, as_json=as_json)
    if state != "done":
        _print_again(workflow_id, settings, "--foreground", beside=as_json)
    raise typer.Exit(0 if state == "done" else 1)


def _print_again(workflow_id: str, settings: Settings, *options: str, beside: bool = False) -> None:
    told = f"`{command('resume', workflow_id, settings, *options)}` continues it"
    if beside:
        print_note(told)
    else:
        console.print(told, markup=False, soft_wrap=True)


class Life:
    """Whether a followed driver still runs, as its cluster or else storage tells."""

    def __init__(self, watch: DriverWatch, storage: Storage, workflow_id: str) -> None:
        from pipeline.record import EventLog

        self._watch, self._storage, self._id = watch, storage, workflow_id
        self._tag, self._since = "", time.monotonic()
        self._events, self._begun = EventLog(storage, workflow_id), set[int]()

    def ended(self) -> str | None:
        """Why it runs no more, or None. Whatever its cluster says, one that has begun and has not renewed its lease for
        twice its length counts as ended: another driver may take the workflow over."""
        from pipeline.status import holder

        try:
            return self._watch.died() or (None if self._is_to_begin() else self._silent())
        except UserError as error:
            if holder(self._storage, self._id) is None:
                raise
            return self._silent(f"; {error}")

    def _is_to_begin(self) -> bool:
        """Whether the cluster has a driver which does not hold the workflow yet: it may have to wait until the lease of
        the one before is over, whose silence says nothing of it. As long as the cluster has it, it is waited for."""
        if self._watch.at_work is None:
            return False
        for event in self._events.new_events():
            number = event.data.get("driver")
            # One that runs in a user's own process has none.
            if event.type == "workflow_started" and isinstance(number, int):
                self._begun.add(number)
        if self._watch.at_work in self._begun:
            return False
        self._since = time.monotonic()
        return True

    def _silent(self, why: str = "") -> str | None:
        """By this process's own clock alone, since it ends something: the driver's may be an hour off."""
        from pipeline.head import read_head

        found = read_head(self._storage, f"workflows/{self._id}")
        if found is None or found[1] != self._tag:
            self._tag, self._since = found[1] if found is not None else "", time.monotonic()
        seconds = time.monotonic() - self._since
        if found is None or found[0].state != "running" or seconds <= 2 * found[0].ttl_seconds:
            return None
        return told_silent(seconds) + why


def follow_as_json(workflow_id: str, settings: Settings) -> int:
    """Print a workflow's status as one line of JSON whenever it has changed, until it ends; returns the exit code."""
    from pipeline.api import DriverWatch

    storage, told = settings.storage(), ""
    look, life = Look(workflow_id, settings), Life(DriverWatch(storage, workflow_id, settings), storage, workflow_id)
    while True:
        status = look.now()
        line = json.dumps(asdict(status))
        if line != told:
            told = line
            console.out(line, highlight=False)
        if status.state not in ("submitted", "running") or life.ended() is not None:
            return 0 if status.state == "done" else 1
        time.sleep(1.0)
