"""What has happened to a workflow, folded from its events and its stages' HEADs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.head import HeadDocument, read_head
from pipeline.ids import by_age, chosen
from pipeline.record import Event, EventLog, listed, read_record
from pipeline.told import TOLD, origin, trouble, waiting
from stages.metrics import now_ms

AT_ONCE = 16
"""HEADs that are read side by side."""


@dataclass(kw_only=True)
class StageStatus:
    """One stage, as far as the events tell."""

    name: str
    outcome: str = "pending"
    folder: str | None = None
    attempt: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    updates: int | None = None
    seconds: float | None = None
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    began: dict[int, int] = field(default_factory=dict)
    """The update from which each attempt of this workflow's drivers went on."""
    # What `pipeline.progress` finds out of a training stage.
    update: int | None = None
    """Updates done."""
    images_per_s: float | None = None
    seconds_left: float | None = None
    data_wait: float | None = None
    """Part of the newest interval in which it waited for images."""
    pace: float | None = None
    """Its speed, as a part of the attempt's usual one."""
    slowest_rank: float | None = None
    compute_skew: float | None = None
    """How many times as long as the others' median the slowest rank computes."""
    tasks: str = ""
    """Of a stage of tasks: how many are done, for example `shards 12/1,281`."""
    tasks_done: int | None = None
    tasks_total: int | None = None
    updates_repeated: int | None = None
    """Work lost: updates that an attempt made, and a later one made again."""

    @property
    def prefix(self) -> str | None:
        """Key prefix of the newest attempt."""
        return f"{self.folder}/attempts/{self.attempt}" if self.folder and self.attempt else None


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something that went wrong, whether or not it was made good."""

    time_ms: int
    text: str


@dataclass(kw_only=True)
class WorkflowStatus:
    """A workflow: `state` is submitted, running, done, failed or stopped."""

    id: str
    state: str = "submitted"
    stages: dict[str, StageStatus] = field(default_factory=dict)
    message: str = ""
    troubles: list[Trouble] = field(default_factory=list)
    """Of all its drivers, oldest first."""

    def apply(self, event: Event) -> None:
        """Take one more event into account."""
        if text := trouble(event):
            self.troubles.append(Trouble(time_ms=event.time_ms, text=text))
        if event.type == "driver_submitted" and self.state != "running":
            self.state, self.message = "submitted", ""
        elif event.type == "workflow_started":
            self.state, self.message = "running", ""
        elif event.type == "workflow_ended":
            self.state, self.message = str(event.data["state"]), str(event.data.get("message", ""))
        elif event.type == "waiting" and event.stage is None:
            self.message = waiting(event.data)
        elif event.type == "stages_retried":
            self.stages |= {name: StageStatus(name=name) for name in _names(event.data["stages"])}
        if event.stage is not None:
            _apply(self.stages.setdefault(event.stage, StageStatus(name=event.stage)), event)


def _names(value: Any) -> list[str]:
    return [str(name) for name in value]


def _apply(stage: StageStatus, event: Event) -> None:
    data: dict[str, Any] = event.data
    if event.type == "stage_started":
        stage.outcome, stage.folder = "running", data["folder"]
        stage.started_ms, stage.message = event.time_ms, ""
    elif event.type == "attempt_started":
        stage.attempt, stage.folder = data["attempt"], data["folder"]
        stage.message = origin(data)
        stage.began[data["attempt"]] = (
            data["checkpoint"]["update"] if data.get("checkpoint") else data.get("branch_at", 0)
        )
    elif event.type == "waiting":
        stage.message = waiting(data)
    elif event.type == "stage_length":
        stage.updates = data["updates"]
    elif event.type == "attempt_ended":
        stage.message = data["message"]
    elif event.type == "stage_retried":
        stage.message = f"{stage.message}; trying again, {data['left']} more after that"
    elif event.type in TOLD:
        stage.message = TOLD[event.type](data)
    elif event.type in ("stage_done", "stage_reused"):
        stage.outcome, stage.metrics = event.type.removeprefix("stage_"), data["metrics"]
        stage.seconds, stage.ended_ms, stage.message = data["seconds"], event.time_ms, ""
        stage.folder = data.get("folder", stage.folder)
    elif event.type in ("stage_failed", "stage_skipped", "stage_stopped"):
        stage.outcome, stage.ended_ms = event.type.removeprefix("stage_"), event.time_ms
        stage.message = data.get("message") or data.get("reason") or stage.message


class StatusReader:
    """Follows a workflow's events."""

    def __init__(self, storage: Storage, workflow_id: str, stages: list[str]) -> None:
        self._events = EventLog(storage, workflow_id)
        self.status = WorkflowStatus(id=workflow_id, stages={name: StageStatus(name=name) for name in stages})

    def update(self) -> list[Event]:
        """Take new events into account; returns them."""
        events = self._events.new_events()
        for event in events:
            self.status.apply(event)
        return events


def settle(storage: Storage, status: WorkflowStatus) -> None:
    """HEAD's word counts where a driver was lost between its end and telling of it: no event will say so."""
    found = read_head(storage, f"workflows/{status.id}") if status.state == "running" else None
    if found is not None and found[0].state != "running":
        status.state = found[0].state


def silence(storage: Storage, workflow_id: str) -> float | None:
    """Seconds for which a running workflow's driver has given no sign of life, where they are too many.

    It compares this machine's clock with the driver's: a hint for people, on which nothing else rests.
    """
    found = read_head(storage, f"workflows/{workflow_id}")
    return None if found is None or found[0].state != "running" else _silence(found[0])


def _silence(head: HeadDocument) -> float | None:
    seconds = (now_ms() - head.renewed_ms) / 1000
    return seconds if seconds > 2 * head.ttl_seconds else None


def in_doubt(storage: Storage, status: WorkflowStatus) -> bool:
    """Whether storage leaves open if a driver is at work: none has begun yet, or the one that did is silent."""
    return status.state == "submitted" or (status.state == "running" and silence(storage, status.id) is not None)


def holder(storage: Storage, workflow_id: str) -> str | None:
    """The driver that holds a workflow, alive or dead: only the end of its lease will tell."""
    found = read_head(storage, f"workflows/{workflow_id}")
    return found[0].owner if found is not None and found[0].state == "running" else None


def states(storage: Storage, *, name: str | None = None, seconds: float | None = None) -> dict[str, str]:
    """The states of workflows, oldest first; `silent` where one should run and nobody runs it.

    All of them, or those of this name (see `pipeline.ids.chosen`), or those of the last `seconds`. The index alone is
    asked, and HEAD of those that run.
    """
    known = listed(storage)
    if name is not None or seconds is not None:
        known = {found: known[found] for found in chosen(storage, known, name=name, seconds=seconds)}
    running = [found for found, state in known.items() if state == "running"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        now = dict(zip(running, pool.map(partial(_running_state, storage), running), strict=True))
    return {found: now.get(found, known[found]) for found in by_age(storage, known)}


def _running_state(storage: Storage, workflow_id: str) -> str:
    """Of a workflow that the index has as running."""
    found = read_head(storage, f"workflows/{workflow_id}")
    if found is not None and found[0].state != "running":
        # Its driver ended between the two, and could not tell the index.
        return found[0].state
    return "silent" if found is not None and _silence(found[0]) is not None else "running"


def find(storage: Storage, wanted: str | None) -> str:
    """The id of the one workflow that `wanted` begins, or of the newest: see `match_id`. Lists as little as it can."""
    beginning = wanted or ""
    return match_id(storage, [] if "/" in beginning else list(listed(storage, beginning)), wanted)


def match_id(storage: Storage, known: list[str], wanted: str | None) -> str:
    """The workflow id that `wanted` begins, or the newest one. Raises UserError where none or several match."""
    if wanted is None:
        if not known:
            raise UserError(f"no workflow in {storage.url} yet: submit one, for example `patchline submit digits`")
        return by_age(storage, known)[-1]
    if wanted in known:
        return wanted
    matches = [name for name in known if name.startswith(wanted)]
    if len(matches) != 1:
        found = (
            f"{len(matches)} match: {', '.join(matches)}" if matches else "none matches; `patchline list` shows them"
        )
        raise UserError(f"no single workflow '{wanted}' in {storage.url}: {found}")
    return matches[0]


def stage_tables(storage: Storage, status: WorkflowStatus) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The tables in the records of a workflow's finished stages, by stage."""
    tables: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for stage in status.stages.values():
        if stage.outcome in ("done", "reused") and stage.folder:
            head = read_head(storage, stage.folder)
            if head is not None and head[0].record is not None:
                tables[stage.name] = dict(read_record(storage, head[0].record).tables)
    return tables
