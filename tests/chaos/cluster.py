"""A workflow on several machines, to which something happens: `make chaos-cluster`.

Ingestion and a pretraining of three ranks on a head and four machines in network namespaces (`tests.chaos.machines`). A
machine with a rank is lost, or its cable is pulled; it reaches the other machines no more, but storage still; its link
becomes slow; the driver's machine is lost; the head is, with or without its tables. Weights and
curve have to be the undisturbed ones, and the events have to say what happened. The last line is JSON; the exit code is
1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from cluster import local
from cluster.environment import in_force
from cluster.local.stack import Stack
from cluster.storage import Storage
from pipeline import api
from pipeline.config import Workflow
from pipeline.display import describe
from pipeline.preflight import Length, Preflight, preflight
from pipeline.preflight_job import on_cluster
from pipeline.record import EventLog
from pipeline.settings import Settings
from pipeline.supervise import Supervisor
from stages.metrics import MetricReader
from tests.chaos import late
from tests.chaos.machines import ENDLESS, Machines, missing
from tests.chaos.scenarios import END_SECONDS, SCENARIOS, Run, Scenario
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
JOIN_SECONDS = 60.0
OVERRIDES = (
    *("pretrain.updates=120", "pretrain.save_every=10", "pretrain.retries=6"),
    *("pretrain.evaluate_every=0", "pretrain.global_batch=96"),
)


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


def late_commits() -> dict[str, str]:
    """Environment of machines whose commits can be held back: all of their processes have to find what does it."""
    path = filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
    return {**late.HOOK, "PYTHONPATH": os.pathsep.join(path)}


def workflow(ranks: int) -> Workflow:
    """Ingestion and pretraining."""
    return small_workflow(*OVERRIDES, f"pretrain.workers={ranks}")


def run_on(machines: Machines, root: str, scenario: Scenario | None, *, ranks: int = RANKS) -> Outcome:
    """The workflow in a root of its own, to which something happens once it has committed a checkpoint, or nothing."""
    settings, stop = machines.settings(root), threading.Event()
    machines.narrow(ENDLESS if scenario is None else scenario.megabits)
    with in_force({**settings.environment, "PATCHLINE_LEASE_SECONDS": "5"}):
        run, began = _submitted(machines, settings, scenario, ranks), time.monotonic()
        storage = run.storage
        supervisor = threading.Thread(target=Supervisor(settings).run, args=(stop,), daemon=True)
        supervisor.start()
        try:
            met = ""
            if scenario is not None:
                run.folder = run.wait_for(lambda: past_checkpoint(storage, run.workflow_id, 20), "second checkpoint")
                met = scenario.act(run)
            wait_for(lambda: state(storage, run.workflow_id) in ("done", "failed"), END_SECONDS, f"end after {met}")
        finally:
            stop.set()
            # It may be asking a cluster that does not answer, and ends with this process at the latest.
            supervisor.join(JOIN_SECONDS)
        assert state(storage, run.workflow_id) == "done", "\n".join(told(storage, run.workflow_id))
        return _outcome(run, met, time.monotonic() - began)


def _submitted(machines: Machines, settings: Settings, scenario: Scenario | None, ranks: int) -> Run:
    """The workflow, whose driver is where the scenario needs it."""
    wanted = scenario.driver_on if scenario is not None else None
    with nullcontext() if wanted is None else _jobs_on(machines.address(wanted)):
        workflow_id = api.submit(workflow(ranks), settings)
    run = Run(machines=machines, settings=settings, storage=settings.storage(), workflow_id=workflow_id)
    assert wanted is None or run.with_driver() == wanted, f"the driver is not on machine {wanted}"
    return run


def _jobs_on(address: str) -> AbstractContextManager[object]:
    """Within it, jobs are submitted for the machine of this address; Ray puts them anywhere otherwise."""
    from ray.job_submission import JobSubmissionClient

    submit_job = JobSubmissionClient.submit_job
    place = {f"node:{address}": 0.001}
    return patch.object(
        JobSubmissionClient,
        "submit_job",
        lambda client, **options: submit_job(client, entrypoint_resources=place, **options),
    )


def told(storage: Storage, workflow_id: str) -> list[str]:
    """What the events of a workflow say, and when."""
    events = EventLog(storage, workflow_id).new_events()
    lines = [(event.time_ms - events[0].time_ms, line) for event in events if (line := describe(event))]
    return [f"{milliseconds / 1000:5.1f} s  {line}" for milliseconds, line in lines]


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


def compare(undisturbed: Outcome, found: Outcome, scenario: Scenario) -> list[str]:
    """What is not as it was undisturbed, and what is not told."""
    broken = []
    if found.weights != undisturbed.weights:
        broken.append("the weights differ")
    if found.losses != undisturbed.losses:
        broken.append("the curve differs")
    if found.attempts < scenario.attempts:
        broken.append(f"{found.attempts} attempts: nothing was disturbed")
    if scenario.most_attempts is not None and found.attempts > scenario.most_attempts:
        broken.append(f"{found.attempts} attempts: training did not go on through it")
    for expected in scenario.told:
        if not any(re.search(expected, line) for line in found.told):
            broken.append(f"nobody says what happened ({expected!r})")
    return broken


def preflight_problems(machines: Machines, root: str, length: Length) -> list[str]:
    """What `preflight` does not find out: that one machine's link is slow, and that all else is fit."""
    slow = 2
    machines.slow(slow, megabits=200)
    settings = machines.settings(root)
    with in_force(settings.environment):
        found = preflight(settings, length, survey=partial(on_cluster, settings))
    print("\n".join(f"    {finding.level}: {finding.check}: {finding.told}" for finding in found.findings), flush=True)
    broken = [finding.told for finding in found.findings if finding.level == "problem"]
    named = {n for n in range(1, machines.count + 1) for line in _links(found) if f"machine-{n}" in line}
    return broken + ([] if named == {slow} else [f"machine {slow} is slow, and machines {named} are named"])


def _links(found: Preflight) -> list[str]:
    """What is said of slow links."""
    return [f.told for f in found.findings if f.check == "links between machines" and f.level == "warning"]


def main() -> None:
    """Run the scenarios, print, and exit with 1 where the promise is broken."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    known = ["preflight", *SCENARIOS]
    parser.add_argument("scenarios", nargs="*", choices=[*known, []], help="all where none is named")
    names = parser.parse_args().scenarios or known
    if reason := missing():
        sys.exit(f"there can be no machines in network namespaces here: {reason}")
    if any(SCENARIOS[name].with_redis for name in names if name in SCENARIOS) and not shutil.which("redis-server"):
        sys.exit("head-alone needs the command redis-server (apt install redis-server)")
    home = Path(tempfile.mkdtemp(prefix="patchline-chaos-"))
    stack, broken = local.up(home), list[str]()
    try:
        if "preflight" in names:
            with Machines(stack, COUNT) as machines:
                broken += preflight_problems(machines, f"{stack.root}/preflight", Length())
        if disturbed := [name for name in names if name in SCENARIOS]:
            undisturbed = _on_new_machines(stack, "undisturbed", None)
            for name in disturbed:
                broken += [f"{name}: {problem}" for problem in _disturb(stack, name, undisturbed)]
    finally:
        local.down(home)
        shutil.rmtree(home, ignore_errors=True)
    print(json.dumps({"scenarios": names, "broken": broken}))
    sys.exit(1 if broken else 0)


def _disturb(stack: Stack, name: str, undisturbed: Outcome) -> list[str]:
    """What a scenario breaks."""
    try:
        found = _on_new_machines(stack, name, SCENARIOS[name])
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}", flush=True)
        return [f"{type(error).__name__}: {error}"]
    problems = compare(undisturbed, found, SCENARIOS[name])
    print(f"{found.met}: {'; '.join(problems) or 'the same'}", flush=True)
    print("\n".join(f"    {line}" for line in found.told), flush=True)
    return problems


def _on_new_machines(stack: Stack, name: str, scenario: Scenario | None) -> Outcome:
    with_redis = scenario is not None and scenario.with_redis
    with Machines(stack, COUNT, late_commits(), with_redis=with_redis) as machines:
        found = run_on(machines, f"{stack.root}/{name}", scenario)
    print(f"{name}: {found.seconds:.0f} s, {found.attempts} attempts", flush=True)
    return found


if __name__ == "__main__":
    main()
