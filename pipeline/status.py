"""What has happened to a workflow, folded from its events and its stages' HEADs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.head import read_head
from pipeline.logs import LogReader
from pipeline.record import Event, EventLog, listed, read_record
from stages.metrics import now_ms


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

    @property
    def prefix(self) -> str | None:
        """Key prefix of the newest attempt."""
        return f"{self.folder}/attempts/{self.attempt}" if self.folder and self.attempt else None


@dataclass(kw_only=True)
class WorkflowStatus:
    """A workflow: `state` is submitted, running, done, failed or stopped."""

    id: str
    state: str = "submitted"
    stages: dict[str, StageStatus] = field(default_factory=dict)
    message: str = ""

    def apply(self, event: Event) -> None:
        """Take one more event into account."""
        if event.type == "driver_submitted" and self.state != "running":
            self.state, self.message = "submitted", ""
        elif event.type == "workflow_started":
            self.state, self.message = "running", ""
        elif event.type == "workflow_ended":
            self.state, self.message = str(event.data["state"]), str(event.data.get("message", ""))
        elif event.type == "waiting" and event.stage is None:
            self.message = _waiting(event.data)
        if event.stage is not None:
            _apply(self.stages.setdefault(event.stage, StageStatus(name=event.stage)), event)


def _apply(stage: StageStatus, event: Event) -> None:
    data: dict[str, Any] = event.data
    if event.type == "stage_started":
        stage.outcome, stage.folder = "running", data["folder"]
        stage.started_ms, stage.message = event.time_ms, ""
    elif event.type == "attempt_started":
        stage.attempt, stage.folder = data["attempt"], data["folder"]
        stage.message = origin(data)
    elif event.type == "waiting":
        stage.message = _waiting(data)
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


def _room(data: Mapping[str, Any]) -> str:
    what = f"{data['gpus']:g} GPU" if data["gpus"] else f"{data['cpus']:g} CPU"
    workers = f"{data['workers']} worker{'s' if data['workers'] > 1 else ''} of {what} each"
    return f"waiting for room for {workers}; the cluster has room for {data['most']}, {data['free']} of them free"


def _gang(data: Mapping[str, Any]) -> str:
    idle = data["room"] - data["working"]
    return f"{data['working']} of {data['most']} workers" + (
        f"; room for {idle} more, which would idle" if idle else ""
    )


def _interrupted(data: Mapping[str, Any]) -> str:
    if data["reason"] == "resized":
        return "there is room for more workers: going on with them"
    why = "its machine is taken away" if data["reason"] == "preempted" else "it was sent SIGTERM"
    notice, took = data["notice_seconds"], data["save_seconds"]
    if notice is not None and took > notice:
        why += f"; saving took {took:.0f} s, and the notice was {notice:.0f} s: ask for a longer one"
    return f"saved a checkpoint, since {why}; going on"


def _rolled_back(data: Mapping[str, Any]) -> str:
    return f"went back at update {data['update']}: {data['reason']}; samples {data['start']} to {data['stop']} left out"


TOLD: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "waiting_for_room": _room,
    "gang": _gang,
    "stage_interrupted": _interrupted,
    "stage_rolled_back": _rolled_back,
    "checkpoint_refused": lambda data: (
        data["reason"] + ("; the checkpoint before it is used" if data["left"] else "; there is none before it")
    ),
}
"""What is said of events that a running stage lives through, by their type."""


def _waiting(data: Mapping[str, Any]) -> str:
    return f"waiting for {data['holder']} to end or to be silent for {data['ttl_seconds']} s"


def origin(data: Mapping[str, Any]) -> str:
    """Where an attempt starts from, given the data of its event, and what keeps it from the same bits."""
    if not data["checkpoint"]:
        return ""
    differs = data.get("differs")
    return f"from update {data['checkpoint']['update']}" + (f", not bit-exact: {', '.join(differs)}" if differs else "")


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


def silence(storage: Storage, workflow_id: str) -> float | None:
    """Seconds for which a running workflow's driver has given no sign of life, where they are too many.

    It compares this machine's clock with the driver's: a hint for people, on which nothing else rests.
    """
    found = read_head(storage, f"workflows/{workflow_id}")
    if found is None or found[0].state != "running":
        return None
    seconds = (now_ms() - found[0].renewed_ms) / 1000
    return seconds if seconds > 2 * found[0].ttl_seconds else None


def in_doubt(storage: Storage, status: WorkflowStatus) -> bool:
    """Whether storage leaves open if a driver is at work: none has begun yet, or the one that did is silent."""
    return status.state == "submitted" or (status.state == "running" and silence(storage, status.id) is not None)


def holder(storage: Storage, workflow_id: str) -> str | None:
    """The driver that holds a workflow, alive or dead: only the end of its lease will tell."""
    found = read_head(storage, f"workflows/{workflow_id}")
    return found[0].owner if found is not None and found[0].state == "running" else None


def states(storage: Storage) -> dict[str, str]:
    """The state of every workflow, oldest first; `silent` where one should run and nobody runs it."""
    known = listed(storage)
    silent = [name for name, state in known.items() if state == "running" and silence(storage, name) is not None]
    by_age = sorted(known, key=lambda name: name.split("-")[-3:])
    return {name: "silent" if name in silent else known[name] for name in by_age}


def match_id(storage: Storage, known: list[str], wanted: str | None) -> str:
    """The workflow id that `wanted` begins, or the newest one. Raises UserError where none or several match."""
    if wanted is None:
        if not known:
            raise UserError(f"no workflow in {storage.url} yet: submit one, for example `patchline submit digits`")
        return max(known, key=lambda name: name.split("-")[-3:])
    if wanted in known:
        return wanted
    matches = [name for name in known if name.startswith(wanted)]
    if len(matches) != 1:
        found = f"{len(matches)} match: {', '.join(matches)}" if matches else "none matches"
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


def workflow_logs(
    storage: Storage,
    workflow_id: str,
    stage: str | None,
    *,
    follow: bool,
    ask: Callable[[StatusReader], None] = lambda reader: None,
) -> Iterator[str]:
    """The stored log of a workflow's drivers, or of the newest attempt of one stage, as it grows.

    `ask` is called where storage leaves open whether a driver is at work. Where it finds that the driver has
    died, the log ends with the reason.
    """
    reader = StatusReader(storage, workflow_id, [])
    readers: dict[str, LogReader] = {}
    while True:
        reader.update()
        ask(reader)
        for prefix in _log_prefixes(storage, workflow_id, reader.status, stage):
            yield readers.setdefault(prefix, LogReader(storage, prefix)).new_text()
        ended = reader.status.state in ("done", "failed", "stopped")
        if ended and reader.status.message:
            yield f"{reader.status.message}\n"
        if ended or not follow:
            return
        time.sleep(1.0)


def _log_prefixes(storage: Storage, workflow_id: str, status: WorkflowStatus, stage: str | None) -> list[str]:
    if stage is None:
        folder = f"workflows/{workflow_id}/logs"
    else:
        found = status.stages.get(stage)
        if found is None or found.prefix is None:
            ran = [name for name, item in status.stages.items() if item.prefix]
            raise UserError(f"stage '{stage}' has no log in {workflow_id}; stages that ran: {', '.join(ran) or 'none'}")
        folder = f"{found.prefix}/logs"
    return [f"{folder}/{name}" for name in storage.list_folders(f"{folder}/")]
