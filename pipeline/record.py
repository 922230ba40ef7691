"""Records, events and the index: the only truth about what has happened, in storage.

- `stages/<kind>/<fingerprint>/record-<n>.json` says that a stage is done and what came out;
- `workflows/<id>/events/<number>.json` tell what a workflow's drivers did, one event a file;
- `index/states/<id>.<epoch>.<number>-<state>` holds a workflow's state in a key name, so that a list needs no
  reads; the newest entry counts, and those before it are removed, so that there is one key for a workflow.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, JsonValue

from cluster.errors import check_format
from cluster.machine import cpu_name
from cluster.storage.base import Conflict, NotFound, Storage, file_digest
from stages.config import Config
from stages.context import Output, canonical_json, read_output
from stages.metrics import last_point, now_ms

FORMAT = 1
INDEX, OLD_INDEX = "index/states/", "index/workflows/"
"""Where the index is, and was: there each workflow had a folder of its own, of which some servers list few a second."""


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
    earlier_seconds: float | None = Field(default=None, description="time of the attempts before: see `seconds_before`")


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
    total = 0.0
    for number in range(attempt - 1, 0, -1):
        prefix = f"{folder}/attempts/{number}"
        note = read_note(storage, prefix)
        if note is None:
            continue
        total += _seconds(storage, prefix, note)
        if note.earlier_seconds is not None:
            # It has counted those before it.
            return total + note.earlier_seconds
    return total


def _seconds(storage: Storage, prefix: str, note: AttemptNote) -> float:
    last = last_point(storage, prefix)
    if note.started_ms is None or last is None:
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
        self._lock = threading.Lock()
        self._next = self._newest_epoch = 0
        self._unseen: list[Event] = []
        """Read, and not yet returned."""
        self.epoch: int | None = None
        """Of the driver that appends; whoever is none says nothing of what a driver does."""

    def append(self, type_: str, stage: str | None = None, **data: Any) -> Event:
        """Store one event under the next free number. Safe among threads."""
        with self._lock:
            return self._append(type_, stage, data)

    def _append(self, type_: str, stage: str | None, data: dict[str, Any]) -> Event:
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

        Those of a driver are left out where another one had taken over before: they are not what has happened. What
        was read before storage failed is returned by the next call that comes through.
        """
        while (event := self._following()) is not None:
            self._next += 1
            if event.epoch is None or event.epoch >= self._newest_epoch:
                self._newest_epoch = event.epoch or self._newest_epoch
                self._unseen.append(event)
        found, self._unseen = self._unseen, []
        return found

    def _following(self) -> Event | None:
        key = self._key(self._next)
        try:
            document = json.loads(self._storage.read(key))
        except NotFound:
            return None
        # The first events had no number of a format.
        check_format(document.get("format", FORMAT), FORMAT, key)
        return Event.model_validate(document)

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:06d}.json"


def mark(storage: Storage, workflow: str, state: str, epoch: int | None = None) -> None:
    """Put a workflow's state into the index: as its driver of this epoch, or as somebody who hands it to one.

    What a driver says after another one has taken over has a lower epoch, and is not the newest.
    """
    entries = _entries(storage, workflow)
    number = max((entry.number for entry in entries.values()), default=-1) + 1
    own = epoch if epoch is not None else max((entry.epoch for entry in entries.values()), default=0)
    new = _Entry(own, number, state)
    key = f"{INDEX}{workflow}.{own:06d}.{number:06d}-{state}"
    storage.write(key, b"")
    newest = max([new, *entries.values()])
    # After the new one is there, so that no reader finds none; never the newest, whoever wrote it.
    for old in [key for key, entry in {**entries, key: new}.items() if entry < newest]:
        storage.delete(old)


def unlist(storage: Storage, workflow: str) -> None:
    """Take a workflow out of the index."""
    for key in _entries(storage, workflow):
        storage.delete(key)


def listed(storage: Storage, beginning: str = "") -> dict[str, str]:
    """The newest state of every workflow whose id begins so, by id, in the order of the ids. Reads nothing."""
    newest: dict[str, _Entry] = {}
    # The old ones first: whoever replaces one meanwhile has written the new one before.
    for key in chain(storage.list(f"{OLD_INDEX}{beginning}"), storage.list(f"{INDEX}{beginning}")):
        workflow, entry = _parsed(key)
        newest[workflow] = max(newest.get(workflow, entry), entry)
    return {workflow: newest[workflow].state for workflow in sorted(newest)}


class _Entry(NamedTuple):
    epoch: int
    number: int
    state: str


def _entries(storage: Storage, workflow: str) -> dict[str, _Entry]:
    keys = chain(storage.list(f"{OLD_INDEX}{workflow}/"), storage.list(f"{INDEX}{workflow}."))
    return {key: _parsed(key)[1] for key in keys}


def _parsed(key: str) -> tuple[str, _Entry]:
    """The workflow that a key of the index is about, and what it says. The first entries had no epoch."""
    # An id has neither points nor slashes.
    workflow, _, name = key.removeprefix(INDEX).removeprefix(OLD_INDEX).replace("/", ".", 1).partition(".")
    place, _, state = name.partition("-")
    epoch, _, number = place.rpartition(".")
    return workflow, _Entry(int(epoch or 0), int(number), state)


@cache
def builds() -> Mapping[str, str]:
    """Versions of what computes the bits: a resumed run is bit-exact where these are equal."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine(), "cpu": cpu_name()}
    found["code"] = _code()
    for package in ("torch", "deepspeed", "ray", "numpy", "pillow", "patchline"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _code() -> str:
    """Of this program's own sources, which go along with a job without a version, each package to its own place."""
    packages = [import_module(name) for name in ("cluster", "pipeline", "stages")]
    return code_digest(Path(package.__path__[0]) for package in packages)


def code_digest(modules: Iterable[Path]) -> str:
    """The beginning of a sha256 over Python sources: of modules, and of packages with all that is in them."""
    found = hashlib.sha256()
    for module in modules:
        for path in sorted(module.rglob("*.py")) if module.is_dir() else [module]:
            found.update(f"{path.relative_to(module.parent)} {file_digest(path).sha256}\n".encode())
    return found.hexdigest()[:16]
