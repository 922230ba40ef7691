"""MLflow, from the driver alone.

A workflow is a run, each stage a child of it, each attempt a grandchild (`shown_runs.py`). Calls are queued and
made by a thread: a slow or absent server costs the work nothing. What could not be sent is sent by the next driver
of the workflow, from the files.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.mlflow_errors import cause, denied, refused, tell_refused
from pipeline.mlflow_runs import Runs
from pipeline.mlflow_settings import client_settings
from pipeline.register_at_end import RegisterAtEnd
from pipeline.reporting import page_or_word
from pipeline.retries import times_anew
from pipeline.reuse import Finished
from pipeline.shown_plan import ShownPlan
from pipeline.shown_runs import ANEW, WORKFLOW, ShownRuns
from pipeline.tracking_told import away, given_up, lacking
from stages.config import StageConfig

POLL_SECONDS = 2.0
FILES_PAUSE_SECONDS = 30.0
"""Until files are tried again whose store did not take one."""
REPORT = "report.html"
PATIENCE_SECONDS, PATIENCE_ON_A_CLUSTER_SECONDS = 15.0, 3600.0
"""How long the end of a workflow waits while the server takes nothing. Where somebody waits for the process, not long;
on a cluster nobody does: the workflow's end is told before, and its workers are free."""


class MlflowTracker:
    """Feeds one workflow's runs. Use as a context manager; no method blocks or raises."""

    def __init__(
        self,
        uri: str,
        storage: Storage,
        workflow_id: str,
        workflow: Workflow,
        *,
        owner: str = "",
        on_a_cluster: bool = False,
    ) -> None:
        """`owner` is who holds the workflow, and so what a plan of it leaves out of account."""
        self._uri, self._storage, self._id = uri, storage, workflow_id
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._runs = Runs(uri, workflow_id, self._batch_sent, storage.url)
        self._shown = ShownRuns(self._runs, storage, workflow_id, workflow, owner)
        self._page: str | None = None
        """The report, once it has been made; empty where it cannot be."""
        self._names: dict[str, str] = {}
        self._wanted = {WORKFLOW}
        """Keys of the runs that there should be."""
        self._at_end = RegisterAtEnd(storage, workflow_id, workflow)
        self._at_end.names = self._names
        self._busy_until = self._files_again = 0.0
        self._files_problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._plan = ShownPlan(storage, workflow, owner, self._plan_made)
        self._giving_up = threading.Event()
        self._patience = PATIENCE_ON_A_CLUSTER_SECONDS if on_a_cluster else PATIENCE_SECONDS
        self._moved = time.monotonic()
        self._client_settings = client_settings()
        self.problem: str | None = None
        """What keeps MLflow from being fed, if anything does."""

    def __enter__(self) -> MlflowTracker:
        self._client_settings.__enter__()
        self._thread.start()
        self._calls.put(self._shown.start_workflow)
        self._plan.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        hurry = threading.Event()
        if kind is not None:
            # Others may wait for the room of what this process has started.
            hurry.set()
        try:
            self._close(hurry)
        finally:
            self._client_settings.__exit__(None, None, None)

    def _close(self, hurry: threading.Event) -> None:
        """Wait until all is sent, or the server takes nothing for too long: shortly, once `hurry` is set."""
        if self._giving_up.is_set() or not self._thread.is_alive():
            return
        self._plan.wait(hurry)
        self._calls.put(None)
        self._moved = time.monotonic()
        while self._thread.is_alive():
            until = self._moved + (PATIENCE_SECONDS if hurry.is_set() else self._patience)
            if time.monotonic() >= (until if hurry.is_set() else max(until, self._busy_until)):
                break
            self._thread.join(0.1)
        if self._thread.is_alive():
            self._giving_up.set()
            lost = lacking(self._runs, self._wanted)
            print(given_up(self._uri, self._id, self.problem or "no answer", lost), flush=True)

    def workflow_ended(self, state: str, hurry: threading.Event | None = None) -> None:
        """Show the end, and wait until everything is shown; see `_close`."""
        self._calls.put(lambda: self._shown.end_workflow(state))
        self._calls.put(self._log_report)
        if state == "done" and self._at_end.wanted:
            # Whatever becomes of it, the runs have ended before.
            self._calls.put(self._runs.send)
            self._calls.put(self._register)
        self._close(hurry or threading.Event())

    def stage_started(self, stage: str, config: StageConfig, folder: str, inputs: dict[str, Finished]) -> None:
        name = self._name(stage, folder)
        self._wanted.add(name)
        self._calls.put(lambda: self._shown.start_stage(name, config, folder, dict(inputs)))

    def attempt_started(self, stage: str, folder: str, attempt: int, placement: dict[str, Any]) -> None:
        name = self._name(stage, folder)
        self._wanted.add(f"{name}/{attempt}")
        self._calls.put(lambda: self._shown.start_attempt(name, attempt, placement))

    def attempt_ended(self, stage: str, attempt: int, outcome: str) -> None:
        name = self._names.get(stage, stage)
        self._calls.put(lambda: self._shown.end_attempt(name, attempt, outcome))

    def went_back(self, stage: str, each: list[str]) -> None:
        """All times that a stage's training went back so far, in words."""
        name, told = self._names.get(stage, stage), {"patchline.went_back": "\n".join(each)}
        self._calls.put(lambda: self._runs.log_tags(self._runs[name], told))

    def stage_ended(self, stage: str, outcome: str, finished: Finished | None) -> None:
        name = self._names.get(stage, stage) if finished is None else self._name(stage, finished.folder)
        if finished is not None:
            self._at_end.done[stage] = finished
        self._calls.put(lambda: self._shown.end_stage(name, outcome, finished))

    def _name(self, stage: str, folder: str) -> str:
        """What a stage's runs are called: one that is made anew has other ones, since its curves begin again."""
        self._names[stage] = f"{stage}{ANEW}{times}" if (times := times_anew(folder)) else stage
        return self._names[stage]

    # The thread

    def _run(self) -> None:
        while True:
            if self._calls.empty():
                self._until_taken(self._runs.send)
                self._send_files()
            try:
                call = self._calls.get(timeout=POLL_SECONDS)
            except queue.Empty:
                call = self._shown.send_curves
            if call is None:
                self._until_taken(self._runs.send)
                # Shorter than the end waits: what is missing is told by what knows that it is files alone.
                self._send_files(patience=PATIENCE_SECONDS / 2)
                return
            self._until_taken(call)
            if self._runs.many:
                self._until_taken(self._runs.send)

    def _until_taken(self, call: Callable[[], None]) -> None:
        wait = 0.5
        while not self._giving_up.is_set():
            try:
                call()
                self.problem, self._moved, self._busy_until = None, time.monotonic(), 0.0
                return
            except Exception as error:
                self._busy_until = 0.0
                if refused(error):
                    left = self._after_refusal(error)
                    if left is None:
                        continue
                    if left is error:
                        tell_refused(error)
                        return
                    error = left
                # Whatever the server or the network did, the truth is in storage: try again, calmly.
                if self.problem is None:
                    print(away(error, self._uri, self._storage.url), flush=True)
                if denied(error):
                    # Nobody mends that while the workflow's end waits for it.
                    self._patience = PATIENCE_SECONDS
                self.problem = cause(error)
                self._runs.in_doubt()
                time.sleep(wait)
                wait = min(wait * 2, 10.0)

    def _after_refusal(self, error: Exception) -> Exception | None:
        """What still keeps the server from taking what it has refused: nothing, where our experiment had been deleted
        and is back; that it is not back yet; else the refusal itself."""
        try:
            return None if self._runs.restore() else error
        except Exception as other:
            return other

    def _send_files(self, patience: float = 0.0) -> None:
        """Send files as long as nothing else is to be sent, or for so many seconds.

        A store that fails keeps nothing else. Other drivers send what was not: all of it is in storage.
        """
        until = time.monotonic() + patience
        while self._runs.files and not self._giving_up.is_set():
            now = time.monotonic()
            if not patience and (now < self._files_again or not self._calls.empty()):
                return
            try:
                self._runs.send_file()
                self._files_problem, self._moved = None, time.monotonic()
                continue
            except Exception as error:
                left = self._after_refusal(error) if refused(error) else error
                if left is None:
                    continue
                if left is error and refused(error):
                    tell_refused(error)
                    self._runs.drop_file()
                    continue
                problem = cause(left)
            if self._files_problem is None:
                print(f"MLflow at {self._uri} takes no files; all else is shown ({problem})", flush=True)
            self._files_problem, self._files_again = problem, now + FILES_PAUSE_SECONDS
            if patience and now >= until:
                print(
                    f"{self._runs.files} files are not in MLflow: `patchline resume {self._id}` sends them", flush=True
                )
                return
            time.sleep(min(0.5, patience))

    def _plan_made(self, text: str) -> None:
        self._calls.put(lambda: self._runs.log_text(self._runs[WORKFLOW], text, "plan.txt"))

    def _log_report(self) -> None:
        """The page about the workflow, in place of an earlier end's. The run has ended before."""
        self._runs.send()
        if self._page is None:
            self._moved = time.monotonic()
            self._page = page_or_word(self._storage, self._id)
        if self._page:
            self._runs.log_text(self._runs[WORKFLOW], self._page, REPORT)

    def _register(self) -> None:
        self._at_end(self._runs, self._is_busy)

    def _is_busy(self, seconds: float) -> None:
        """Wait so long for the server's next answer, though nothing is heard of it."""
        self._busy_until = time.monotonic() + seconds

    def _batch_sent(self) -> bool:
        self._moved = time.monotonic()
        return not self._giving_up.is_set()
