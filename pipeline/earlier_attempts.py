"""The attempts of a workflow's earlier drivers, as its events tell: MLflow may have heard nothing of them."""

from __future__ import annotations

from typing import Any

from cluster.storage import Storage
from pipeline.head import read_head
from pipeline.record import EventLog, read_record


def earlier_attempts(storage: Storage, workflow_id: str, owner: str) -> dict[tuple[str, str], dict[int, str]]:
    """By stage and the key prefix of its folder, those of the drivers before the one that calls itself so.

    Each with its outcome, which nobody has told of one that has made its stage, nor of one that was killed: empty then.
    To be asked once that driver has told that it has started.
    """
    found: dict[tuple[str, str], dict[int, str]] = {}
    newest: dict[str | None, tuple[str, str]] = {}
    for event in EventLog(storage, workflow_id).new_events():
        data: dict[str, Any] = event.data
        if event.type == "workflow_started" and data["owner"] == owner:
            break
        if event.type == "attempt_started":
            newest[event.stage] = place = (str(event.stage), data["folder"])
            found.setdefault(place, {})[data["attempt"]] = ""
        elif event.type == "attempt_ended" and event.stage in newest:
            found[newest[event.stage]][data["attempt"]] = data["outcome"]
    return found


def outcome_of(storage: Storage, folder: str, attempt: int) -> str:
    """Of an attempt of whose end nobody has told: `done` where a finished stage's result is of it, else `stopped`."""
    found = read_head(storage, folder)
    key = found[0].record if found is not None else None
    return "done" if key is not None and read_record(storage, key).attempt == attempt else "stopped"
