"""Every machine of a Ray cluster, asked by a process of its own there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError

PINGS = 10


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a machine has answered: `value`, or `error` where there is none."""

    node: str
    """Its address."""
    value: Any = None
    error: str = ""


class Nodes:
    """A process on each machine that is alive, which takes no room from others. Close it."""

    def __init__(self, *, start_seconds: float = 120.0) -> None:
        from cluster.connect import connect

        self._ray = connect()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = [node for node in self._ray.nodes() if node["Alive"]]
        self.resources: dict[str, Mapping[str, float]] = {}
        """Of each machine, by its address."""
        self._probes: dict[str, Any] = {}
        for node in sorted(alive, key=lambda node: node["NodeManagerAddress"]):
            # Several raylets may share an address, in tests and on large machines.
            name = _unused(node["NodeManagerAddress"], self._probes)
            there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            self._probes[name] = self._ray.remote(_Probe).options(num_cpus=0, scheduling_strategy=there).remote()
            self.resources[name] = node["Resources"]
        self._start_seconds = start_seconds
        self.silent = self._start()
        """Addresses of machines on which no process could be started in time."""

    def each(self, function: Callable[[Any], Any], arguments: Mapping[str, Any], *, seconds: float) -> list[Answer]:
        """`function` of a machine's own argument on all of them at once, which have so many seconds for it."""
        asked = {name: probe.call.remote(function, arguments[name]) for name, probe in self._probes.items()}
        deadline = time.monotonic() + seconds
        return [self._answer(name, handle, deadline, seconds) for name, handle in asked.items()]

    def clocks(self) -> dict[str, tuple[float, float]]:
        """By machine, how far its clock is ahead of this process's, and how far that may be wrong, in seconds."""
        found = {}
        for name, probe in self._probes.items():
            rounds = []
            for _ in range(PINGS):
                began = time.time()
                there = self._ray.get(probe.now.remote())
                ended = time.time()
                rounds.append(((ended - began) / 2, there - (began + ended) / 2))
            uncertain, ahead = min(rounds)
            found[name] = (ahead, uncertain)
        return found

    def close(self) -> None:
        """End the processes."""
        for probe in self._probes.values():
            self._ray.kill(probe)

    def _start(self) -> list[str]:
        asked = {name: probe.now.remote() for name, probe in self._probes.items()}
        ready, _ = self._ray.wait(list(asked.values()), num_returns=len(asked), timeout=self._start_seconds)
        silent = [name for name, handle in asked.items() if handle not in ready]
        for name in silent:
            self._ray.kill(self._probes.pop(name))
        return silent

    def _answer(self, name: str, handle: Any, deadline: float, seconds: float) -> Answer:
        from ray.exceptions import GetTimeoutError, RayError

        try:
            outcome, value = self._ray.get(handle, timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError:
            return Answer(node=name, error=f"no answer within {seconds:.0f} s")
        except RayError as error:
            return Answer(node=name, error=str(error).strip().splitlines()[-1])
        return Answer(node=name, value=value) if outcome == "done" else Answer(node=name, error=value)


class _Probe:
    """The process on a machine."""

    def now(self) -> float:
        return time.time()

    def call(self, function: Callable[[Any], Any], argument: Any) -> tuple[str, Any]:
        # As a value: raised, it would arrive wrapped in Ray's own exception.
        try:
            return "done", function(argument)
        except (UserError, OSError) as error:
            return "error", str(error)


def _unused(address: str, taken: Mapping[str, Any]) -> str:
    names = (address, *(f"{address}-{number}" for number in range(2, len(taken) + 2)))
    return next(name for name in names if name not in taken)
