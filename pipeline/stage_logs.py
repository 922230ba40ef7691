"""Logs as people ask for them: of a workflow's drivers, or of a stage, an attempt, a rank. Read from storage alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.head import read_head
from pipeline.logs import LogReader
from pipeline.status import StageStatus, StatusReader, WorkflowStatus

POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which logs are meant: the drivers' without a stage; of its newest attempt, and of all ranks, where absent."""

    stage: str | None = None
    attempt: int | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("attempt", self.attempt), ("rank", self.rank)):
            if value is not None and self.stage is None:
                raise UserError(f"--{name} {value} says nothing without --stage: the drivers' logs have neither")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some more text of one process's log. `process` is its key prefix; empty for the reason of a workflow's end."""

    process: str
    text: str


def workflow_logs(
    storage: Storage,
    workflow_id: str,
    wanted: Wanted | str | None = None,
    *,
    follow: bool,
    ask: Callable[[StatusReader], None] = lambda reader: None,
) -> Iterator[str]:
    """The text of the wanted logs, as it grows; a `str` is the name of a stage. See `log_pieces`."""
    if not isinstance(wanted, Wanted):
        wanted = Wanted(stage=wanted)
    return (piece.text for piece in log_pieces(storage, workflow_id, wanted, follow=follow, ask=ask))


def log_pieces(
    storage: Storage,
    workflow_id: str,
    wanted: Wanted,
    *,
    follow: bool,
    ask: Callable[[StatusReader], None] = lambda reader: None,
) -> Iterator[Piece]:
    """The stored logs that are wanted, as they grow; until the workflow ends with `follow`.

    `ask` is called where storage leaves open whether a driver is at work. Where it finds that the driver has
    died, the log ends with the reason. Raises UserError where there is no such stage, attempt or rank.
    """
    reader = StatusReader(storage, workflow_id, [])
    readers: dict[str, LogReader] = {}
    while True:
        reader.update()
        ask(reader)
        for prefix in _prefixes(storage, workflow_id, reader.status, wanted):
            text = readers.setdefault(prefix, LogReader(storage, prefix)).new_text()
            yield Piece(process=prefix, text=text)
        ended = reader.status.state in ("done", "failed", "stopped")
        if ended and reader.status.message:
            yield Piece(process="", text=f"{reader.status.message}\n")
        if ended or not follow:
            return
        time.sleep(POLL_SECONDS)


def _prefixes(storage: Storage, workflow_id: str, status: WorkflowStatus, wanted: Wanted) -> list[str]:
    """Key prefixes of the logs, one for each process."""
    if wanted.stage is None:
        folder = f"workflows/{workflow_id}/logs"
    else:
        folder = f"{_attempt(storage, workflow_id, status, wanted)}/logs"
    names = storage.list_folders(f"{folder}/")
    if wanted.rank is not None:
        own = f"rank-{wanted.rank:04d}"
        if own not in names:
            there = ", ".join(str(int(name.partition("-")[2])) for name in names) or "none"
            raise UserError(f"--rank {wanted.rank}: '{wanted.stage}' has no log of it; ranks with logs: {there}")
        names = [own]
    return [f"{folder}/{name}" for name in names]


def _attempt(storage: Storage, workflow_id: str, status: WorkflowStatus, wanted: Wanted) -> str:
    """Key prefix of the attempt that is meant."""
    found = status.stages.get(str(wanted.stage))
    number = wanted.attempt or _newest_attempt(storage, found)
    if found is None or found.folder is None or not number:
        ran = [name for name, item in status.stages.items() if item.folder]
        raise UserError(
            f"stage '{wanted.stage}' has no log in {workflow_id}; stages that ran: {', '.join(ran) or 'none'}"
        )
    if wanted.attempt is not None:
        there = sorted(storage.list_folders(f"{found.folder}/attempts/"), key=int)
        if str(wanted.attempt) not in there:
            raise UserError(f"--attempt {wanted.attempt}: '{wanted.stage}' has the attempts {', '.join(there) or '–'}")
    return f"{found.folder}/attempts/{number}"


def _newest_attempt(storage: Storage, stage: StageStatus | None) -> int | None:
    if stage is None or stage.folder is None:
        return None
    if stage.attempt is not None:
        return stage.attempt
    # It was reused: another workflow's drivers made the attempts.
    head = read_head(storage, stage.folder)
    return head[0].attempt if head is not None else None
