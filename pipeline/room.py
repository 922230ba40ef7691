"""Room for gangs on the cluster: waiting until there is enough, in sight, and noticing when there is more."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.demand import Demand
from cluster.gang import free_workers, most_workers
from pipeline.worker import request_stop

if TYPE_CHECKING:
    from pipeline.stage_run import Drive

LOOK_SECONDS = 1.0
"""Between two looks at a cluster that has no room."""
SOON_SECONDS, SOON_LOOK_SECONDS = 3.0, 0.1
"""So long at first one looks more often: what ran before takes a moment to be gone."""
SAY_AGAIN_SECONDS = 300.0
"""Longest time between two words on a wait that goes on; the first ones come sooner, each after twice the time."""
SETTLED_SECONDS = 3.0
"""Room that has not grown for so long is what there is."""
GROWTH_SECONDS = 60.0
"""Between two looks at a cluster that may have room for more workers, and how long a gang is left in peace first;
unless PATCHLINE_GROWTH_SECONDS says otherwise."""


CLAIM_SECONDS = 15.0
"""A gang that began so long ago has its room, and what the cluster says is free is free."""


class Door:
    """Through which gangs of stages that run side by side come to the cluster's room, one after the other.

    Those of a higher priority first, then those that came first. A gang takes some seconds until the cluster
    counts it: until then it is a claim, which the next one leaves free.
    """

    def __init__(self) -> None:
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._line: dict[str, tuple[bool, int, int]] = {}
        self._claims: dict[str, tuple[dict[str, float], float]] = {}

    def come(self, stage: str, priority: int) -> None:
        """Stand in line."""
        with self._lock:
            self._line[stage] = (False, -priority, next(self._numbers))

    def first(self, stage: str) -> bool:
        """Whether no other stage is before this one."""
        with self._lock:
            return self._first() == stage

    def _first(self) -> str:
        return min(self._line, key=lambda name: self._line[name])

    def let_pass(self, stage: str, hopeless: bool) -> None:
        """Let all others go first while the cluster is too small for this one, whatever ends."""
        with self._lock:
            self._line[stage] = (hopeless, *self._line[stage][1:])

    def leave(self, stage: str) -> None:
        """Stand in line no more."""
        with self._lock:
            self._line.pop(stage, None)

    def room_for(self, stage: str, free: int, cpus: float, gpus: float, memory: float = 0.0) -> int:
        """Of `free` workers of this size, those that `stage` may have: none while another one is before it."""
        with self._lock:
            if self._first() != stage:
                return 0
            new = [claim for claim, since in self._claims.values() if time.monotonic() - since < CLAIM_SECONDS]
            asked = {"cpus": cpus, "gpus": gpus, "memory": memory}
            # On whichever machines they are: those with other labels are counted too, for these few seconds.
            taken = max(sum(claim[what] for claim in new) / size for what, size in asked.items() if size)
            return max(0, free - math.ceil(taken))

    def enter(self, stage: str, cpus: float, gpus: float, memory: float = 0.0) -> None:
        """Go in, with a gang of so much in all; `memory` in GB."""
        with self._lock:
            self._line.pop(stage, None)
            self._claims[stage] = ({"cpus": cpus, "gpus": gpus, "memory": memory}, time.monotonic())

    def left(self, stage: str) -> None:
        """The gang has ended."""
        with self._lock:
            self._claims.pop(stage, None)


def wait_for_room(drive: Drive, stage: str, config: Any, workers: int | list[int]) -> bool:
    """Wait until the cluster has room for the fewest workers; returns False where the workflow is stopped first.

    Another stage may have to end, or machines to come: that is no error, and it is said what is waited for.
    """
    fewest, most = (workers, workers) if isinstance(workers, int) else (workers[0], workers[-1])
    cpus, gpus = config.cpus_per_worker, float(config.gpus_per_worker)
    memory, labels = float(getattr(config, "memory_per_worker", 0.0)), dict(getattr(config, "node_label", {}))
    placed = {"memory": memory, "labels": labels}
    began, said, again = time.monotonic(), -1, math.inf
    drive.door.come(stage, config.priority)
    demand = Demand(fewest, cpus, gpus, **placed)
    try:
        while (free := drive.door.room_for(stage, free_workers(cpus, gpus, **placed), cpus, gpus, memory)) < fewest:
            if drive.keeper.stop.is_set():
                return False
            if demand.found() or not drive.door.first(stage):
                # There for it to start with; or another stage is to have what comes next.
                demand.withdraw()
            held, seconds = most_workers(cpus, gpus, **placed), time.monotonic() - began
            drive.door.let_pass(stage, held < fewest)
            # Workers of the gang before take a moment to be gone: no reason to say anything.
            if seconds > 5 * LOOK_SECONDS and drive.door.first(stage):
                demand.ask()
            if seconds > 5 * LOOK_SECONDS and (free != said or seconds >= again):
                said, again = free, seconds + min(seconds, SAY_AGAIN_SECONDS)
                size = {"cpus": cpus, "gpus": gpus, **placed, "seconds": seconds}
                drive.events.append("waiting_for_room", stage, workers=fewest, free=free, most=held, **size)
            drive.keeper.stop.wait(SOON_LOOK_SECONDS if seconds < SOON_SECONDS else LOOK_SECONDS)
        taken = min(free, most)
        drive.door.enter(stage, taken * cpus, taken * gpus, taken * memory)
        return True
    finally:
        demand.withdraw()
        drive.door.leave(stage)


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
        memory: float = 0.0,
        labels: Mapping[str, str] | None = None,
        usable: Callable[[int], int],
    ) -> None:
        self._drive, self._prefix, self._usable = drive, prefix, usable
        self._most = workers[1]
        self._free = partial(free_workers, cpus, gpus, memory=memory, labels=labels)
        room = max(workers[0], min(self._most, _settled(self._free, enough=self._most)))
        self.workers = usable(room)
        # With fewer than the fewest, all that there is room for are started, and some idle.
        self.workers = self.workers if self.workers >= workers[0] else room
        larger = next((n for n in range(self.workers + 1, self._most + 1) if usable(n) > usable(self.workers)), 0)
        self._demand = Demand(max(0, larger - self.workers), cpus, gpus, memory=memory, labels=labels)
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
        with self._demand as demand:
            while not self._closed.wait(seconds) and not self._grown(demand):
                pass

    def _grown(self, demand: Demand) -> bool:
        """Ask for the next larger gang's room, and have this one stop where it is there."""
        try:
            demand.ask()
            room = min(self._most, self.workers + self._free() + demand.found())
            if self._usable(room) > self._usable(self.workers):
                request_stop(self._drive.storage, self._prefix, "resized")
                return True
        except Exception as error:
            # The cluster or the storage may be away for a moment; the gang is well without this.
            print(f"cannot look for more room: {error}", flush=True)
        return False


def _settled(free: Callable[[], int], *, enough: int) -> int:
    """How much room there is once it has stopped to grow: the gang before takes a moment to be gone."""
    found, since = free(), time.monotonic()
    while found < enough and time.monotonic() - since < SETTLED_SECONDS:
        time.sleep(LOOK_SECONDS / 2)
        if (now := free()) > found:
            found, since = now, time.monotonic()
    return found
