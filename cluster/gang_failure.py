"""Why a gang failed, in few words: whose mistake it was, which rank died, which machine was lost with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.isolation import answers

PEER_IS_GONE = (
    # Of gloo, of the sockets below it, and of NCCL.
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused"),
    *("remote process exited or there was a network error", "ncclRemoteError"),
)


class GangError(Exception):
    """A worker failed. `died` tells whether a process or a machine ended, rather than code raising an exception."""

    def __init__(self, message: str, *, died: bool) -> None:
        super().__init__(message)
        self.died = died


class MachineLost(GangError):
    """At least one of the gang's machines does not answer any more."""

    def __init__(self, message: str) -> None:
        super().__init__(message, died=True)


class Ranks:
    """Which rank is on which machine, noted in a folder: by the process that starts them, for the one that waits."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / "ranks.json"

    def note(self, nodes: list[str]) -> None:
        """Ray's ids of the machines, by rank."""
        self._file.write_text(json.dumps(nodes))

    def by_machine(self) -> dict[str, list[int]]:
        """Ranks by Ray's id of their machine; empty where they never started."""
        found = dict[str, list[int]]()
        if self._file.exists():
            for rank, node in enumerate(json.loads(self._file.read_text())):
                found.setdefault(node, []).append(rank)
        return found


def explained(error: Exception, ranks: Ranks) -> UserError | GangError:
    """What to raise for Ray Train's error: the first thing that went wrong.

    A machine that is gone is asked for, since its ranks cannot say so, and those of other machines see no more than a
    connection that broke.
    """
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for cause in (cause for failure in failures.values() for cause in _causes(failure)):
        if isinstance(cause, UserError):
            return UserError(str(cause))
    lost = _lost_machines(ranks.by_machine())
    if lost:
        return MachineLost("; ".join(lost))
    told = {rank: _told(_causes(failure)) for rank, failure in sorted(failures.items())}
    deaths = {rank: text for rank, (text, died) in told.items() if died}
    # The others only saw that somebody had gone.
    lines = [f"rank {rank}{text}" for rank, text in deaths.items()] or [
        f"rank {rank}: {text}" for rank, (text, _) in told.items()
    ]
    gone = any(sign in text for text, _ in told.values() for sign in PEER_IS_GONE)
    message = "; ".join(lines) or str(error).strip().splitlines()[-1]
    return GangError(message, died=bool(deaths) or gone or not failures)


def _told(causes: list[BaseException]) -> tuple[str, bool]:
    """What is said of a rank, and whether its process has ended."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    if any(isinstance(cause, OutOfMemoryError) for cause in causes):
        return " was ended because its machine ran out of memory", True
    if any(isinstance(cause, RayActorError) and not isinstance(cause, RayTaskError) for cause in causes):
        return " died", True
    return f"{type(causes[-1]).__name__}: {causes[-1]}", False


def _causes(error: BaseException | None) -> list[BaseException]:
    """An exception and what it wraps, outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        wrapped = [getattr(error, name, None) for name in ("health_check_failure", "_base_exc", "cause", "__cause__")]
        error = next((item for item in wrapped if isinstance(item, BaseException)), None)
    return found


def _lost_machines(ranks: Mapping[str, list[int]]) -> list[str]:
    """Which of the gang's machines are gone, and with which ranks. Asked themselves: Ray's head learns it later."""
    if not ranks:
        return []
    import ray

    nodes = [node for node in ray.nodes() if node["NodeID"] in ranks]
    if not nodes:
        return []
    with ThreadPoolExecutor(len(nodes)) as pool:
        there = list(pool.map(_answers, nodes))
    gone = [node for node, answers in zip(nodes, there, strict=True) if not answers]
    return [_lost(node["NodeManagerAddress"], ranks[node["NodeID"]]) for node in gone]


def _answers(node: Mapping[str, Any]) -> bool:
    return node["Alive"] and answers((node["NodeManagerAddress"], node["NodeManagerPort"]))


def _lost(address: str, ranks: list[int]) -> str:
    names = ", ".join(str(rank) for rank in ranks)
    return f"machine {address} is lost, and with it rank{'s' if len(ranks) > 1 else ''} {names}"
