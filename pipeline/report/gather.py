"""A report from storage alone: events, HEADs, records, points and outputs. The cluster and MLflow may be gone."""

from __future__ import annotations

from typing import Any

from cluster.storage import Storage
from cluster.storage.many import at_once
from pipeline.config import Workflow
from pipeline.driver import read_workflow
from pipeline.head import HeadDocument, read_head
from pipeline.identity import fields_with_role, references
from pipeline.opaque import OpaqueConfig
from pipeline.progress import Progress
from pipeline.provenance import read_origin
from pipeline.record import EventLog, builds
from pipeline.report.attempts import Attempts, losses, mark_lost
from pipeline.report.curves import FEWEST, FILES, curves, stage_points
from pipeline.report.document import Loss, Report, StageReport
from pipeline.report.figures import cost, figures, work
from pipeline.report.found import Found
from pipeline.report.pictures import Album
from pipeline.report.tables import CAPTIONS, tables
from pipeline.report.warnings import warnings
from pipeline.status import StageStatus, WorkflowStatus, settle, silence
from pipeline.words import headline
from stages.config import StageConfig
from stages.metrics import now_ms
from stages.training.config import TrainingConfig


def gather(storage: Storage, workflow_id: str, *, price: float | None = None) -> Report:
    """All that is known of a workflow at this moment, whatever its state. `price` is money for a GPU and hour.

    Raises UserError where there is none of this id, or a document has a newer format.
    """
    workflow = read_workflow(storage, workflow_id)
    status, attempts = _followed(storage, workflow_id, workflow)
    head = read_head(storage, f"workflows/{workflow_id}")
    found = at_once(lambda name: Found.of(storage, status.stages[name]), workflow.stages)
    trained = {own.status.name for own in found if own.head is not None and own.status.updates}
    album, lost = Album(storage), list[Loss]()
    stages = []
    for own in found:
        stages.append(_stage(storage, workflow, own, attempts, album))
        if own.status.name in trained:
            lost += _learned(storage, stages[-1], own, files=max(FEWEST, FILES // len(trained)))
    used = cost(stages, price)
    fewshot = {own.status.name: own.record.tables["fewshot"] for own in found if own.record and own.kind == "fewshot"}
    ends = [span.ended_ms for stage in stages for span in stage.spans]
    report = Report(
        id=workflow_id,
        name=workflow.name,
        description=workflow.description,
        state=status.state,
        message=status.message,
        root=storage.url,
        place=_place(workflow_id, head[0] if head is not None else None),
        origin=read_origin(storage, workflow_id),
        started_ms=min(attempts.drivers_ms, default=None),
        ended_ms=max([*ends, *attempts.drivers_ms], default=None) if status.state != "running" else None,
        made_ms=now_ms(),
        drivers_ms=attempts.drivers_ms,
        figures=figures(stages, fewshot, used),
        warnings=[],
        stages=stages,
        losses=lost,
        troubles=[(item.time_ms, item.text) for item in status.troubles],
        cost=used,
        workflow=storage.read(f"workflows/{workflow_id}/workflow.yaml").decode(),
        version=builds()["patchline"],
    )
    report.warnings += warnings(report, attempts.differs)
    return report


def _followed(storage: Storage, workflow_id: str, workflow: Workflow) -> tuple[WorkflowStatus, Attempts]:
    """The workflow's events, folded into its status and into its attempts."""
    status = WorkflowStatus(id=workflow_id, stages={name: StageStatus(name=name) for name in workflow.stages})
    attempts = Attempts(storage)
    for event in EventLog(storage, workflow_id).new_events():
        status.apply(event)
        attempts.apply(event)
    settle(storage, status)
    if status.state == "running" and silence(storage, workflow_id) is not None:
        status.state = "silent"
    attempts.settle(now_ms(), running=status.state == "running")
    return Progress(storage).measure(status), attempts


def _place(workflow_id: str, head: HeadDocument | None) -> str:
    """The machine of the newest driver; its owner's name is the workflow's id, machine, process and a random word."""
    parts = head.owner.split("/") if head is not None else []
    return parts[1] if len(parts) == 4 and parts[0] == workflow_id else ""


def _stage(storage: Storage, workflow: Workflow, own: Found, attempts: Attempts, album: Album) -> StageReport:
    status, record, output = own.status, own.record, own.output
    config = workflow.stages[status.name]
    mine = status.folder in attempts.made.get(status.name, ())
    stage = StageReport(
        name=status.name,
        kind=config.called if isinstance(config, OpaqueConfig) else config.kind,
        # A later driver finds done what an earlier one of the same workflow has done.
        outcome="done" if status.outcome == "reused" and mine else status.outcome,
        message=status.message,
        inputs=list(dict.fromkeys(references(config).values())),
        folder=status.folder,
        seconds=status.seconds,
        update=status.update,
        updates=status.updates,
        headline=headline(status.metrics).replace("  ", ", "),
        metrics=dict(status.metrics),
        spans=attempts.spans.get(status.name, []),
        settings=_settings(config, workflow.seed_of(status.name), "identity"),
        placement=dict(own.placement) or _settings(config, None, "placement"),
        builds=dict(own.builds),
    )
    if stage.outcome == "reused" and own.head is not None:
        stage.made_by = own.head.owner.split("/")[0] if own.head.owner.count("/") == 3 else None
    if record is not None:
        stage.made_ms, stage.tables = record.ended_ms, tables(record.tables)
        stage.digest = record.output_digest
    if record is not None and output is not None:
        stage.output = f"{storage.url}/{record.output_prefix}"
        captions = {str(row.get("figure")): str(row.get("of")) for row in record.tables.get(CAPTIONS, [])}
        stage.pictures = album.pictures(output, captions)
        stage.dataset = str(output.meta["name"]) if output.kind == "dataset" else None
        if config.kind != "choice" and (done := work(output)) is not None:
            stage.images_seen, stage.exaflops = done
    elif stage.update and isinstance(config, TrainingConfig):
        stage.images_seen = stage.update * config.global_batch
    return stage


def _learned(storage: Storage, stage: StageReport, own: Found, *, files: int) -> list[Loss]:
    """Give a stage that trains its curves; returns what was lost of it."""
    assert own.head is not None
    folder = str(own.status.folder)
    points = stage_points(storage, folder, own.head, files=files)
    lost = list(losses(storage, own.status, own.head, stage.spans, points.attempts))
    mark_lost(stage.spans, folder, lost)
    stage.curves = curves(points, own.head, lost)
    return lost if stage.outcome != "reused" else []


def _settings(config: StageConfig, seed: int | None, role: str) -> dict[str, Any]:
    if isinstance(config, OpaqueConfig):
        return dict(config.model_extra or {}) if role == "identity" else {}
    found = fields_with_role(config, role)
    return {**found, "seed": seed} if role == "identity" else found
