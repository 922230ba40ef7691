"""What a process of a gang does around a stage's function: open storage, ship its log, watch for the stop."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.errors import UserError, check_format
from cluster.gang import Place
from cluster.storage import NotFound, Storage, open_storage
from pipeline.head import commit_checkpoint
from pipeline.logs import LogShipper
from stages.context import Rank, Rollback, StopReason, StopRequest, canonical_json, write_fault

FORMAT = 1
POLL_SECONDS = 1.0
LOOKS_PER_SECOND = 8
"""At a request to stop, by all ranks of an attempt together: each bears a part of them where there are more ranks, and
whoever finds one first tells the others with the next update."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What every worker of an attempt is told. Picklable."""

    root: str
    folder: str
    epoch: int
    owner: str
    attempt: int
    checkpoint: str | None
    rollbacks: tuple[Rollback, ...]
    function: Callable[[Any, Rank], Any]
    argument: Any

    @property
    def prefix(self) -> str:
        return f"{self.folder}/attempts/{self.attempt}"


def enter(assignment: Assignment, place: Place) -> Any:
    """Run the stage's function as one rank. Importable, so that Ray can send it."""
    storage = open_storage(assignment.root)
    watch = StopWatch(storage, assignment.prefix, place)
    rank = Rank(
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.local_rank,
        local_world_size=place.local_world_size,
        storage=storage,
        folder=assignment.folder,
        attempt=assignment.attempt,
        checkpoint=assignment.checkpoint,
        commit_checkpoint=partial(
            commit_checkpoint,
            storage,
            assignment.folder,
            assignment.epoch,
            assignment.attempt,
            owner=assignment.owner,
        ),
        stop_requested=watch.requested,
        rollbacks=assignment.rollbacks,
        own_process=place.own_process,
    )
    watch.note = partial(write_fault, rank)
    with LogShipper(storage, f"{assignment.prefix}/logs/rank-{place.rank:04d}"):
        try:
            return assignment.function(assignment.argument, rank)
        except UserError as error:
            # What the user can mend is said; where in this program it was noticed says nothing more.
            print(f"error: {error}", file=sys.stderr)
            raise
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            raise
        finally:
            watch.close()


def request_stop(storage: Storage, prefix: str, reason: StopReason = "cancelled") -> None:
    """Ask every rank of an attempt to save and stop at its next update."""
    storage.write(f"{prefix}/STOP", canonical_json({"format": FORMAT, "reason": reason}))


def looks_at(rank: int, world_size: int) -> tuple[float, float]:
    """When a rank first looks for a request to stop, and how long it waits between two looks, in seconds."""
    interval = max(POLL_SECONDS, world_size / LOOKS_PER_SECOND)
    # Evenly spread: one after the other.
    return max(POLL_SECONDS, interval * (rank + 1) / world_size), interval


class StopWatch:
    """Looks for reasons to stop: a request in storage, from a thread of its own, and the end of this machine."""

    def __init__(self, storage: Storage, prefix: str, place: Place) -> None:
        self._storage, self._key, self._place = storage, f"{prefix}/STOP", place
        self.note: Callable[[str], None] = lambda found: None
        """Leaves word for the driver, for the case that this attempt does not end well."""
        self._found: StopRequest | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop-watch", daemon=True)
        self._thread.start()

    def requested(self) -> StopRequest | None:
        """The first request, once there is one."""
        interruption = self._place.interruption() if self._found is None else None
        if interruption is not None:
            reason = "preempted" if interruption.preempted else "terminated"
            self._found = StopRequest(reason=reason, notice_seconds=interruption.seconds)
            print(f"{reason}: saving a checkpoint, then stopping", flush=True)
            if interruption.seconds is not None:
                self._note(interruption.seconds)
        return self._found

    def _note(self, seconds: float) -> None:
        """Leave word of the notice, which is told where the machine is gone before the checkpoint is stored."""
        found = f"its machine was taken away with {seconds:.0f} s of notice, too few for a checkpoint: ask for more"
        try:
            self.note(found)
        except Exception as error:
            print(f"cannot leave word of the notice: {error}", flush=True)

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        pause, interval = looks_at(self._place.rank, self._place.world_size)
        while not self._closed.wait(pause):
            pause = interval
            try:
                body = json.loads(self._storage.read(self._key))
            except NotFound:
                continue
            except Exception as error:
                print(f"cannot look for a stop request: {error}", flush=True)
                time.sleep(POLL_SECONDS)
                continue
            check_format(body["format"], FORMAT, self._key)
            self._found = self._found or StopRequest(reason=body["reason"])
            return
