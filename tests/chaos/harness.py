"""A training run that is killed again and again, beside the same run undisturbed: `make chaos KILLS=20 SEED=7`.

Both train on a real Ray cluster with two workers, DeepSpeed ZeRO 2 in bf16, dropout, random crops and Polyak's
average, on the real digits in an S3 server. Each kill is a SIGKILL at a named point; the workers log it with the
victims' process ids. The last line is JSON; the exit code is 1 where the bits differ, or more was repeated than
the rule allows, or a recovery took too long.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.local.stack import Stack
from cluster.storage import Storage
from pipeline.config import Workflow, parse_workflow
from pipeline.driver import create
from pipeline.settings import Settings
from tests.chaos import plan, points
from tests.integration.flows import model_sha256, processes, state, wait_for

REPOSITORY = Path(__file__).parents[2]
UPDATES, SAVE_EVERY = 60, 5
TEXT = f"""
name: chaos
seed: 11
stages:
  ingest: {{source: {{kind: digits}}, samples_per_shard: 400, held_out_classes: 3}}
  pretrain:
    data: ingest
    model: {{width: 32, depth: 2, num_heads: 2, mlp_dim: 64, patch_size: 4, dropout: 0.1}}
    resolution: 16
    updates: {UPDATES}
    global_batch: 64
    lr: 0.002
    warmup_updates: 5
    precision: bf16
    polyak_decay: 0.9
    input: {{streams: 3, window: 256, crop_area: [0.5, 1.0], loader_threads: 1}}
    workers: 2
    cpus_per_worker: 0.5
    zero_stage: 2
    save_every: {SAVE_EVERY}
    log_every: 1
    retries: 1000
"""
RECOVERY_SECONDS = 30.0
"""From a worker's death to the first new update, at most."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A kill as the workers logged it, and what came of it."""

    point: str
    update: int
    victim: str
    pids: tuple[int, ...]
    checkpoint: str | None
    """That the killed attempt had started from."""
    resumed_after: int
    """Update of the checkpoint that the next attempt went on from."""
    recovery_seconds: float | None
    """From the kill to the end of the first update after it; None where none was left to do."""


def main() -> None:
    """Run both, print, and exit with 1 where the promise is broken."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from cluster import local

    home = Path(tempfile.mkdtemp(prefix="patchline-chaos-"))
    try:
        stack = local.up(home)
        os.environ.update(stack.environment())
        undisturbed = disturb(stack, f"{stack.root}/undisturbed", [])
        drawn = plan.draw(arguments.seed, arguments.kills, updates=UPDATES, save_every=SAVE_EVERY)
        for item in drawn:
            print(f"planned: {item.point} of update {item.update}: {item.victim}", flush=True)
        disturbed = disturb(stack, f"{stack.root}/disturbed", drawn)
    finally:
        local.down(home)
        shutil.rmtree(home, ignore_errors=True)
    result = summary(undisturbed, disturbed, arguments.seed)
    result["late"] = [str(kill) for kill in disturbed.kills if late(kill)]
    print(json.dumps(result))
    sys.exit(1 if result["broken"] or result["late"] else 0)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    sha256: dict[str, str]
    """Of the files of the final model."""
    kills: tuple[Kill, ...]
    seconds: float


def disturb(stack: Stack, root: str, planned: list[plan.Disturbance]) -> Outcome:
    """Run the workflow below `root` under a plan, with a new driver whenever one is killed."""
    folder = Path(tempfile.mkdtemp(prefix="patchline-chaos-plan-"))
    began = time.monotonic()
    try:
        plan.write(folder, planned)
        storage = Settings(root=root, mlflow="").storage()
        workflow: Workflow = parse_workflow(TEXT, "chaos.yaml", ())
        workflow_id, number = create(storage, workflow), 0
        while state(storage, workflow_id) != "done":
            _drive(stack, root, workflow_id, number, folder)
            number += 1
            assert number <= 2 * len(planned) + 2, "drivers end, and the workflow is not done"
        files = _files(storage, workflow_id)
        return Outcome(sha256=files, kills=tuple(_kills(folder)), seconds=time.monotonic() - began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _drive(stack: Stack, root: str, workflow_id: str, number: int, folder: Path) -> None:
    """One driver, until it has ended or was killed."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(stack.jobs_address)
    command = [sys.executable, "-m", "pipeline.driver", "--root", root, "--mlflow", stack.mlflow_url]
    job = f"{workflow_id}-d{number}"
    variables = {**stack.environment(), "PYTHONPATH": str(REPOSITORY), points.FOLDER: str(folder)}
    variables["PATCHLINE_LEASE_SECONDS"] = "3"
    client.submit_job(
        entrypoint=f"exec {shlex.join([*command, '--number', str(number), workflow_id])}",
        submission_id=job,
        runtime_env={"env_vars": variables, "worker_process_setup_hook": "tests.chaos.points.install"},
    )
    # Ray starts it through a shell, which has the same words on its command line until it has become the driver.
    pid = wait_for(lambda: _driver(workflow_id), 60, "driver")
    (folder / "driver").write_text(str(pid))
    wait_for(lambda: str(client.get_job_status(job).value) not in ("PENDING", "RUNNING"), 900, f"end of {job}")


def _driver(workflow_id: str) -> int | None:
    found = [
        pid
        for pid in processes("-m pipeline.driver", workflow_id)
        if Path(f"/proc/{pid}/exe").resolve().name.startswith("python")
    ]
    return found[-1] if found else None


def _kills(folder: Path) -> list[Kill]:
    log = folder / "log.jsonl"
    notes: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    found = []
    for index, note in enumerate(notes):
        if note["event"] != "kill":
            continue
        start = next(later for later in notes[index + 1 :] if later["event"] == "start")
        first = next((later for later in notes[index + 1 :] if later["event"] == "first update"), None)
        kill = Kill(
            point=note["point"],
            update=note["update"],
            victim=note["victim"],
            pids=tuple(note["pids"]),
            checkpoint=note["checkpoint"],
            resumed_after=start["update"],
            recovery_seconds=first["time"] - note["time"] if first else None,
        )
        print(
            f"killed {kill.victim} (pids {', '.join(map(str, kill.pids))}) at update {kill.update}, {kill.point}; "
            f"from {kill.checkpoint or 'the beginning'}; resumed after update {kill.resumed_after}, "
            f"{kill.recovery_seconds or 0:.1f} s later",
            flush=True,
        )
        found.append(kill)
    return found


def _files(storage: Storage, workflow_id: str) -> dict[str, str]:
    return {name: model_sha256(storage, workflow_id, file=name) for name in ("model.safetensors", "raw.safetensors")}


def repeated_too_much(kill: Kill) -> bool:
    """Whether more is repeated than one interval, and the updates that were made during one upload.

    The upload of a checkpoint goes on during the updates after it, and the next one waits for it: so what is not
    yet committed is less than two intervals old.
    """
    return kill.update - kill.resumed_after > 2 * SAVE_EVERY


def late(kill: Kill) -> bool:
    """Whether a worker's death was not made good in time. (After a driver's, its lease has to run out first.)

    Asked by the long form alone: how fast the machine of a test is says nothing of the program.
    """
    return kill.victim != "driver" and (kill.recovery_seconds or 0.0) > RECOVERY_SECONDS


def summary(undisturbed: Outcome, disturbed: Outcome, seed: int) -> dict[str, Any]:
    """The figures, and what is broken."""
    kills = disturbed.kills
    recovery = [kill.recovery_seconds for kill in kills if kill.victim != "driver" and kill.recovery_seconds]
    broken = []
    if undisturbed.sha256 != disturbed.sha256:
        broken.append("the bits differ")
    broken += [f"too much repeated: {kill}" for kill in kills if repeated_too_much(kill)]
    missing = set(plan.POINTS) - {kill.point for kill in kills}
    if missing:
        broken.append(f"never hit: {', '.join(sorted(missing))}")
    if 2 * sum(kill.resumed_after >= SAVE_EVERY for kill in kills) < len(kills):
        broken.append("fewer than half of the kills came after the first commit")
    return {
        "seed": seed,
        "kills": len(kills),
        "by_point": dict(Counter(kill.point for kill in kills)),
        "by_victim": dict(Counter(kill.victim for kill in kills)),
        "same_bits": undisturbed.sha256 == disturbed.sha256,
        "most_repeated_updates": max((kill.update - kill.resumed_after for kill in kills), default=0),
        "recovery_seconds_median": round(statistics.median(recovery), 1) if recovery else None,
        "recovery_seconds_most": round(max(recovery), 1) if recovery else None,
        "seconds_undisturbed": round(undisturbed.seconds),
        "seconds_disturbed": round(disturbed.seconds),
        "broken": broken,
    }


if __name__ == "__main__":
    main()
