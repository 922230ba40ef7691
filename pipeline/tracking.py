"""MLflow, from the driver alone. The only importer of mlflow.

A workflow is a run, each stage a child of it, each attempt a grandchild. Curves come from metric files
in storage: the attempt's run shows them live; the stage's run shows what a committed checkpoint covers,
so that a repeated update leaves no second point. MLflow keys a point by its timestamp among others, and
points keep theirs, so sending one again adds nothing.

Calls are queued and made by a thread: a slow or absent server costs the work nothing. What could not be
sent is sent by the next driver of the workflow, from the files.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cluster.storage import NotFound, Storage
from pipeline.config import Workflow
from pipeline.curves import Curves
from pipeline.identity import fields_with_role
from pipeline.mlflow_page import EXPERIMENT, tags
from pipeline.retries import times_anew
from pipeline.reuse import Finished
from pipeline.words import duration, headline
from stages.config import StageConfig
from stages.metrics import Point

HEADLINES = ("images", "test/accuracy", "features/")
"""Beginnings of the figures that a workflow's own run carries."""
STATUS = {"done": "FINISHED", "reused": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""What MLflow calls our outcomes."""
ANEW = " anew "
POLL_SECONDS = 2.0
BATCH = 1000
"""Points in one request; MLflow takes no more."""
NOTE, NOTE_CHARACTERS = "mlflow.note.content", 8000
PATIENCE_SECONDS = 15.0
"""How long the end of a workflow waits while the server takes nothing."""


class MlflowTracker:
    """Feeds one workflow's runs. Use as a context manager; no method blocks or raises."""

    def __init__(self, uri: str, storage: Storage, workflow_id: str, workflow: Workflow) -> None:
        self._uri, self._storage, self._id, self._workflow = uri, storage, workflow_id, workflow
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._runs: dict[str, str] = {}
        self._curves: dict[str, Curves] = {}
        self._notes: list[str] = []
        self._names: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._giving_up = threading.Event()
        self._new = False
        """Whether MLflow has nothing of this workflow but what we know: then there is nothing to look for."""
        self._moved = time.monotonic()
        self._client: Any = None
        self.problem: str | None = None
        """What keeps MLflow from being fed, if anything does."""

    def __enter__(self) -> MlflowTracker:
        self._thread.start()
        self._calls.put(self._start_workflow)
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)
        self._moved = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - self._moved < PATIENCE_SECONDS:
            self._thread.join(0.1)
        if self._thread.is_alive():
            self._giving_up.set()
            reason = self.problem or "no answer"
            print(f"MLflow at {self._uri} did not take everything: {reason}; the points are kept in storage")

    def workflow_ended(self, state: str) -> None:
        self._calls.put(lambda: self._end_workflow(state))

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
        self._calls.put(lambda: self._log_tags(self._runs[name], told))

    def stage_ended(self, stage: str, outcome: str, finished: Finished | None) -> None:
        name = self._names.get(stage, stage) if finished is None else self._name(stage, finished.folder)
        self._calls.put(lambda: self._end_stage(name, outcome, finished))

    def _name(self, stage: str, folder: str) -> str:
        """What a stage's runs are called: one that is made anew has other ones, since its curves begin again."""
        self._names[stage] = f"{stage}{ANEW}{times}" if (times := times_anew(folder)) else stage
        return self._names[stage]

    # The thread

    def _run(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=POLL_SECONDS)
            except queue.Empty:
                call = self._send_curves
            if call is None:
                return
            self._until_taken(call)

    def _until_taken(self, call: Callable[[], None]) -> None:
        wait = 0.5
        while not self._giving_up.is_set():
            try:
                call()
                self.problem, self._moved = None, time.monotonic()
                return
            except Exception as error:
                if _refused(error):
                    print(f"MLflow does not take this: {type(error).__name__}: {error}", flush=True)
                    return
                # Whatever the server or the network did, the truth is in storage: try again, calmly.
                if self.problem is None:
                    print(
                        f"MLflow at {self._uri} does not answer; the work goes on, and what it is to show is sent "
                        f"when it does ({_cause(error)})",
                        flush=True,
                    )
                self.problem = _cause(error)
                # It may have done what was asked before its answer was lost.
                self._new = False
                time.sleep(wait)
                wait = min(wait * 2, 10.0)

    def _start_workflow(self) -> None:
        self._client = _client(self._uri)
        experiment = _experiment(self._client, EXPERIMENT)
        self._experiment = experiment
        run = self._ensure_run("workflow", None, self._workflow.name)
        self._log_tags(run, {NOTE: self._workflow.description})
        self._client.log_text(run, self._workflow.to_yaml(), "workflow.yaml")

    def _start_stage(self, stage: str, config: StageConfig, folder: str, inputs: dict[str, Finished]) -> None:
        run = self._ensure_run(stage, "workflow", stage)
        place = {"patchline.folder": f"{self._storage.url}/{folder}"}
        seed = self._workflow.seed_of(stage.partition(ANEW)[0])
        self._log_params(run, _flat({**fields_with_role(config, "identity"), "seed": seed}), place)
        for field, done in inputs.items():
            if done.output.kind == "dataset":
                self._log_dataset(run, done, field)
        self._curves[stage] = Curves(self._storage, folder, has_updates=config.output == "model")
        if not self._new:
            self._close_attempts(stage, run)

    def _close_attempts(self, stage: str, run: str) -> None:
        """End the attempts that an earlier driver left running: it was killed, or we would not have its lease."""
        query = f"tags.`mlflow.parentRunId` = '{run}' and attributes.status = 'RUNNING'"
        for left in self._client.search_runs([self._experiment], query):
            key = left.data.tags["patchline.key"].removeprefix(f"{self._id}:")
            self._runs[key] = left.info.run_id
            self._curves[stage].follow(int(key.rsplit("/", 1)[1]))
            self._end_attempt(stage, int(key.rsplit("/", 1)[1]), "stopped")

    def _start_attempt(self, stage: str, attempt: int, placement: dict[str, Any]) -> None:
        run = self._ensure_run(f"{stage}/{attempt}", stage, f"{stage} attempt {attempt}")
        self._log_params(run, _flat(placement))
        self._curves[stage].follow(attempt)

    def _end_attempt(self, stage: str, attempt: int, outcome: str) -> None:
        self._send_curve(stage)
        run = self._runs[f"{stage}/{attempt}"]
        self._client.set_terminated(run, STATUS[outcome])

    def _end_stage(self, stage: str, outcome: str, finished: Finished | None) -> None:
        run = self._ensure_run(stage, "workflow", stage)
        if stage in self._curves:
            self._send_curve(stage)
        if finished is not None:
            self._log_outcome(stage, run, outcome, finished)
        else:
            self._log_tags(run, {"patchline.outcome": outcome})
        self._client.set_terminated(run, STATUS[outcome])
        # Nothing more comes of it, and with many stages looking for it again would take most of the time.
        self._curves.pop(stage, None)

    def _log_outcome(self, stage: str, run: str, outcome: str, finished: Finished) -> None:
        record = finished.record
        step = int(record.metrics.get("updates", 0))
        points = [
            Point(name=name, value=value, step=step, time_ms=record.ended_ms) for name, value in record.metrics.items()
        ]
        output = f"{self._storage.url}/{record.output_prefix}"
        self._log_points(run, points)
        self._log_tags(
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
            columns = {key: [row.get(key) for row in rows] for key in (rows[0] if rows else {})}
            if not self._has_artifact(run, f"{name}.json"):
                self._client.log_table(run, columns, f"{name}.json")
        for file in finished.output.manifest["files"]:
            if file["path"].endswith(".png") and not self._has_artifact(run, file["path"]):
                self._log_bytes(run, file["path"], self._storage.read(finished.output.key(file["path"])))
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
        self._log_points(self._runs["workflow"], points)
        # The newest lines of many: MLflow takes no longer text.
        self._log_tags(self._runs["workflow"], {NOTE: note[-NOTE_CHARACTERS:]})

    def _end_workflow(self, state: str) -> None:
        run = self._runs["workflow"]
        self._client.set_tag(run, "patchline.state", state)
        self._client.set_terminated(run, STATUS[state])

    # Small steps

    def _ensure_run(self, key: str, parent: str | None, name: str) -> str:
        """The run with this key in this workflow, made where it does not exist, running again where it ended."""
        if key in self._runs:
            return self._runs[key]
        tag, found = f"{self._id}:{key}", []
        if not self._new:
            found = self._client.search_runs([self._experiment], f"tags.`patchline.key` = '{tag}'", max_results=1)
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, status="RUNNING")
        else:
            tags = {"patchline.key": tag, "patchline.workflow": self._id}
            if parent is not None:
                tags["mlflow.parentRunId"] = self._runs[parent]
            run = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
            self._new = self._new or (parent is None and self.problem is None)
        self._runs[key] = run
        return run

    def _send_curves(self) -> None:
        for stage in self._curves:
            self._send_curve(stage)

    def _send_curve(self, stage: str) -> None:
        curves = self._curves[stage]
        curves.collect()
        for attempt, points in curves.live.items():
            self._send_points(self._runs[f"{stage}/{attempt}"], points)
        self._send_points(self._runs[stage], curves.committed)
        if curves.checkpoint != curves.shown:
            self._log_tags(self._runs[stage], {"patchline.checkpoint": f"{self._storage.url}/{curves.checkpoint}"})
            curves.shown = curves.checkpoint

    def _send_points(self, run: str, points: list[Point]) -> None:
        """Send a backlog and empty the list, batch by batch: a failure in between repeats one batch alone."""
        while points and not self._giving_up.is_set():
            self._log_points(run, points[:BATCH])
            del points[:BATCH]
            self._moved = time.monotonic()

    def _log_points(self, run: str, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(p.name, p.value, p.time_ms, p.step) for p in points]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run, metrics=metrics[start : start + BATCH])

    def _log_params(self, run: str, values: dict[str, Any], tags: Mapping[str, str] = MappingProxyType({})) -> None:
        from mlflow.entities import Param, RunTag

        params = [Param(key, str(value)[:6000]) for key, value in values.items()]
        named = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, max(1, len(params)), 100):
            self._client.log_batch(run, params=params[start : start + 100], tags=named)

    def _log_tags(self, run: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def _log_dataset(self, run: str, done: Finished, context: str) -> None:
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        meta, source = done.output.meta, f"{self._storage.url}/{done.output.prefix}"
        counts = {name: split["count"] for name, split in meta["splits"].items()}
        dataset = Dataset(
            name=str(meta["name"]),
            digest=done.output.digest[:36],
            source_type="s3" if source.startswith("s3://") else "local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(counts),
        )
        self._client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def _has_artifact(self, run: str, path: str) -> bool:
        return any(item.path == path for item in self._client.list_artifacts(run))

    def _log_bytes(self, run: str, name: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="patchline-") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            self._client.log_artifact(run, str(path))


def _client(uri: str) -> Any:
    # A run that the user's shell names is not ours, and MLflow would greet the log with every run's address.
    os.environ.pop("MLFLOW_RUN_ID", None)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    # Trying again is ours: MLflow's own retries would keep quiet about an absent server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def _refused(error: Exception) -> bool:
    """Whether the same call would fail for ever: MLflow found it wrong, or it follows one that was."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code == "INVALID_PARAMETER_VALUE"
    return isinstance(error, KeyError | TypeError | AttributeError) and not isinstance(error, NotFound)


def _cause(error: BaseException) -> str:
    """What is at the bottom of an error: MLflow wraps what the system said of a connection several times."""
    while (inner := error.__cause__ or error.__context__ or getattr(error, "reason", None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _experiment(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=_artifacts(client.tracking_uri), tags=tags())
        except MlflowException:
            # Another driver made it in the same moment.
            found = client.get_experiment_by_name(name)
    return found.experiment_id


def _artifacts(uri: str) -> str | None:
    """Where a new experiment's files go: beside a local database, whatever the working directory; else as the server
    likes it."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else (Path(path).absolute().parent / "mlflow-artifacts").as_uri()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat
