"""What a process of a gang does around a stage's function: open storage, ship its log, watch for the stop."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.gang import Place
from cluster.storage import Storage, open_storage
from pipeline.head import commit_checkpoint
from pipeline.logs import LogShipper
from stages.context import Rank

POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What every worker of an attempt is told. Picklable."""

    root: str
    folder: str
    epoch: int
    attempt: int
    checkpoint: str | None
    function: Callable[[Any, Rank], Any]
    argument: Any

    @property
    def prefix(self) -> str:
        return f"{self.folder}/attempts/{self.attempt}"


def enter(assignment: Assignment, place: Place) -> Any:
    """Run the stage's function as one rank. Importable, so that Ray can send it."""
    storage = open_storage(assignment.root)
    watch = StopWatch(storage, assignment.prefix)
    rank = Rank(
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.local_rank,
        storage=storage,
        folder=assignment.folder,
        attempt=assignment.attempt,
        checkpoint=assignment.checkpoint,
        commit_checkpoint=partial(commit_checkpoint, storage, assignment.folder, assignment.epoch, assignment.attempt),
        stop_requested=watch.requested,
    )
    with LogShipper(storage, f"{assignment.prefix}/logs/rank-{place.rank:04d}"):
        try:
            return assignment.function(assignment.argument, rank)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            raise
        finally:
            watch.close()


def request_stop(storage: Storage, prefix: str) -> None:
    """Ask every rank of an attempt to save and stop at its next update."""
    storage.write(f"{prefix}/STOP", b"")


class StopWatch:
    """Looks in storage for a request to stop, from a thread of its own."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage, self._key = storage, f"{prefix}/STOP"
        self._requested, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop-watch", daemon=True)
        self._thread.start()

    def requested(self) -> bool:
        return self._requested.is_set()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            try:
                if self._storage.stat(self._key) is not None:
                    self._requested.set()
                    return
            except Exception as error:
                print(f"cannot look for a stop request: {error}", flush=True)
                time.sleep(POLL_SECONDS)
