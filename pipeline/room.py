"""Room for gangs on the cluster: waiting until there is enough, in sight, and noticing when there is more."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.gang import free_workers, most_workers
from pipeline.worker import request_stop

if TYPE_CHECKING:
    from pipeline.stage_run import Drive

LOOK_SECONDS = 1.0
"""Between two looks at a cluster that has no room."""
SETTLED_SECONDS = 3.0
"""Room that has not grown for so long is what there is."""
GROWTH_SECONDS = 60.0
"""Between two looks at a cluster that may have room for more workers, and how long a gang is left in peace first;
unless PATCHLINE_GROWTH_SECONDS says otherwise."""


def wait_for_room(drive: Drive, stage: str, config: Any, workers: int | list[int]) -> bool:
    """Wait until the cluster has room for the fewest workers; returns False where the workflow is stopped first.

    Another stage may have to end, or machines to come: that is no error, and it is said what is waited for.
    """
    fewest = workers if isinstance(workers, int) else workers[0]
    cpus, gpus = config.cpus_per_worker, float(config.gpus_per_worker)
    began, said = time.monotonic(), -1
    while (free := free_workers(cpus, gpus)) < fewest:
        if drive.keeper.stop.is_set():
            return False
        # Workers of the gang before take a moment to be gone: no reason to say anything.
        if free != said and time.monotonic() - began > 5 * LOOK_SECONDS:
            said, most = free, most_workers(cpus, gpus)
            drive.events.append("waiting_for_room", stage, workers=fewest, free=free, most=most, cpus=cpus, gpus=gpus)
        drive.keeper.stop.wait(LOOK_SECONDS)
    return True


class GrowthWatch:
    """Lets an elastic gang stop after a checkpoint when the cluster has come to have room for a larger one.

    A context manager. `workers` is the number to start with.
    """

    def __init__(
        self,
        drive: Drive,
        stage: str,
        prefix: str,
        workers: tuple[int, int],
        *,
        cpus: float,
        gpus: float,
        usable: Callable[[int], int],
    ) -> None:
        self._drive, self._prefix, self._usable = drive, prefix, usable
        self._most, self._size = workers[1], (cpus, gpus)
        room = max(workers[0], min(self._most, _settled(lambda: free_workers(cpus, gpus), enough=self._most)))
        self.workers = usable(room)
        # With fewer than the fewest, all that there is room for are started, and some idle.
        self.workers = self.workers if self.workers >= workers[0] else room
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="growth-watch", daemon=True)
        drive.events.append("gang", stage, workers=self.workers, room=room, most=self._most, working=usable(room))

    def __enter__(self) -> GrowthWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _run(self) -> None:
        seconds = float(os.environ.get("PATCHLINE_GROWTH_SECONDS", GROWTH_SECONDS))
        while not self._closed.wait(seconds):
            try:
                room = min(self._most, self.workers + free_workers(*self._size))
                if self._usable(room) > self._usable(self.workers):
                    request_stop(self._drive.storage, self._prefix, "resized")
                    return
            except Exception as error:
                # The cluster or the storage may be away for a moment; the gang is well without this.
                print(f"cannot look for more room: {error}", flush=True)


def _settled(free: Callable[[], int], *, enough: int) -> int:
    """How much room there is once it has stopped to grow: the gang before takes a moment to be gone."""
    found, since = free(), time.monotonic()
    while found < enough and time.monotonic() - since < SETTLED_SECONDS:
        time.sleep(LOOK_SECONDS / 2)
        if (now := free()) > found:
            found, since = now, time.monotonic()
    return found
