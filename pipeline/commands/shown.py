"""What several commands print, and how they find the workflow that is meant."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipeline.commands.base import console
from pipeline.settings import Settings, resolve

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipeline.config import Workflow
    from pipeline.status import WorkflowStatus


def told_silent(seconds: float) -> str:
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
            status.message = told_silent(seconds)
        return self._progress.measure(status)


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
    """How the user calls this command, as it is typed: by its name where the shell finds it, else by its path."""
    own = Path(sys.argv[0])
    found = shutil.which(own.name)
    if found is not None and Path(found).resolve() == own.resolve():
        return own.name
    return shlex.quote(os.path.relpath(own)) if own.name == "patchline" else "patchline"


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


def print_json(document: Any, *, line: bool = False) -> None:
    """A document for a program; `line` where it is one of several, each on a line of its own."""
    text = json.dumps(
        document, indent=None if line else 2, default=lambda value: str(value) if isinstance(value, Path) else value
    )
    console.out(text, highlight=False)
