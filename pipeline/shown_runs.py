"""What a workflow's runs in MLflow show: of the workflow, its stages and their attempts.

Curves come from metric files in storage: the attempt's run shows them live; the stage's run shows what a committed
checkpoint covers, so that a repeated update leaves no second point. MLflow keys a point by its timestamp among others,
and points keep theirs, so sending one again adds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from cluster.storage import Storage
from pipeline import shown_params
from pipeline.config import Workflow
from pipeline.curves import Curves
from pipeline.earlier_attempts import earlier_attempts, outcome_of
from pipeline.mlflow_runs import CHARACTERS, Runs
from pipeline.provenance import environment, read_origin
from pipeline.record import read_note
from pipeline.reuse import Finished
from pipeline.shown_inputs import ShownInputs
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
WORKFLOW = "workflow"
"""Key of the workflow's own run; a stage's is its name, an attempt's `<stage>/<number>`."""
ANEW = " anew "
NOTE, NOTE_CHARACTERS = "mlflow.note.content", 8000


class ShownRuns:
    """Shows one workflow in its runs. Calls may raise what the server or storage raises, and may be made again."""

    def __init__(self, runs: Runs, storage: Storage, workflow_id: str, workflow: Workflow, owner: str) -> None:
        """`owner` is who runs it now."""
        self._runs, self._storage, self._id, self._workflow = runs, storage, workflow_id, workflow
        self._owner = owner
        self._earlier: dict[tuple[str, str], dict[int, str]] | None = None
        self._curves: dict[str, Curves] = {}
        self._notes: list[str] = []
        self._inputs = ShownInputs(runs, storage.url, workflow.name)

    def start_workflow(self) -> None:
        """Find or make the workflow's run, which says what is run, by whom, and on what."""
        self._runs.connect()
        run = self._runs.ensure(WORKFLOW, None, self._workflow.name)
        origin = read_origin(self._storage, self._id)
        self._runs.log_tags(run, {NOTE: self._workflow.description, **_origin_tags(origin)})
        self._runs.log_text(run, self._workflow.to_yaml(), "workflow.yaml")
        self._runs.log_text(run, json.dumps({**environment(), "origin": origin}, indent=2), "environment.json")

    def start_stage(self, stage: str, config: StageConfig, folder: str, inputs: dict[str, Finished]) -> None:
        """The run of a stage, with what determines its result and what it reads."""
        run = self._runs.ensure(stage, WORKFLOW, stage_name(stage, self._workflow.name))
        self._runs.log_tags(run, {"patchline.folder": f"{self._storage.url}/{folder}"})
        seed = self._workflow.seed_of(stage.partition(ANEW)[0])
        self._runs.log_params(run, shown_params.of_stage(config, seed))
        self._inputs.show(run, config, inputs)
        evaluated = isinstance(config, PretrainConfig) and config.fewshot is not None
        self._curves[stage] = Curves(self._storage, folder, has_updates=config.output == "model", evaluated=evaluated)
        if not self._runs.new:
            self._close_attempts(stage, run, folder)
        if self._earlier is None:
            # Not before: while its lease was waited for, another driver may have made more of them.
            self._earlier = earlier_attempts(self._storage, self._id, self._owner)
        for attempt, outcome in self._earlier.get((stage.partition(ANEW)[0], folder), {}).items():
            if self._runs.find(f"{stage}/{attempt}") is None:
                note = read_note(self._storage, f"{folder}/attempts/{attempt}")
                self.start_attempt(stage, attempt, note.placement if note is not None else {})
                self.end_attempt(stage, attempt, outcome or outcome_of(self._storage, folder, attempt))

    def _close_attempts(self, stage: str, run: str, folder: str) -> None:
        """End the attempts that an earlier driver left running: it was killed, or MLflow took nothing more of it."""
        for key in self._runs.running_below(run):
            attempt = int(key.rsplit("/", 1)[1])
            self._curves[stage].follow(attempt)
            self.end_attempt(stage, attempt, outcome_of(self._storage, folder, attempt))

    def start_attempt(self, stage: str, attempt: int, placement: dict[str, Any]) -> None:
        """The run of an attempt, and what the one before it lost."""
        config = self._workflow.stages[stage.partition(ANEW)[0]]
        told, gang = shown_params.of_attempt(config, placement), "workers" in placement
        # Of a stage without a gang, which may be a short one, it costs no request of its own.
        tags = {} if gang else {f"patchline.{name}": str(value)[:CHARACTERS] for name, value in told.items()}
        run = self._runs.ensure(f"{stage}/{attempt}", stage, f"{stage} attempt {attempt}", tags)
        if gang:
            self._runs.log_params(run, told)
        curves = self._curves[stage]
        curves.follow(attempt)
        if gang and attempt > 1 and (lost := curves.lost(attempt - 1)):
            self._runs.log_points(self._runs[stage], lost)

    def end_attempt(self, stage: str, attempt: int, outcome: str) -> None:
        """Its curve as far as it came."""
        self._send_curve(stage)
        self._runs.end(self._runs[f"{stage}/{attempt}"], STATUS[outcome])

    def end_stage(self, stage: str, outcome: str, finished: Finished | None) -> None:
        """What came of it, if anything did."""
        run = self._runs.ensure(stage, WORKFLOW, stage_name(stage, self._workflow.name))
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
        output, outside = f"{self._storage.url}/{record.output_prefix}", record.identity.get("external")
        self._runs.log_points(run, points)
        self._runs.log_tags(
            run,
            {
                "patchline.outcome": outcome,
                "patchline.output": output,
                "patchline.output_digest": record.output_digest,
                **({"patchline.external_digest": str(outside)} if outside else {}),
            },
        )
        if finished.output.kind == "dataset":
            self._inputs.show_dataset(run, finished, "output")
        self._inputs.made(run, finished)
        for name, rows in record.tables.items():
            self._runs.log_table(run, rows, f"{name}.json")
        for path in _shown([file["path"] for file in finished.output.manifest["files"]]):
            self._runs.log_file(run, path, partial(self._storage.read, finished.output.key(path)))
        self._log_headlines(stage, finished)

    def _log_headlines(self, stage: str, finished: Finished) -> None:
        """What the list of workflows shows: which is best, and what did it cost. One made anew is that stage."""
        record, stage = finished.record, stage.partition(ANEW)[0]
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
        self._runs.log_points(self._runs[WORKFLOW], points)
        # The newest lines of many: MLflow takes no longer text.
        self._runs.log_tags(self._runs[WORKFLOW], {NOTE: note[-NOTE_CHARACTERS:]})

    def end_workflow(self, state: str) -> None:
        """How it ended: done, failed or stopped."""
        run = self._runs[WORKFLOW]
        self._runs.log_tags(run, {"patchline.state": state})
        self._runs.end(run, STATUS[state])
        if self._earlier or not self._runs.new:
            self._runs.drop_doubles()

    def send_curves(self) -> None:
        """What is new of all stages under way."""
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


def stage_name(stage: str, workflow: str) -> str:
    """What a stage's run is called: where runs of several workflows are compared, MLflow shows these names alone."""
    return f"{stage} · {workflow}"


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
