"""One importable function on N workers at once, through Ray Train; in this process when N is 0."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from cluster.signals import kept_handlers

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


class GangError(Exception):
    """A worker failed. `died` tells whether its process ended, rather than its code raising an exception."""

    def __init__(self, message: str, *, died: bool) -> None:
        super().__init__(message)
        self.died = died


def run_gang(
    function: Callable[[Any, Place], Any],
    argument: Any,
    *,
    workers: int,
    cpus: float,
    gpus: float = 0,
    name: str,
) -> Any:
    """`function(argument, place)` on each worker; returns rank 0's value.

    `cpus` and `gpus` are reserved per worker. Workers have the environment of the Ray job that this
    process belongs to. There are no retries here. Raises UserError where a worker raised one, else GangError.
    """
    if workers == 0:
        return function(argument, Place(rank=0, world_size=1, local_rank=0))
    from cluster.connect import connect

    connect()
    os.environ.update(QUIET)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from cluster.rendezvous import Rendezvous

    resources = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    with tempfile.TemporaryDirectory(prefix="patchline-gang-") as folder:
        trainer = DataParallelTrainer(
            _on_worker,
            backend_config=Rendezvous(),
            train_loop_config={"function": function, "argument": argument},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources),
            run_config=RunConfig(
                name=name,
                # Nothing is reported to Ray Train; it keeps its own notes here, on the driver's node.
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        try:
            with kept_handlers():
                return trainer.fit().return_value
        except TrainingFailedError as error:
            raise _explained(error) from None


def _on_worker(config: dict[str, Any]) -> Any:
    from ray.train import get_context

    from cluster.rendezvous import own_variables

    context = get_context()
    os.environ.update(own_variables(context))
    place = Place(
        rank=context.get_world_rank(), world_size=context.get_world_size(), local_rank=context.get_local_rank()
    )
    return config["function"](config["argument"], place)


def _explained(error: Exception) -> UserError | GangError:
    """The first thing that went wrong, in few words."""
    from ray.exceptions import RayActorError, RayTaskError

    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for cause in (cause for failure in failures.values() for cause in _causes(failure)):
        if isinstance(cause, UserError):
            return UserError(str(cause))
    lines, died = [], not failures
    for rank, failure in sorted(failures.items()):
        causes = list(_causes(failure))
        if any(isinstance(cause, RayActorError) and not isinstance(cause, RayTaskError) for cause in causes):
            died = True
            lines.append(f"rank {rank} died")
        else:
            lines.append(f"rank {rank}: {type(causes[-1]).__name__}: {causes[-1]}")
    return GangError("; ".join(lines) or str(error).strip().splitlines()[-1], died=died)


def _causes(error: BaseException | None) -> list[BaseException]:
    """An exception and what it wraps, outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        wrapped = [getattr(error, name, None) for name in ("health_check_failure", "_base_exc", "cause", "__cause__")]
        error = next((item for item in wrapped if isinstance(item, BaseException)), None)
    return found
