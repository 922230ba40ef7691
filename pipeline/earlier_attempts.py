"""The attempts of a workflow's earlier drivers, as its events tell: MLflow may have heard nothing of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from pipeline.head import read_head
from pipeline.record import EventLog, read_note, read_record


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """An attempt of a driver before this one."""

    number: int
    outcome: str
    """`done`, `failed` or `stopped`, which a killed one is too."""
    placement: dict[str, Any]
    """Empty where it left no note."""


def earlier_attempts(storage: Storage, workflow_id: str, owner: str) -> dict[tuple[str, str], list[Earlier]]:
    """By stage and the key prefix of its folder, those of the drivers before the one that calls itself so.

    To be asked once that one has told that it has started.
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
    return {place: _told(storage, place[1], attempts) for place, attempts in found.items()}


def made_by(storage: Storage, folder: str) -> int | None:
    """The attempt that a finished stage's result is of; None where it is not finished."""
    found = read_head(storage, folder)
    key = found[0].record if found is not None else None
    return read_record(storage, key).attempt if key is not None else None


def _told(storage: Storage, folder: str, attempts: dict[int, str]) -> list[Earlier]:
    """Nobody tells of the end of one that has made its stage, nor of one that was killed."""
    done = made_by(storage, folder)
    return [
        Earlier(
            number=number,
            outcome=outcome or ("done" if number == done else "stopped"),
            placement=note.placement if (note := read_note(storage, f"{folder}/attempts/{number}")) else {},
        )
        for number, outcome in attempts.items()
    ]
