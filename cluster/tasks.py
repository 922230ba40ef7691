"""A function over items: as Ray tasks on a cluster, in this process without one."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cluster.errors import UserError
from cluster.gang import most_workers

AHEAD = 4
"""Tasks that are submitted for each of the cluster's CPUs: enough to keep it busy, and memory stays flat."""
LOOK_SECONDS = 5.0
"""Between two looks at how many CPUs there are."""


def map_tasks(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    label: str,
    cpus: float = 1,
    gpus: float = 0,
    ray: bool = False,
    retries: int = 3,
) -> Iterator[Any]:
    """`function` over `items`, which are taken as they are needed; yields results in order.

    With `ray`, each item is a task with these `cpus` and `gpus`, tried again elsewhere `retries` times when its worker
    dies. `label` names the tasks on Ray's page. A UserError of a task is raised as such, and no further
    task is submitted.
    """
    if not ray:
        yield from map(function, items)
        return
    from cluster.connect import connect

    handle = connect()
    if not most_workers(cpus, gpus):
        # A machine may still join; otherwise nobody would know why nothing happens.
        asked = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        print(f"{label}: waits, since no machine of the cluster has {asked}", flush=True)
    task = handle.remote(_run).options(num_cpus=cpus, num_gpus=gpus, max_retries=retries, name=label)
    ahead, looked = AHEAD, -math.inf
    pending: deque[Any] = deque()
    remaining = iter(items)
    # What is submitted when a task or the caller gives up runs on, or ends with the driver: cancelling a task
    # just as it finishes makes Ray (2.60) abort the driver's process.
    while True:
        if time.monotonic() - looked > LOOK_SECONDS:
            # Of a cluster that grows: what waits is what it grows by.
            ahead, looked = max(AHEAD, AHEAD * int(handle.cluster_resources().get("CPU", 1))), time.monotonic()
        while len(pending) < ahead and (item := next(remaining, _END)) is not _END:
            pending.append(task.remote(function, item))
        if not pending:
            return
        outcome, value = handle.get(pending.popleft())
        if outcome == "user error":
            raise UserError(value)
        yield value


WARM = 4
"""Processes that are started for tasks before there are any."""


def warm_up(function: Callable[[Any], Any]) -> None:
    """Start a few of the cluster's processes for tasks in the background, and let each call `function(None)`.

    A process takes two seconds to start and to import what its first task needs; a caller that has
    something else to do meanwhile need not wait for that.
    """
    from cluster.connect import connect

    handle = connect()
    task = handle.remote(_run).options(num_cpus=1, max_retries=0, name="warm-up")
    for _ in range(min(WARM, int(handle.cluster_resources().get("CPU", 1)))):
        task.remote(function, None)


_END = object()


def _run(function: Callable[[Any], Any], item: Any) -> tuple[str, Any]:
    # A user's mistake comes back as a value: raised, it would arrive wrapped in Ray's own exception.
    try:
        return "done", function(item)
    except UserError as error:
        return "user error", str(error)
