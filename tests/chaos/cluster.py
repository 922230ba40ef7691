"""A workflow on several machines, to which something happens: `python -m tests.chaos.cluster [loss partition …]`.

Ingestion and a pretraining of three ranks on a head and four machines in network namespaces (`tests.chaos.machines`). A
machine with a rank is lost, or its cable is pulled; it reaches the other machines no more, but storage still; its link
becomes slow; the driver's machine is lost; the head is. Weights and curve have to be the undisturbed ones, and the
events have to say what happened. The last line is JSON; the exit code is 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import local
from cluster.environment import in_force
from cluster.local.stack import Stack
from cluster.storage import Storage
from pipeline import api
from pipeline.config import Workflow
from pipeline.display import describe
from pipeline.record import EventLog
from pipeline.settings import Settings
from pipeline.supervise import Supervisor
from stages.metrics import MetricReader
from tests.chaos.machines import Machines, missing
from tests.integration.flows import (
    head,
    model_sha256,
    past_checkpoint,
    record,
    small_workflow,
    stage,
    state,
    wait_for,
)

COUNT, RANKS = 4, 3
END_SECONDS = 420.0
OVERRIDES = (
    *("pretrain.workers=3", "pretrain.updates=120", "pretrain.save_every=10", "pretrain.retries=6"),
    *("pretrain.evaluate_every=0", "pretrain.hang_seconds=60", "pretrain.global_batch=96"),
)
WORKER = ("ray::", "TrainWorker")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of the workflow."""

    weights: str
    losses: dict[int, float]
    attempts: int
    told: list[str]
    """Its events, as people read them."""
    seconds: float
    met: str = ""
    """What happened, to which machine."""


@dataclass(kw_only=True)
class Run:
    """A workflow under way on the machines."""

    machines: Machines
    settings: Settings
    workflow_id: str
    storage: Storage
    folder: str = ""

    def with_rank(self) -> int:
        """A machine on which a rank trains, and no driver."""
        drivers = self.machines.with_process("pipeline.driver", self.workflow_id)
        return next(n for n in self.machines.with_process(*WORKER) if n and n not in drivers)


def loss(run: Run) -> str:
    """The power of a machine with a rank is cut."""
    number = run.with_rank()
    run.machines.lose(number)
    return f"machine {number} was lost"


def partition(run: Run) -> str:
    """The cable of a machine with a rank is pulled, and plugged in again when another attempt trains without it."""
    number, attempt = run.with_rank(), head(run.storage, run.folder).attempt
    run.machines.part(number)
    wait_for(lambda: head(run.storage, run.folder).attempt > attempt, END_SECONDS, "attempt without the machine")
    time.sleep(2)
    run.machines.join(number)
    return f"machine {number} was cut off for a while"


def cut(run: Run) -> str:
    """A machine with a rank reaches no other machine any more, but storage, where it may go on writing."""
    number, attempt = run.with_rank(), head(run.storage, run.folder).attempt
    run.machines.cut(number, [other for other in range(COUNT + 1) if other != number])
    wait_for(lambda: head(run.storage, run.folder).attempt > attempt, END_SECONDS, "attempt without the machine")
    return f"machine {number} reached storage alone"


def slow(run: Run) -> str:
    """The link of a machine with a rank becomes slow."""
    number = run.with_rank()
    run.machines.slow(number, 10)
    return f"machine {number} became slow"


def driver(run: Run) -> str:
    """The machine with the driver is lost, with whatever else is on it; it comes back empty."""
    (number,) = run.machines.with_process("pipeline.driver", run.workflow_id)
    return _lost_and_back(run, number)


def gcs(run: Run) -> str:
    """The head is lost, and comes back with no memory of the cluster."""
    return _lost_and_back(run, 0)


def _lost_and_back(run: Run, number: int) -> str:
    machines = run.machines
    machines.lose(number)
    if number == 0:
        # Nobody keeps their cluster: an operator starts the machines anew, as KubeRay does.
        for other in range(1, COUNT + 1):
            machines.lose(other)
        machines.start(0)
        machines.wait()
        for other in range(1, COUNT + 1):
            machines.start(other)
    else:
        machines.start(number)
    machines.wait()
    return f"machine {number}{' (the head)' if number == 0 else ''} was lost, with the driver or without"


SCENARIOS: dict[str, Callable[[Run], str]] = {
    "slow": slow, "loss": loss, "partition": partition, "cut": cut, "driver": driver, "head": gcs,
}  # fmt: skip


def workflow() -> Workflow:
    """Ingestion and pretraining."""
    return small_workflow(*OVERRIDES)


def run_on(machines: Machines, root: str, scenario: Callable[[Run], str] | None) -> Outcome:
    """The workflow in a root of its own, to which something happens once it has committed a checkpoint, or nothing."""
    settings, stop = machines.settings(root), threading.Event()
    with in_force({**settings.environment, "PATCHLINE_LEASE_SECONDS": "5"}):
        storage, began = settings.storage(), time.monotonic()
        run = Run(machines=machines, settings=settings, storage=storage, workflow_id=api.submit(workflow(), settings))
        supervisor = threading.Thread(target=Supervisor(settings).run, args=(stop,), daemon=True)
        supervisor.start()
        try:
            met = ""
            if scenario is not None:
                run.folder = wait_for(
                    lambda: past_checkpoint(storage, run.workflow_id, 20), END_SECONDS, "second checkpoint"
                )
                met = scenario(run)
            wait_for(lambda: state(storage, run.workflow_id) in ("done", "failed"), END_SECONDS, f"end after {met}")
        finally:
            stop.set()
            supervisor.join()
        assert state(storage, run.workflow_id) == "done", "\n".join(told(storage, run.workflow_id))
        return _outcome(run, met, time.monotonic() - began)


def told(storage: Storage, workflow_id: str) -> list[str]:
    """What the events of a workflow say."""
    return [line for event in EventLog(storage, workflow_id).new_events() if (line := describe(event))]


def _outcome(run: Run, met: str, seconds: float) -> Outcome:
    found = stage(run.storage, run.workflow_id, "pretrain")
    losses = dict[int, float]()
    for segment in head(run.storage, str(found.folder)).history:
        for point in MetricReader(run.storage, f"{found.folder}/attempts/{segment.attempt}").new_points():
            if point.name == "train/loss" and segment.start < point.step <= segment.end:
                losses[point.step] = point.value
    return Outcome(
        weights=model_sha256(run.storage, run.workflow_id),
        losses=losses,
        attempts=record(run.storage, run.workflow_id, "pretrain").attempt,
        told=told(run.storage, run.workflow_id),
        seconds=seconds,
        met=met,
    )


def compare(undisturbed: Outcome, found: Outcome) -> list[str]:
    """What is not as it was undisturbed, and what is not told."""
    broken = []
    if found.weights != undisturbed.weights:
        broken.append("the weights differ")
    if found.losses != undisturbed.losses:
        broken.append("the curve differs")
    lost = "slow" not in found.met
    if lost and found.attempts < 2:
        broken.append("nothing was disturbed")
    if lost and not any(word in line for line in found.told for word in ("died", "sign of life", "lost", "reach")):
        broken.append(f"nobody says what happened: {found.told}")
    return broken


def main() -> None:
    """Run the scenarios, print, and exit with 1 where the promise is broken."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], help="all where none is named")
    names = parser.parse_args().scenarios or list(SCENARIOS)
    if reason := missing():
        sys.exit(f"there can be no machines in network namespaces here: {reason}")
    home = Path(tempfile.mkdtemp(prefix="patchline-chaos-"))
    stack, broken = local.up(home), list[str]()
    try:
        undisturbed = _on_new_machines(stack, "undisturbed", None)
        for name in names:
            try:
                found = _on_new_machines(stack, name, SCENARIOS[name])
                problems = compare(undisturbed, found)
                print(f"{found.met}: {'; '.join(problems) or 'the same'}", flush=True)
                print("\n".join(f"    {line}" for line in found.told), flush=True)
            except Exception as error:
                problems = [f"{type(error).__name__}: {error}"]
                print(f"{name}: {problems[0]}", flush=True)
            broken += [f"{name}: {problem}" for problem in problems]
    finally:
        local.down(home)
        shutil.rmtree(home, ignore_errors=True)
    print(json.dumps({"scenarios": names, "broken": broken}))
    sys.exit(1 if broken else 0)


def _on_new_machines(stack: Stack, name: str, scenario: Callable[[Run], str] | None) -> Outcome:
    with Machines(stack, COUNT) as machines:
        found = run_on(machines, f"{stack.root}/{name}", scenario)
    print(f"{name}: {found.seconds:.0f} s, {found.attempts} attempts", flush=True)
    return found


if __name__ == "__main__":
    main()
