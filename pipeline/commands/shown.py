"""What several commands print, and how they find the workflow that is meant."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.errors import UserError
from pipeline.commands.base import console
from pipeline.settings import Settings, resolve

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipeline.api import DriverWatch
    from pipeline.config import Workflow
    from pipeline.status import WorkflowStatus


def follow_to_end(workflow_id: str, settings: Settings, *, here: bool = True, as_json: bool = False) -> int:
    """Show a submitted workflow until its newest driver ends; returns the exit code. Ctrl-C detaches.

    `here` says that it was submitted to the cluster of these settings. `as_json`: see `follow_as_json`.
    """
    if as_json:
        return follow_as_json(workflow_id, settings)
    from pipeline.api import DriverWatch
    from pipeline.driver import newest_driver, read_workflow
    from pipeline.live import follow

    storage = settings.storage()
    stages = list(read_workflow(storage, workflow_id).stages)
    try:
        found = follow(
            storage,
            workflow_id,
            stages,
            console,
            died=_Life(DriverWatch(storage, workflow_id, settings, here=here), storage, workflow_id).ended,
            driver=newest_driver(storage, workflow_id),
        )
    except KeyboardInterrupt:
        print_left(workflow_id)
        return 130
    print_status(workflow_id, settings, reason=found.message)
    if found.state != "done":
        console.print(f"`{program()} resume {workflow_id}` continues it", markup=False)
    return 0 if found.state == "done" else 1


def run_here(workflow: Workflow, settings: Settings, *, as_json: bool = False) -> tuple[str, str]:
    """Run a workflow in this process, and show how far it is; returns its id and its state."""
    from pipeline.api import run
    from pipeline.driver import create

    workflow_id = create(settings.storage(), workflow)
    with told_beside(as_json), nullcontext() if as_json else shown_here(workflow_id, settings):
        return run(workflow, settings, created=workflow_id)


def shown_here(workflow_id: str, settings: Settings) -> AbstractContextManager[None]:
    """Within it, a workflow that this process runs is shown."""
    from pipeline.driver import read_workflow
    from pipeline.live import shown_beside

    storage = settings.storage()
    return shown_beside(storage, workflow_id, list(read_workflow(storage, workflow_id).stages))


def print_left(workflow_id: str) -> None:
    """What becomes of a workflow whose follower has gone, and how to come back to it."""
    console.print(f"\n{workflow_id} goes on without this terminal", soft_wrap=True)
    for command, meaning in (("status -f", "shows it again"), ("logs -f", "its log"), ("cancel", "stops it")):
        console.print(f"  {program()} {command} {workflow_id}", f"[dim]{meaning}[/dim]", soft_wrap=True)


class _Life:
    """Whether a followed driver still runs, as its cluster or else storage tells."""

    def __init__(self, watch: DriverWatch, storage: Storage, workflow_id: str) -> None:
        self._watch, self._storage, self._id = watch, storage, workflow_id
        self._tag, self._since = "", time.monotonic()

    def ended(self) -> str | None:
        """Why it runs no more, or None. Where its cluster does not answer, the driver's own silence counts."""
        from pipeline.status import holder

        try:
            return self._watch.died() or self._silent()
        except UserError as error:
            if holder(self._storage, self._id) is None:
                raise
            return self._silent(f"; {error}")

    def _silent(self, why: str = "") -> str | None:
        """By this process's own clock alone, since it ends something: the driver's may be an hour off."""
        from pipeline.head import read_head

        found = read_head(self._storage, f"workflows/{self._id}")
        if found is None or found[1] != self._tag:
            self._tag, self._since = found[1] if found is not None else "", time.monotonic()
        seconds = time.monotonic() - self._since
        if found is None or found[0].state != "running" or seconds <= 2 * found[0].ttl_seconds:
            return None
        return _told_silent(seconds) + why


def _told_silent(seconds: float) -> str:
    from pipeline.words import duration

    return f"its driver has been silent for {duration(seconds)}: `{program()} resume` continues it"


def print_status(workflow_id: str, settings: Settings, *, as_json: bool = False, reason: str = "") -> None:
    """`reason` is why the driver has ended, where that is known already."""
    from pipeline.display import fewshot_table, status_table, trouble_lines
    from pipeline.display_models import TABLES
    from pipeline.status import stage_tables

    storage = settings.storage()
    status = read_status(workflow_id, settings)
    if reason:
        status.state, status.message = "failed", reason
    tables = stage_tables(storage, status)
    if as_json:
        print_json({**asdict(status), "tables": tables})
        return
    console.print(status_table(status))
    if "\n" in status.message:
        console.print(status.message, markup=False, soft_wrap=True)
    for line in trouble_lines(status):
        console.print(line, soft_wrap=True)
    drawn = {**TABLES, "fewshot": fewshot_table}
    for name, found in tables.items():
        for kind, rows in found.items():
            if kind in drawn and rows:
                console.print(f"[bold]{name}[/bold]")
                console.print(drawn[kind](rows))


def read_status(workflow_id: str, settings: Settings) -> WorkflowStatus:
    """What is known of a workflow now: see `Look`."""
    return Look(workflow_id, settings).now()


class Look:
    """What is known of a workflow: from its events, its cluster where that answers, and its training stages' points."""

    def __init__(self, workflow_id: str, settings: Settings) -> None:
        from pipeline.driver import read_workflow
        from pipeline.progress import Progress
        from pipeline.status import StatusReader

        self._settings, self._storage = settings, settings.storage()
        stages = list(read_workflow(self._storage, workflow_id).stages)
        self._reader = StatusReader(self._storage, workflow_id, stages)
        self._progress = Progress(self._storage)

    def now(self) -> WorkflowStatus:
        """The status at this moment. Reads what is new alone."""
        from pipeline.api import ask_cluster
        from pipeline.status import silence

        self._reader.update()
        ask_cluster(self._reader, self._storage, self._settings)
        status = self._reader.status
        if status.state == "running" and (seconds := silence(self._storage, status.id)) is not None:
            status.message = _told_silent(seconds)
        return self._progress.measure(status)


def follow_as_json(workflow_id: str, settings: Settings) -> int:
    """Print a workflow's status as one line of JSON whenever it has changed, until it ends; returns the exit code."""
    from pipeline.api import DriverWatch

    storage, told = settings.storage(), ""
    look, life = Look(workflow_id, settings), _Life(DriverWatch(storage, workflow_id, settings), storage, workflow_id)
    while True:
        status = look.now()
        line = json.dumps(asdict(status))
        if line != told:
            told = line
            console.out(line, highlight=False)
        if status.state not in ("submitted", "running") or life.ended() is not None:
            return 0 if status.state == "done" else 1
        time.sleep(1.0)


def match(workflow_id: str | None, settings: Settings) -> str:
    from pipeline.status import find

    return find(settings.storage(), workflow_id)


def of_workflow(workflow_id: str | None, root: str | None) -> tuple[Storage, str, Workflow]:
    """A root's storage, the id of the workflow that is meant, and the workflow."""
    from pipeline.driver import read_workflow

    settings = resolve(root=root)
    storage, found = settings.storage(), match(workflow_id, settings)
    return storage, found, read_workflow(storage, found)


def program() -> str:
    """How the user calls this command: by its name where the shell finds it, else by its path."""
    own = Path(sys.argv[0])
    found = shutil.which(own.name)
    if found is not None and Path(found).resolve() == own.resolve():
        return own.name
    return os.path.relpath(own) if own.name == "patchline" else "patchline"


def print_addresses(stack: Any) -> None:
    from pipeline.mlflow_page import address

    console.print(f"  MLflow  {address(stack.mlflow_url)}", soft_wrap=True)
    console.print(f"  Ray     {stack.jobs_address}  asks for the token in {stack.token_path}", soft_wrap=True)
    console.print(f"  S3      {stack.s3_endpoint}  root {stack.root}")


def print_note(text: str) -> None:
    """Something to be told beside the answer: on stderr, so that the answer can be read by a program."""
    if text:
        Console(stderr=True, highlight=False).print(text, style="yellow", soft_wrap=True, markup=False)


def told_beside(as_json: bool) -> AbstractContextManager[object]:
    """While a workflow runs in this process: what it tells goes to stderr where the answer is for a program."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def print_json(document: Any) -> None:
    console.out(json.dumps(document, indent=2, default=lambda value: str(value) if isinstance(value, Path) else value))
