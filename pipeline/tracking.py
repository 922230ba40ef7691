"""MLflow, from the driver alone.

A workflow is a run, each stage a child of it, each attempt a grandchild. Curves come from metric files
in storage: the attempt's run shows them live; the stage's run shows what a committed checkpoint covers,
so that a repeated update leaves no second point. MLflow keys a point by its timestamp among others, and
points keep theirs, so sending one again adds nothing.

Calls are queued and made by a thread: a slow or absent server costs the work nothing. What could not be
sent is sent by the next driver of the workflow, from the files.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.curves import Curves
from pipeline.identity import fields_with_role
from pipeline.mlflow_runs import CHARACTERS, Runs, cause, refused, tell_refused
from pipeline.provenance import environment, plan_text, read_origin
from pipeline.register_at_end import RegisterAtEnd
from pipeline.reporting import page_or_word
from pipeline.retries import times_anew
from pipeline.reuse import Finished
from pipeline.words import duration, headline
from stages.config import StageConfig
from stages.metrics import Point
from stages.pretrain.config import PretrainConfig

HEADLINES = ("images", "exaflops", "test/accuracy", "features/")
"""Beginnings of the figures that a workflow's own run carries."""
ON_THE_WAY = ("fewshot/",)
"""Beginnings of the figures of evaluations during pretraining."""
STATUS = {"done": "FINISHED", "reused": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""What MLflow calls our outcomes."""
ANEW = " anew "
POLL_SECONDS = 2.0
REPORT = "report.html"
NOTE, NOTE_CHARACTERS = "mlflow.note.content", 8000
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
        self._uri, self._storage, self._id, self._workflow, self._owner = uri, storage, workflow_id, workflow, owner
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._runs = Runs(uri, workflow_id, self._batch_sent, storage.url)
        self._curves: dict[str, Curves] = {}
        self._notes: list[str] = []
        self._page: str | None = None
        """The report, once it has been made; empty where it cannot be."""
        self._names: dict[str, str] = {}
        self._at_end = RegisterAtEnd(storage, workflow_id, workflow)
        self._at_end.names = self._names
        self._busy_until = 0.0
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._giving_up = threading.Event()
        self._patience = PATIENCE_ON_A_CLUSTER_SECONDS if on_a_cluster else PATIENCE_SECONDS
        self._moved = time.monotonic()
        self.problem: str | None = None
        """What keeps MLflow from being fed, if anything does."""

    def __enter__(self) -> MlflowTracker:
        self._thread.start()
        self._calls.put(self._start_workflow)
        # Apart: a source of a million images takes a while to list.
        threading.Thread(target=self._make_plan, name="plan", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        hurry = threading.Event()
        if kind is not None:
            # Others may wait for the room of what this process has started.
            hurry.set()
        self._close(hurry)

    def _close(self, hurry: threading.Event) -> None:
        """Wait until all is sent, or the server takes nothing for too long: shortly, once `hurry` is set."""
        if self._giving_up.is_set():
            return
        self._calls.put(None)
        self._moved = time.monotonic()
        while self._thread.is_alive():
            until = self._moved + (PATIENCE_SECONDS if hurry.is_set() else self._patience)
            if time.monotonic() >= (until if hurry.is_set() else max(until, self._busy_until)):
                break
            self._thread.join(0.1)
        if self._thread.is_alive():
            self._giving_up.set()
            reason = self.problem or "no answer"
            print(
                f"MLflow at {self._uri} did not take everything: {reason}; the points are kept in storage, and "
                f"`patchline resume {self._id}` sends them"
            )

    def workflow_ended(self, state: str, hurry: threading.Event | None = None) -> None:
        """Show the end, and wait until everything is shown; see `_close`."""
        self._calls.put(lambda: self._end_workflow(state))
        self._calls.put(self._log_report)
        if state == "done" and self._at_end.wanted:
            # Whatever becomes of it, the runs have ended before.
            self._calls.put(self._runs.send)
            self._calls.put(self._register)
        self._close(hurry or threading.Event())

    def stage_started(self, stage: str, config: StageConfig, folder: str, inputs: dict[str, Finished]) -> None:
        name = self._name(stage, folder)
        self._calls.put(lambda: self._start_stage(name, config, folder, dict(inputs)))

    def attempt_started(self, stage: str, folder: str, attempt: int, placement: dict[str, Any]) -> None:
        name = self._name(stage, folder)
        self._calls.put(lambda: self._start_attempt(name, attempt, placement))

    def attempt_ended(self, stage: str, attempt: int, outcome: str) -> None:
        name = self._names.get(stage, stage)
        self._calls.put(lambda: self._end_attempt(name, attempt, outcome))

    def went_back(self, stage: str, each: list[str]) -> None:
        """All times that a stage's training went back so far, in words."""
        name, told = self._names.get(stage, stage), {"patchline.went_back": "\n".join(each)}
        self._calls.put(lambda: self._runs.log_tags(self._runs[name], told))

    def stage_ended(self, stage: str, outcome: str, finished: Finished | None) -> None:
        name = self._names.get(stage, stage) if finished is None else self._name(stage, finished.folder)
        if finished is not None:
            self._at_end.done[stage] = finished
        self._calls.put(lambda: self._end_stage(name, outcome, finished))

    def _name(self, stage: str, folder: str) -> str:
        """What a stage's runs are called: one that is made anew has other ones, since its curves begin again."""
        self._names[stage] = f"{stage}{ANEW}{times}" if (times := times_anew(folder)) else stage
        return self._names[stage]

    # The thread

    def _run(self) -> None:
        while True:
            if self._calls.empty():
                self._until_taken(self._runs.send)
            try:
                call = self._calls.get(timeout=POLL_SECONDS)
            except queue.Empty:
                call = self._send_curves
            if call is None:
                self._until_taken(self._runs.send)
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
                    tell_refused(error)
                    return
                # Whatever the server or the network did, the truth is in storage: try again, calmly.
                if self.problem is None:
                    # Those of the storage are Python's own; MLflow's client has others.
                    away = self._storage.url if isinstance(error, ConnectionError) else f"MLflow at {self._uri}"
                    print(
                        f"{away} does not answer; the work goes on, and what it is to show is sent "
                        f"when it does ({cause(error)})",
                        flush=True,
                    )
                self.problem = cause(error)
                self._runs.in_doubt()
                time.sleep(wait)
                wait = min(wait * 2, 10.0)

    def _start_workflow(self) -> None:
        self._runs.connect()
        run = self._runs.ensure("workflow", None, self._workflow.name)
        origin = read_origin(self._storage, self._id)
        self._runs.log_tags(run, {NOTE: self._workflow.description, **_origin_tags(origin)})
        self._runs.log_text(run, self._workflow.to_yaml(), "workflow.yaml")
        self._runs.log_text(run, json.dumps({**environment(), "origin": origin}, indent=2), "environment.json")

    def _make_plan(self) -> None:
        try:
            text = plan_text(self._storage, self._workflow, self._owner)
        except Exception as error:
            # What is wrong with the workflow, or with storage, the stages themselves tell.
            text = f"no plan could be made: {error}\n"
        self._calls.put(lambda: self._runs.log_text(self._runs["workflow"], text, "plan.txt"))

    def _start_stage(self, stage: str, config: StageConfig, folder: str, inputs: dict[str, Finished]) -> None:
        run = self._runs.ensure(stage, "workflow", stage)
        self._runs.log_tags(run, {"patchline.folder": f"{self._storage.url}/{folder}"})
        seed = self._workflow.seed_of(stage.partition(ANEW)[0])
        self._runs.log_params(run, _flat({**fields_with_role(config, "identity"), "seed": seed}))
        for field, done in inputs.items():
            if done.output.kind == "dataset":
                self._log_dataset(run, done, field)
        evaluated = isinstance(config, PretrainConfig) and config.fewshot is not None
        self._curves[stage] = Curves(self._storage, folder, has_updates=config.output == "model", evaluated=evaluated)
        if not self._runs.new:
            self._close_attempts(stage, run)

    def _close_attempts(self, stage: str, run: str) -> None:
        """End the attempts that an earlier driver left running: it was killed, or we would not have its lease."""
        for key in self._runs.running_below(run):
            attempt = int(key.rsplit("/", 1)[1])
            self._curves[stage].follow(attempt)
            self._end_attempt(stage, attempt, "stopped")

    def _start_attempt(self, stage: str, attempt: int, placement: dict[str, Any]) -> None:
        told, gang = _flat(placement), "workers" in placement
        # Of a stage without a gang, which may be a short one, it costs no request of its own.
        tags = {} if gang else {f"patchline.{name}": str(value)[:CHARACTERS] for name, value in told.items()}
        run = self._runs.ensure(f"{stage}/{attempt}", stage, f"{stage} attempt {attempt}", tags)
        if gang:
            self._runs.log_params(run, told)
        curves = self._curves[stage]
        curves.follow(attempt)
        if gang and attempt > 1 and (lost := curves.lost(attempt - 1)):
            self._runs.log_points(self._runs[stage], lost)

    def _end_attempt(self, stage: str, attempt: int, outcome: str) -> None:
        self._send_curve(stage)
        self._runs.end(self._runs[f"{stage}/{attempt}"], STATUS[outcome])

    def _end_stage(self, stage: str, outcome: str, finished: Finished | None) -> None:
        run = self._runs.ensure(stage, "workflow", stage)
        if stage in self._curves:
            self._send_curve(stage)
        if finished is not None:
            self._log_outcome(stage, run, outcome, finished)
        else:
            self._runs.log_tags(run, {"patchline.outcome": outcome})
        self._runs.end(run, STATUS[outcome])
        # Nothing more comes of it, and with many stages looking for it again would take most of the time.
        self._curves.pop(stage, None)

    def _log_outcome(self, stage: str, run: str, outcome: str, finished: Finished) -> None:
        record = finished.record
        step = int(record.metrics.get("updates", 0))
        # What evaluations on the way measured has its points already, with the times at which they were made.
        aside = ON_THE_WAY if stage in self._curves and self._curves[stage].evaluated else ()
        points = [
            Point(name=name, value=value, step=step, time_ms=record.ended_ms)
            for name, value in record.metrics.items()
            if not name.startswith(aside)
        ]
        output = f"{self._storage.url}/{record.output_prefix}"
        self._runs.log_points(run, points)
        self._runs.log_tags(
            run,
            {
                "patchline.outcome": outcome,
                "patchline.output": output,
                "patchline.output_digest": record.output_digest,
            },
        )
        if finished.output.kind == "dataset":
            self._log_dataset(run, finished, "output")
        for name, rows in record.tables.items():
            self._runs.log_table(run, rows, f"{name}.json")
        for path in _shown([file["path"] for file in finished.output.manifest["files"]]):
            self._runs.log_file(run, path, partial(self._storage.read, finished.output.key(path)))
        self._log_headlines(stage, finished)

    def _log_headlines(self, stage: str, finished: Finished) -> None:
        """What the list of workflows shows: which is best, and what did it cost."""
        record = finished.record
        chosen = {name: value for name, value in record.metrics.items() if name.startswith(HEADLINES)}
        values = {**chosen, "seconds": record.seconds}
        points = [
            Point(name=f"{stage}/{name.removeprefix('features/')}", value=value, step=0, time_ms=record.ended_ms)
            for name, value in values.items()
        ]
        time_taken = "reused" if finished.reused else duration(record.seconds)
        figures = headline(record.metrics).replace("  ", ", ")
        line = f"- **{stage}**: {time_taken}; {figures}"
        if line not in self._notes:
            self._notes.append(line)
        note = "\n".join([self._workflow.description, "", *self._notes])
        self._runs.log_points(self._runs["workflow"], points)
        # The newest lines of many: MLflow takes no longer text.
        self._runs.log_tags(self._runs["workflow"], {NOTE: note[-NOTE_CHARACTERS:]})

    def _end_workflow(self, state: str) -> None:
        run = self._runs["workflow"]
        self._runs.log_tags(run, {"patchline.state": state})
        self._runs.end(run, STATUS[state])

    def _log_report(self) -> None:
        """The page about the workflow, in place of an earlier end's. Nothing else waits for it: the run has ended."""
        self._runs.send()
        if self._page is None:
            self._moved = time.monotonic()
            self._page = page_or_word(self._storage, self._id)
        if self._page:
            self._runs.log_text(self._runs["workflow"], self._page, REPORT)

    def _register(self) -> None:
        self._at_end(self._runs, self._is_busy)

    def _is_busy(self, seconds: float) -> None:
        """Wait so long for the server's next answer, though nothing is heard of it."""
        self._busy_until = time.monotonic() + seconds

    # Small steps

    def _send_curves(self) -> None:
        for stage in self._curves:
            self._send_curve(stage)
        self._runs.send()

    def _send_curve(self, stage: str) -> None:
        curves = self._curves[stage]
        curves.collect()
        for attempt, points in curves.live.items():
            self._hand_over(self._runs[f"{stage}/{attempt}"], points)
        self._hand_over(self._runs[stage], curves.committed)
        if curves.checkpoint != curves.shown:
            self._runs.log_tags(self._runs[stage], {"patchline.checkpoint": f"{self._storage.url}/{curves.checkpoint}"})
            curves.shown = curves.checkpoint

    def _hand_over(self, run: str, points: list[Point]) -> None:
        self._runs.log_points(run, list(points))
        points.clear()

    def _log_dataset(self, run: str, done: Finished, context: str) -> None:
        self._runs.log_dataset(
            run,
            name=str(done.output.meta["name"]),
            digest=done.output.digest,
            source=f"{self._storage.url}/{done.output.prefix}",
            counts={name: split["count"] for name, split in done.output.meta["splits"].items()},
            context=context,
        )

    def _batch_sent(self) -> bool:
        self._moved = time.monotonic()
        return not self._giving_up.is_set()


def _origin_tags(origin: Mapping[str, Any]) -> dict[str, str]:
    """In MLflow's own names, so that its page shows them where it shows everybody's."""
    git = origin.get("git") or {}
    tags = {
        "mlflow.user": origin.get("user"),
        "mlflow.source.name": "patchline",
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
        "patchline.git_changed": None if git.get("changed") is None else str(git["changed"]).lower(),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def _shown(paths: list[str]) -> list[str]:
    """The pictures among an output's files, and the tables of numbers."""
    return [path for path in paths if path.endswith((".png", ".csv"))]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat
