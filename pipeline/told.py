"""What is said of a workflow's events, in a line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.record import Event


def _room(data: Mapping[str, Any]) -> str:
    # Events of before have no memory, labels and seconds.
    what = [f"{data['gpus']:g} GPU" if data["gpus"] else f"{data['cpus']:g} CPU"]
    what += [f"{data['memory']:g} GB"] if data.get("memory") else []
    labels = ", ".join(f"{key}={value}" for key, value in (data.get("labels") or {}).items())
    each = f"{' and '.join(what)} each" + (f", on machines with {labels}" if labels else "")
    workers = f"{data['workers']} worker{'s' if data['workers'] > 1 else ''} with {each}"
    since = f"waiting {data['seconds']:.0f} s" if "seconds" in data else "waiting"
    return f"{since} for {workers}; the cluster has room for {data['most']}, {data['free']} of them free"


def _gang(data: Mapping[str, Any]) -> str:
    idle = data["room"] - data["working"]
    return f"{data['working']} of {data['most']} workers" + (
        f"; room for {idle} more, which would idle" if idle else ""
    )


def _interrupted(data: Mapping[str, Any]) -> str:
    if data["reason"] == "resized":
        return "there is room for more workers: going on with them"
    why = "its machine is taken away" if data["reason"] == "preempted" else "it was sent SIGTERM"
    notice, took = data["notice_seconds"], data["save_seconds"]
    if notice is not None and took > notice:
        why += f"; saving took {took:.0f} s, and the notice was {notice:.0f} s: ask for a longer one"
    return f"saved a checkpoint, since {why}; going on"


def rolled_back(data: Mapping[str, Any]) -> str:
    """That training went back, why, and what it leaves out."""
    return f"went back at update {data['update']}: {data['reason']}; samples {data['start']} to {data['stop']} left out"


TOLD: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "waiting_for_room": _room,
    "gang": _gang,
    "stage_interrupted": _interrupted,
    "stage_rolled_back": rolled_back,
    "checkpoint_refused": lambda data: (
        data["reason"] + ("; the checkpoint before it is used" if data["left"] else "; there is none before it")
    ),
}
"""What is said of events that a running stage lives through, by their type."""


def waiting(data: Mapping[str, Any]) -> str:
    """For whom, and for how long at most."""
    return f"waiting for {data['holder']} to end or to be silent for {data['ttl_seconds']} s"


def origin(data: Mapping[str, Any]) -> str:
    """Where an attempt starts from, given the data of its event, and what keeps it from the same bits."""
    alone = f"in one process, not {data['alone_for']} workers, which rounds otherwise" if "alone_for" in data else ""
    return ", ".join(part for part in (_start(data), alone) if part)


def _start(data: Mapping[str, Any]) -> str:
    if not data["checkpoint"]:
        return f"from update {data['branch_at']} of its trunk" if "branch_at" in data else ""
    differs = data.get("differs")
    return f"from update {data['checkpoint']['update']}" + (f", not bit-exact: {', '.join(differs)}" if differs else "")


def driver_lost(data: Mapping[str, Any]) -> str:
    """That a supervisor found a driver lost, and how often that may happen before the workflow gets on."""
    return f"its driver was lost ({data['reason']}); another one goes on ({data['tries']} of {data['budget']})"


def driver_gave_up(data: Mapping[str, Any]) -> str:
    """That a driver ended itself."""
    return f"driver {data['number']} gave up: {data['reason']}"


def trouble(event: Event) -> str:
    """What went wrong and did not end the workflow, or did; empty of all else."""
    data: Mapping[str, Any] = event.data
    if event.type == "driver_lost":
        return driver_lost(data)
    if event.type == "driver_gave_up":
        return driver_gave_up(data)
    if event.type == "attempt_ended" and data["outcome"] == "failed":
        return f"{event.stage}: attempt {data['attempt']} failed: {data['message']}"
    grown = event.type == "stage_interrupted" and data["reason"] == "resized"
    if event.type in ("stage_interrupted", "stage_rolled_back", "checkpoint_refused") and not grown:
        return f"{event.stage}: {TOLD[event.type](data)}"
    return ""
