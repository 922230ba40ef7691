"""Live progress of a workflow: a table that moves in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.storage import Storage
from pipeline.display import MARKS, attempt, describe, figures, joined
from pipeline.progress import LOSS, Progress
from pipeline.record import Event
from pipeline.status import StageStatus, StatusReader, WorkflowStatus
from pipeline.words import duration, headline

POLL_SECONDS = 0.5
PLAIN_SECONDS = 60.0
"""Between two lines of a stage that gets on, where nothing can move."""
BAR = 24
"""Columns of a bar."""
NOTEBOOK_WIDTH = 110


class Screen(Protocol):
    """Where progress is shown."""

    def show(self, events: Sequence[Event], status: WorkflowStatus, progress: Progress) -> None:
        """Show what has happened since the last call, and how far everything is."""
        ...


def follow(
    storage: Storage,
    workflow_id: str,
    stages: list[str],
    console: Console,
    *,
    died: Callable[[], str | None] = lambda: None,
    driver: int | None = None,
) -> WorkflowStatus:
    """Show a workflow until the driver of this number ends. `died` tells why it runs no more, or None."""
    reader, progress = StatusReader(storage, workflow_id, stages), Progress(storage)
    # One that runs in a user's own process has no number.
    submitted, ended = driver is None, False
    asked = time.monotonic()
    with screen_of(console) as screen:
        while True:
            shown = []
            for event in reader.update():
                submitted = submitted or (event.type == "driver_submitted" and event.data["number"] == driver)
                ended = ended or _ends(event, driver)
                if driver is None and event.type == "workflow_started":
                    ended = False
                shown += [event] if submitted else []
            screen.show(shown, progress.measure(reader.status), progress)
            if ended:
                return reader.status
            if time.monotonic() - asked > 3:
                asked, reason = time.monotonic(), died()
                if reason is not None and not any(_ends(event, driver) for event in reader.update()):
                    reader.status.state, reader.status.message = "failed", reason
                    return reader.status
            time.sleep(POLL_SECONDS)


def _ends(event: Event, driver: int | None) -> bool:
    return event.type == "workflow_ended" and event.data["driver"] == driver


@contextmanager
def shown_beside(storage: Storage, workflow_id: str, stages: list[str]) -> Iterator[None]:
    """Within it, a thread shows a workflow that this process runs itself. What is printed meanwhile stays above it."""
    # What a driver prints goes into its log too; what is shown of it does not.
    console = Console(file=sys.stdout, highlight=False)
    closed = threading.Event()
    reader, progress = StatusReader(storage, workflow_id, stages), Progress(storage)
    # What was there before is not news.
    reader.update()

    def show(screen: Screen) -> None:
        while not closed.wait(POLL_SECONDS):
            _look(reader, progress, screen)

    with screen_of(console) as screen:
        thread = threading.Thread(target=show, args=(screen,), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            closed.set()
            thread.join()
            _look(reader, progress, screen)


def _look(reader: StatusReader, progress: Progress, screen: Screen) -> None:
    try:
        screen.show(reader.update(), progress.measure(reader.status), progress)
    except OSError:
        # Storage that is away is told by the work itself, which waits for it.
        return


@contextmanager
def screen_of(console: Console) -> Iterator[Screen]:
    """The screen that suits a console."""
    if console.is_jupyter:
        yield Notebook()
    elif console.is_terminal:
        # It draws from a thread of its own, and is gone at the end, where a table of results follows.
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield Terminal(live)
    else:
        yield Lines(console)


class Terminal:
    """A table that moves, above which prints go on."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, events: Sequence[Event], status: WorkflowStatus, progress: Progress) -> None:
        self._live.update(view(status, progress))


class Notebook:
    """One output of a notebook's cell, which is replaced."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, events: Sequence[Event], status: WorkflowStatus, progress: Progress) -> None:
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

        found = HTML(html(view(status, progress)))
        if self._handle is None:
            self._handle = display(found, display_id=True)
        else:
            self._handle.update(found)


class Lines:
    """A line for each event, and now and then one of each stage that gets on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, tuple[str, float]] = {}

    def show(self, events: Sequence[Event], status: WorkflowStatus, progress: Progress) -> None:
        for event in events:
            self._print(event.time_ms / 1000, describe(event))
        now = time.monotonic()
        for stage in status.stages.values():
            line = _moving(stage, progress) if stage.outcome == "running" else ""
            # The first one is due when a stage has been at work for a while.
            told, moment = self._told.setdefault(f"{stage.name} {stage.attempt}", ("", now))
            if line and line != told and now - moment >= PLAIN_SECONDS:
                self._told[f"{stage.name} {stage.attempt}"] = (line, now)
                self._print(time.time(), f"{stage.name}: {line}")

    def _print(self, seconds: float, line: str) -> None:
        if line:
            moment = time.strftime("%H:%M:%S", time.localtime(seconds))
            self._console.print(f"{moment}  {line}", highlight=False, markup=False, soft_wrap=True)


def view(status: WorkflowStatus, progress: Progress) -> Group:
    """A line for each stage: its bar or its time, and its figures."""
    table = Table.grid(padding=(0, 2))
    for stage in status.stages.values():
        mark, style = MARKS[stage.outcome]
        table.add_row(Text(mark, style=style), Text(stage.name, style=style), *_cells(stage, progress))
    head = Text.assemble((status.id, "bold"), "  ", (status.state, "cyan"), f"  {status.message}")
    return Group(head, table)


def html(view: RenderableType) -> str:
    """The same for a notebook, in which colours are the page's own but for those of marks and bars."""
    console = Console(record=True, file=io.StringIO(), width=NOTEBOOK_WIDTH, force_jupyter=False)
    console.print(view)
    return console.export_html(
        inline_styles=True, code_format="<pre style='font-family:monospace;line-height:1.35'>{code}</pre>"
    )


def _cells(stage: StageStatus, progress: Progress) -> tuple[RenderableType, ...]:
    if stage.outcome == "running" and stage.started_ms is not None:
        seconds = f"{max(0.0, time.time() - stage.started_ms / 1000):.0f} s"
        if (moving := _moving(stage, progress)) and (length := stage.updates or stage.tasks_total):
            done = stage.update if stage.updates else stage.tasks_done
            return ProgressBar(total=length, completed=done or 0, width=BAR), Text(moving)
        return Text(seconds), Text(joined(stage.tasks, stage.message, attempt(stage)), style="dim")
    if stage.outcome in ("done", "reused") and stage.seconds is not None:
        return Text("reused" if stage.outcome == "reused" else duration(stage.seconds)), Text(headline(stage.metrics))
    return Text(stage.outcome if stage.outcome != "pending" else "", style="dim"), Text(stage.message)


def _moving(stage: StageStatus, progress: Progress) -> str:
    """How far a stage is that runs, with its newest loss; empty where nobody knows."""
    tail = progress.tail(stage)
    if stage.updates and stage.update is not None and tail is not None:
        loss = f"loss {tail.values[LOSS]:.3f}" if LOSS in tail.values else ""
        return joined(figures(stage), loss, attempt(stage))
    return joined(stage.tasks, attempt(stage)) if stage.tasks else ""
