"""What is asked and measured of every machine of a cluster, from a job on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cluster.errors import UserError
from cluster.preflight.machine import Asked, Machine, look

if TYPE_CHECKING:
    from cluster.nodes import Nodes
    from stages.training.reduction import Ranked

START_SECONDS = 120.0
"""In which a process has to start on each machine."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long to measure, in seconds."""

    reduction: float = 120.0
    storage: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What a job on the cluster has found."""

    machines: dict[str, Machine]
    """By their addresses."""
    errors: dict[str, str]
    """What machines said that could not answer, by their addresses."""
    clocks: dict[str, tuple[float, float]]
    """How far each machine's clock is ahead of the driver's, and how far that may be wrong, in seconds."""
    ranks: list[Ranked]
    """Of the gang that was measured; empty where there was no room for one."""
    unmeasured: str = ""
    """Why there was none, or not all of it."""


def surveyed(asked: Asked, length: Length) -> Surveyed:
    """Ask every machine of the cluster that RAY_ADDRESS names, and measure a gang on it."""
    from cluster.nodes import Nodes

    nodes = Nodes(start_seconds=START_SECONDS)
    try:
        errors = dict.fromkeys(nodes.silent, f"no process could be started within {START_SECONDS:.0f} s")
        # Longer than it takes on a storage that is slow beyond use.
        answers = nodes.each(look_there, questions(asked, nodes.resources), seconds=120 + 4 * length.storage)
        clocks = nodes.clocks()
        ranks, unmeasured = _measured(nodes, length)
    finally:
        nodes.close()
    return Surveyed(
        machines={answer.node: answer.value for answer in answers if not answer.error},
        errors=errors | {answer.node: answer.error for answer in answers if answer.error},
        clocks=clocks,
        ranks=ranks,
        unmeasured=unmeasured,
    )


def questions(asked: Asked, resources: Mapping[str, Mapping[str, float]]) -> dict[str, Asked]:
    """What each machine is asked, by its address: one with GPUs, as its ranks will fetch shards.

    Where others have GPUs, one without has no shards, and fetches as a single rank does.
    """
    from stages.data.fetch_ahead import THREADS

    gpus = {name: int(own.get("GPU", 0)) for name, own in resources.items()}
    caches = {name: asked.caches if own or not any(gpus.values()) else () for name, own in gpus.items()}
    return {name: replace(asked, at_once=THREADS * max(1, own), caches=caches[name]) for name, own in gpus.items()}


def look_there(asked: Asked) -> Machine:
    """The machine that this runs on. An empty name among the caches is its own default, below its temporary folder."""
    from stages.data.cache import default_folder

    return look(replace(asked, caches=tuple(folder or str(default_folder()) for folder in asked.caches)))


def _measured(nodes: Nodes, length: Length) -> tuple[list[Ranked], str]:
    """A rank for each GPU that is free or, where there are none, one for each machine; else why there are none."""
    from cluster.gang import GangError, free_workers, run_gang
    from stages.training.reduction import Reduction, measure_collectives

    gpus = sum(int(own.get("GPU", 0)) for own in nodes.resources.values())
    cpus = [own.get("CPU", 0.0) for own in nodes.resources.values() if own.get("CPU", 0.0) >= 1]
    if not gpus and not cpus:
        return [], "no machine of the cluster has a CPU or GPU for a worker"
    each, gpu = (1.0, 1.0) if gpus else (float(min(cpus)), 0.0)
    room = free_workers(each, gpu)
    if not room:
        return [], "others use the cluster: there is no room for a worker to measure with"
    asked = Reduction(seconds=length.reduction, megabytes=256 if gpus else 16, gpus=bool(gpus))
    try:
        ranks = run_gang(measure_collectives, asked, workers=room, cpus=each, gpus=gpu, name="preflight")
    except (GangError, UserError) as error:
        return [], str(error)
    wanted = gpus or len(cpus)
    return ranks, f"{room} of {wanted} were free" if room < wanted else ""
