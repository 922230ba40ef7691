"""A workflow's attempts in time, and what was lost between them: from events, HEADs and points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from cluster.storage import Storage
from pipeline.head import HeadDocument
from pipeline.progress import reached, turns
from pipeline.record import Event, read_note
from pipeline.report.document import Loss, Span
from pipeline.status import StageStatus
from pipeline.told import origin
from stages.metrics import Point, last_point

WITHOUT_A_WORD = "its process was killed, or lost with its machine"
ENDED = {"stopped": "was stopped", "failed": "failed", "done": "was done", "lost": "was lost", "running": "ran"}
ENDS = {"stage_done": "done", "stage_failed": "failed", "stage_stopped": "stopped"}


class Attempts:
    """Folds events into the attempts of each stage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._open: dict[str, Span] = {}
        self.spans: dict[str, list[Span]] = {}
        """By stage, oldest first."""
        self.drivers_ms: list[int] = []
        self.made: dict[str, set[str]] = {}
        """The folders in which this workflow itself has finished a stage."""
        self.differs: list[tuple[str, str]] = []
        """Stages, and what keeps an attempt of theirs from the bits of an undisturbed run."""

    def apply(self, event: Event) -> None:
        """Take one more event into account."""
        data: dict[str, Any] = event.data
        if event.type == "workflow_started":
            self.drivers_ms.append(event.time_ms)
        if event.type in ("workflow_started", "workflow_ended"):
            for stage in list(self._open):
                self._lost(stage, event.time_ms)
        if event.stage is None:
            return
        if event.type == "attempt_started":
            self._lost(event.stage, event.time_ms)
            self._begin(event.stage, event)
            if data.get("differs"):
                self.differs.append((event.stage, f"attempt {data['attempt']} started {origin(data)}"))
        elif event.type == "gang" and event.stage in self._open:
            self._resize(self._open[event.stage], int(data["working"]))
        elif event.type == "attempt_ended":
            self._end(event.stage, event.time_ms, data["outcome"], data["message"])
        elif event.type in ENDS:
            self._end(event.stage, event.time_ms, ENDS[event.type], str(data.get("message", "")))
        if event.type == "stage_done" and (spans := self.spans.get(event.stage)):
            self.made.setdefault(event.stage, set()).add(spans[-1].folder)

    def settle(self, now_ms: int, *, running: bool) -> None:
        """After the last event: what is open goes on, or its driver is gone."""
        for stage in list(self._open):
            if running:
                self._open.pop(stage).ended_ms = now_ms
            else:
                self._lost(stage, now_ms)

    def _begin(self, stage: str, event: Event) -> None:
        data: dict[str, Any] = event.data
        checkpoint = data.get("checkpoint") or {}
        span = Span(
            attempt=data["attempt"],
            folder=data["folder"],
            started_ms=event.time_ms,
            ended_ms=event.time_ms,
            began_at=checkpoint.get("update", data.get("branch_at", 0)),
        )
        note = read_note(self._storage, _prefix(span))
        placement: Mapping[str, Any] = note.placement if note is not None else {}
        workers = placement.get("workers")
        span.gpus = 1 if placement.get("gpus_per_worker") else 0
        self._resize(span, workers if isinstance(workers, int) else 1)
        self._open[stage] = span
        self.spans.setdefault(stage, []).append(span)

    def _resize(self, span: Span, processes: int) -> None:
        # A gang of none is this one process.
        span.processes = max(1, processes)
        span.gpus = span.processes if span.gpus else 0

    def _end(self, stage: str, time_ms: int, outcome: str, message: str) -> None:
        if (span := self._open.pop(stage, None)) is not None:
            span.ended_ms, span.outcome, span.message = max(span.started_ms, time_ms), outcome, message

    def _lost(self, stage: str, before_ms: int) -> None:
        """Its last sign of life is its last point; one without points has left none."""
        if (span := self._open.pop(stage, None)) is not None:
            point = last_point(self._storage, _prefix(span))
            seen = min(point.time_ms, before_ms) if point is not None else span.started_ms
            span.ended_ms, span.outcome, span.message = max(span.started_ms, seen), "lost", WITHOUT_A_WORD


def losses(
    storage: Storage, stage: StageStatus, head: HeadDocument, spans: Sequence[Span], points: Mapping[int, list[Point]]
) -> Iterable[Loss]:
    """What each attempt of a stage that trains has lost, oldest first. `points` are those of its attempts."""
    folder = str(stage.folder)
    own = {span.attempt: span for span in spans if span.folder == folder}
    newest = max([head.attempt, *own])
    for turn in turns(head, newest, stage.began, partial(reached, storage, folder, head)):
        span, following = own.get(turn.attempt), own.get(turn.attempt + 1)
        pause = (following.started_ms - span.ended_ms) / 1000 if span and following else None
        yield Loss(
            stage=stage.name,
            attempt=turn.attempt,
            reason=(span.message or f"it {ENDED[span.outcome]}") if span is not None else "it was another workflow's",
            end=turn.end,
            back_to=turn.back_to,
            repeated=turn.repeated,
            seconds=_seconds(points.get(turn.attempt, []), turn.back_to, turn.end),
            pause=max(0.0, pause) if pause is not None else None,
        )


def mark_lost(spans: Iterable[Span], folder: str, lost: Iterable[Loss]) -> None:
    """Note in each attempt how much of its end was made again."""
    seconds = {loss.attempt: (loss.seconds or 0.0) if loss.repeated else 0.0 for loss in lost if loss.end}
    for span in spans:
        if span.folder == folder:
            span.lost_seconds = seconds.get(span.attempt)


def _seconds(points: Sequence[Point], start: int, end: int) -> float | None:
    """From update `start` to update `end`, by the clock of the machine that made them."""
    before = max((point.time_ms for point in points if point.step <= start), default=None)
    after = max((point.time_ms for point in points if point.step <= end), default=None)
    if after is None:
        return None
    return (after - (before if before is not None else min(point.time_ms for point in points))) / 1000


def _prefix(span: Span) -> str:
    return f"{span.folder}/attempts/{span.attempt}"
