"""Live progress of a workflow: a table that moves in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live

from cluster.storage import Storage
from pipeline.display import describe
from pipeline.display_live import fitting, html, moving, view
from pipeline.progress import Progress
from pipeline.record import Event
from pipeline.status import StatusReader, WorkflowStatus

POLL_SECONDS = 0.5
PLAIN_SECONDS = 60.0
"""Between two lines of a stage that gets on, where nothing can move."""


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
    """A table that moves, no higher than the terminal, above which prints go on."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, events: Sequence[Event], status: WorkflowStatus, progress: Progress) -> None:
        self._live.update(fitting(status, progress, self._live.console))


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
            line = moving(stage, progress) if stage.outcome == "running" else ""
            # The first one is due when a stage has been at work for a while.
            told, moment = self._told.setdefault(f"{stage.name} {stage.attempt}", ("", now))
            if line and line != told and now - moment >= PLAIN_SECONDS:
                self._told[f"{stage.name} {stage.attempt}"] = (line, now)
                self._print(time.time(), f"{stage.name}: {line}")

    def _print(self, seconds: float, line: str) -> None:
        if line:
            moment = time.strftime("%H:%M:%S", time.localtime(seconds))
            self._console.print(f"{moment}  {line}", highlight=False, markup=False, soft_wrap=True)
