"""One importable function on N workers at once, through Ray Train; in this process when N is 0."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.gang_failure import GangError, Ranks, explained
from cluster.signals import kept_handlers, termination_asked

GB = 10**9
"""Bytes."""
NEVER = 10.0**9
"""Seconds."""
LISTENING = "PATCHLINE_MASTER_LISTEN_FD"
"""Variable of rank 0's process alone: the descriptor of the socket that listens on the gang's MASTER_PORT."""
QUIET = {
    # Ray Train prints every line of every worker a second time otherwise.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # A dead worker is noticed within a second.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the gang a worker stands."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int = 1
    """Workers of the gang on this worker's machine."""
    own_process: bool = True
    """Whether the process is this worker's alone."""
    interruption: Callable[[], Interruption | None] = lambda: None
    """Whether this worker is about to be ended. Cheap."""


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """A worker is about to be ended: its machine is taken away (preempted), or it was sent SIGTERM."""

    preempted: bool
    seconds: float | None
    """How long it has left, where that is known."""


class NoRoom(GangError):
    """The workers could not be started in time: others have taken the room. None of their code has run."""

    def __init__(self, workers: int | tuple[int, int]) -> None:
        count = workers if isinstance(workers, int) else workers[0]
        super().__init__(f"{count} workers could not be started: the cluster's room was taken meanwhile", died=False)


def run_gang(
    function: Callable[[Any, Place], Any],
    argument: Any,
    *,
    workers: int | tuple[int, int],
    cpus: float,
    gpus: float = 0,
    memory: float = 0,
    labels: Mapping[str, str] | None = None,
    name: str,
) -> Any:
    """`function(argument, place)` on each worker; returns rank 0's value.

    A pair of `workers` is the fewest and the most; as many are started as there is room for, and their number
    stays. `cpus`, `gpus` and `memory` (in GB) are reserved per worker, on machines that have the `labels`. Workers
    have the environment of the Ray job that this process belongs to. There are no retries here. Raises UserError
    where a worker raised one, NoRoom where they could not be started, else GangError.
    """
    if workers == 0:
        return function(argument, Place(rank=0, world_size=1, local_rank=0, own_process=False))
    from cluster.connect import connect

    connect()
    os.environ.update(QUIET)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import TrainingFailedError

    from cluster.rendezvous import Rendezvous
    from cluster.trainer import Trainer

    with tempfile.TemporaryDirectory(prefix="patchline-gang-") as folder:
        ranks = Ranks(folder)
        trainer = Trainer(
            _on_worker,
            backend_config=Rendezvous(ranks),
            train_loop_config={"function": function, "argument": argument},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker=resources(cpus, gpus, memory),
                label_selector=dict(labels) if labels else None,
                # Ray Train would start the functions anew in a larger gang, under the same attempt.
                elastic_resize_monitor_interval_s=NEVER,
            ),
            run_config=RunConfig(
                name=name,
                # Nothing is reported to Ray Train; it keeps its own notes here, on the driver's node.
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            ),
        )
        try:
            with kept_handlers():
                return trainer.fit().return_value
        except TrainingFailedError as error:
            # The public error has the private one in it (2.60).
            if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
                raise NoRoom(workers) from None
            raise explained(error, ranks) from None


def resources(cpus: float, gpus: float, memory: float) -> dict[str, float]:
    """What a worker reserves, as Ray calls it."""
    asked = {"CPU": cpus, "GPU": gpus, "memory": int(memory * GB)}
    return {name: amount for name, amount in asked.items() if amount}


def _on_worker(config: dict[str, Any]) -> Any:
    from ray.train import get_context

    from cluster.rendezvous import own_variables

    context = get_context()
    os.environ.update(own_variables(context))
    place = Place(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_world_size=context.get_local_world_size(),
        interruption=_interruption,
    )
    return config["function"](config["argument"], place)


def _interruption() -> Interruption | None:
    # `ray.train.get_preemption_info` waits for all ranks; what it would say stands here (2.60).
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    if info is not None:
        left = max(0.0, info.deadline_ms / 1000 - time.time()) if info.deadline_ms else None
        return Interruption(preempted=True, seconds=left)
    return Interruption(preempted=False, seconds=None) if termination_asked() else None


def free_workers(cpus: float, gpus: float = 0, *, memory: float = 0, labels: Mapping[str, str] | None = None) -> int:
    """How many workers of this size the cluster has room for just now, beside everything that runs on it.

    `memory` is in GB; `labels` are those that a worker's machine has to have.
    """
    from cluster.connect import connect

    ray = connect()
    # A worker is on one machine: what two of them have together is of no use to it. No public call tells (2.60).
    machines = ray._private.state.available_resources_per_node()
    if labels:
        suited = {node["NodeID"] for node in ray.nodes() if _has_labels(node, labels)}
        machines = {node: free for node, free in machines.items() if node in suited}
    return sum(_fitting(free, resources(cpus, gpus, memory)) for free in machines.values())


def most_workers(cpus: float, gpus: float = 0, *, memory: float = 0, labels: Mapping[str, str] | None = None) -> int:
    """How many workers of this size the cluster's machines hold when nothing else runs on them."""
    from cluster.connect import connect

    machines = [node for node in connect().nodes() if node["Alive"] and _has_labels(node, labels or {})]
    return sum(_fitting(node["Resources"], resources(cpus, gpus, memory)) for node in machines)


def _has_labels(node: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    own = node.get("Labels") or {}
    return all(own.get(key) == value for key, value in labels.items())


def _fitting(free: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """How many workers that each reserve this fit on a machine that has so much free, of what they reserve."""
    return min(int(free.get(name, 0.0) // amount) for name, amount in asked.items())
