"""Records, events and the index: the only truth about what has happened, in storage.

- `stages/<kind>/<fingerprint>/record-<n>.json` says that a stage is done and what came out;
- `workflows/<id>/events/<number>.json` tell what a workflow's drivers did, one event a file;
- `index/workflows/<id>/<number>-<state>` holds states in key names, so that a list needs no reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, JsonValue

from cluster.errors import check_format
from cluster.storage.base import Conflict, NotFound, Storage
from stages.config import Config
from stages.context import Output, canonical_json, read_output
from stages.metrics import last_point, now_ms

FORMAT = 1


class RecordedInput(Config):
    """An input as it was when the stage ran."""

    fingerprint: str
    digest: str
    prefix: str


class Record(Config):
    """A finished stage."""

    format: int = FORMAT
    kind: str
    fingerprint: str
    attempt: int
    identity: dict[str, JsonValue]
    placement: dict[str, JsonValue]
    inputs: dict[str, RecordedInput]
    output_prefix: str
    output_digest: str
    metrics: dict[str, float]
    tables: dict[str, list[dict[str, JsonValue]]]
    builds: dict[str, str]
    started_ms: int
    ended_ms: int
    earlier_seconds: float = Field(default=0.0, description="time of the attempts before: see `seconds_before`")

    @property
    def seconds(self) -> float:
        """Wall time of the attempt that finished and of those before it."""
        return self.earlier_seconds + (self.ended_ms - self.started_ms) / 1000


class AttemptNote(Config):
    """Where an attempt ran and on what software: an attempt that goes on from it compares."""

    format: int = FORMAT
    placement: dict[str, JsonValue]
    builds: dict[str, str]
    started_ms: int | None = None


def write_note(storage: Storage, prefix: str, note: AttemptNote) -> None:
    """Store the note of the attempt with this key prefix, which starts now."""
    storage.write(f"{prefix}/attempt.json", note.model_copy(update={"started_ms": now_ms()}).model_dump_json().encode())


def read_note(storage: Storage, prefix: str) -> AttemptNote | None:
    """The note of an attempt, or None where it left none. Raises UserError for a newer format."""
    try:
        document = json.loads(storage.read(f"{prefix}/attempt.json"))
    except NotFound:
        return None
    check_format(document["format"], FORMAT, f"{prefix}/attempt.json")
    return AttemptNote.model_validate(document)


def seconds_before(storage: Storage, folder: str, attempt: int) -> float:
    """Wall time of a stage's attempts before this one, whatever became of them.

    One that was killed could not say when: it is counted up to its last metric point in storage, as any
    other is. So one without points counts nothing.
    """
    return sum(_seconds(storage, f"{folder}/attempts/{number}") for number in range(1, attempt))


def _seconds(storage: Storage, prefix: str) -> float:
    note, last = read_note(storage, prefix), last_point(storage, prefix)
    if note is None or note.started_ms is None or last is None:
        return 0.0
    # The clocks of two machines may differ by more than a short attempt took.
    return max(0, last.time_ms - note.started_ms) / 1000


def write_record(storage: Storage, folder: str, record: Record) -> str:
    """Store a record; returns its key. It counts once HEAD points to it."""
    key = f"{folder}/record-{record.attempt}.json"
    storage.write(key, canonical_json(record.model_dump(mode="json")))
    return key


def read_record(storage: Storage, key: str) -> Record:
    """A record by its key. Raises NotFound; UserError for a newer format."""
    document = json.loads(storage.read(key))
    check_format(document["format"], FORMAT, key)
    return Record.model_validate(document)


def recorded_output(storage: Storage, record: Record) -> Output | None:
    """The output that a record speaks of, or None where its manifest is gone or is another one."""
    try:
        output = read_output(storage, record.output_prefix)
    except NotFound:
        return None
    return output if output.digest == record.output_digest else None


class Event(Config):
    """Something that a workflow's driver did."""

    format: int = FORMAT
    number: int
    time_ms: int
    type: str
    stage: str | None = None
    epoch: int | None = None
    data: dict[str, JsonValue] = Field(default_factory=dict)


class EventLog:
    """A workflow's events. Written by whoever holds the workflow; read by anyone."""

    def __init__(self, storage: Storage, workflow: str) -> None:
        self._storage, self._prefix = storage, f"workflows/{workflow}/events/"
        self._next = self._newest_epoch = 0
        self.epoch: int | None = None
        """Of the driver that appends; whoever is none says nothing of what a driver does."""

    def append(self, type_: str, stage: str | None = None, **data: Any) -> Event:
        """Store one event under the next free number."""
        while True:
            event = Event(number=self._next, time_ms=now_ms(), type=type_, stage=stage, data=data, epoch=self.epoch)
            try:
                self._storage.write_if_absent(self._key(event.number), event.model_dump_json().encode())
            except Conflict:
                self._next += 1
                continue
            # Only now: a number whose event could not be written would end every reader's list.
            self._next += 1
            return event

    def new_events(self) -> list[Event]:
        """The events stored since the last call, in order. Raises UserError for a newer format.

        Those of a driver are left out where another one had taken over before: they are not what has happened.
        """
        events = []
        while True:
            try:
                body = self._storage.read(self._key(self._next))
            except NotFound:
                return events
            document = json.loads(body)
            # The first events had no number of a format.
            check_format(document.get("format", FORMAT), FORMAT, self._key(self._next))
            event = Event.model_validate(document)
            self._next += 1
            if event.epoch is None or event.epoch >= self._newest_epoch:
                self._newest_epoch = event.epoch or self._newest_epoch
                events.append(event)

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:06d}.json"


def mark(storage: Storage, workflow: str, state: str, epoch: int | None = None) -> None:
    """Put a workflow's state into the index: as its driver of this epoch, or as somebody who hands it to one.

    What a driver says after another one has taken over has a lower epoch, and is not the newest.
    """
    prefix = f"index/workflows/{workflow}/"
    entries = [_entry(key.removeprefix(prefix)) for key in storage.list(prefix)]
    number = max((entry[1] for entry in entries), default=-1) + 1
    own = epoch if epoch is not None else max((entry[0] for entry in entries), default=0)
    storage.write(f"{prefix}{own:06d}.{number:06d}-{state}", b"")


def listed(storage: Storage) -> dict[str, str]:
    """The newest state of every workflow, by id, oldest first."""
    newest: dict[str, tuple[int, int, str]] = {}
    for key in storage.list("index/workflows/"):
        _, _, workflow, name = key.split("/")
        newest[workflow] = max(newest.get(workflow, (-1, -1, "")), _entry(name))
    return {workflow: state for workflow, (_, _, state) in newest.items()}


def _entry(name: str) -> tuple[int, int, str]:
    """Epoch, number and state of an entry of the index. The first ones had no epoch."""
    place, _, state = name.partition("-")
    epoch, _, number = place.rpartition(".")
    return int(epoch or 0), int(number), state


def builds() -> Mapping[str, str]:
    """Versions of what computes the bits: a resumed run is bit-exact where these are equal."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine(), "cpu": _cpu()}
    for package in ("torch", "deepspeed", "numpy", "pillow", "patchline"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu() -> str:
    """What the processor calls itself: another kind may sum in another order."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        return "unknown"
    return names[0] if names else "unknown"
