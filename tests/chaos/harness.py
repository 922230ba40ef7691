"""A training run that is killed again and again, beside the same run undisturbed: `make chaos KILLS=20 SEED=7`.

Both train on a real Ray cluster with two workers, DeepSpeed ZeRO 2 in bf16, dropout, random crops and Polyak's
average, on the real digits in an S3 server. Each kill is a SIGKILL at a named point; the workers log it with the
victims' process ids. The last line is JSON; the exit code is 1 where the bits or a curve differ, a committed checkpoint
was not whole, more was repeated than the rule allows, a recovery took too long, or too few recoveries were measured.
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
from pipeline.curves import Curves
from pipeline.driver import create
from pipeline.settings import Settings
from tests.chaos import plan, points
from tests.integration.flows import UPDATES, head, model_sha256, processes, small_workflow, stage, state, wait_for

REPOSITORY = Path(__file__).parents[2]
SAVE_EVERY = 5
OVERRIDES = (
    "seed=11", "pretrain.precision=bf16", "pretrain.polyak_decay=0.9", "pretrain.cpus_per_worker=0.5",
    f"pretrain.save_every={SAVE_EVERY}", "pretrain.evaluate_every=10", "pretrain.retries=1000",
)  # fmt: skip
CURVES = ("train/loss", "train/gradient_norm", "validation/loss", "raw/validation/loss")
START_SECONDS = 300.0
RECOVERY_SECONDS = 30.0
"""From a worker's death to the first new update, at most."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A kill as the workers logged it, and what came of it."""

    point: str
    update: int
    victim: str
    pids: tuple[int, ...]
    at: int
    """Update that the killed attempt was at: an upload goes on during those after its own."""
    saved: int
    """Update of the newest checkpoint that it had begun to save, or started from."""
    committed: int
    """Update of the newest checkpoint that was committed before the kill, by any attempt."""
    checkpoint: str | None
    """That it had started from."""
    resumed_after: int
    """Update of the checkpoint that the next attempt went on from."""
    recovery_seconds: float | None
    """From the kill to the end of the first update after it; None where the next kill or the end came before."""


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
    result = summary(undisturbed, disturbed, arguments.seed, arguments.kills)
    result["late"] = [str(kill) for kill in disturbed.kills if late(kill)]
    print(json.dumps(result))
    sys.exit(1 if result["broken"] or result["late"] else 0)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    sha256: dict[str, str]
    """Of the files of the final model."""
    curves: dict[str, list[tuple[int, float]]]
    """By metric, the points that count."""
    kills: tuple[Kill, ...]
    drivers: int
    starts: int
    """How often a gang began to train."""
    refused: tuple[str, ...]
    """Checkpoints that had been committed and were not whole."""
    seconds: float


def disturb(stack: Stack, root: str, planned: list[plan.Disturbance], *, manifest_first: bool = False) -> Outcome:
    """Run the workflow below `root` under a plan, with a new driver whenever one is killed.

    `manifest_first` breaks the rule that a checkpoint's manifest is written when all else is stored.
    """
    folder = Path(tempfile.mkdtemp(prefix="patchline-chaos-plan-"))
    began = time.monotonic()
    try:
        plan.write(folder, planned)
        storage = Settings(root=root, mlflow="").storage()
        workflow_id, number = create(storage, small_workflow(*OVERRIDES)), 0
        while state(storage, workflow_id) != "done":
            _drive(stack, root, workflow_id, number, folder, manifest_first)
            number += 1
            assert number <= 2 * len(planned) + 2, "drivers end, and the workflow is not done"
        files = _files(storage, workflow_id)
        trained = str(stage(storage, workflow_id, "pretrain").folder)
        refused = head(storage, trained).refused
        seconds = time.monotonic() - began
        notes = _notes(folder)
        starts = sum(note["event"] == "start" for note in notes)
        return Outcome(
            sha256=files, curves=_curves(storage, trained), kills=tuple(_kills(notes)), drivers=number, starts=starts,
            refused=tuple(refused), seconds=seconds,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _drive(stack: Stack, root: str, workflow_id: str, number: int, folder: Path, manifest_first: bool) -> None:
    """One driver, until it has ended or was killed."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(stack.jobs_address)
    command = [sys.executable, "-m", "pipeline.driver", "--root", root, "--mlflow", stack.mlflow_url]
    job = f"{workflow_id}-d{number}"
    variables = {**stack.environment(), "PYTHONPATH": str(REPOSITORY), points.FOLDER: str(folder)}
    variables |= {"PATCHLINE_LEASE_SECONDS": "3", points.MANIFEST_FIRST: "1" if manifest_first else ""}
    client.submit_job(
        entrypoint=f"exec {shlex.join([*command, '--number', str(number), workflow_id])}",
        submission_id=job,
        runtime_env={"env_vars": variables, "worker_process_setup_hook": "tests.chaos.points.install"},
    )
    # Ray starts it through a shell, which has the same words on its command line until it has become the driver.
    pid = wait_for(lambda: _driver(workflow_id), START_SECONDS, "driver")
    (folder / "driver").write_text(str(pid))
    wait_for(lambda: str(client.get_job_status(job).value) not in ("PENDING", "RUNNING"), 900, f"end of {job}")


def _driver(workflow_id: str) -> int | None:
    found = [
        pid
        for pid in processes("-m pipeline.driver", workflow_id)
        if Path(f"/proc/{pid}/exe").resolve().name.startswith("python")
    ]
    return found[-1] if found else None


def _notes(folder: Path) -> list[dict[str, Any]]:
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _kills(notes: list[dict[str, Any]]) -> list[Kill]:
    found = []
    for index, note in enumerate(notes):
        if note["event"] == "missed":
            print(f"met no living {note['victim']} at update {note['update']}, {note['point']}", flush=True)
        if note["event"] == "kill":
            found.append(_kill(note, notes[:index], notes[index + 1 :]))
            print(_line(found[-1]), flush=True)
    return found


def _kill(note: dict[str, Any], before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Kill:
    begun = next(item for item in reversed(before) if item["event"] in ("save", "start"))
    committed = max((item["update"] for item in before if item["event"] == "committed"), default=0)
    start = next(item for item in after if item["event"] == "start")
    # Where the next attempt was killed before its first update, there is nothing to measure.
    until = next((place for place, item in enumerate(after) if item["event"] == "kill"), len(after))
    first = next((item for item in after[:until] if item["event"] == "first update"), None)
    return Kill(
        point=note["point"],
        update=note["update"],
        victim=note["victim"],
        pids=tuple(note["pids"]),
        at=note["at"],
        saved=begun["update"],
        committed=committed,
        checkpoint=note["checkpoint"],
        resumed_after=start["update"],
        recovery_seconds=first["time"] - note["time"] if first else None,
    )


def _line(kill: Kill) -> str:
    seconds = (
        "at a time that was not measured" if kill.recovery_seconds is None else f"{kill.recovery_seconds:.1f} s later"
    )
    return (
        f"killed {kill.victim} (pids {', '.join(map(str, kill.pids))}) at update {kill.update}, {kill.point}, "
        f"when training was at {kill.at}; from {kill.checkpoint or 'the beginning'}; resumed after update "
        f"{kill.resumed_after}, {seconds}"
    )


def _files(storage: Storage, workflow_id: str) -> dict[str, str]:
    return {name: model_sha256(storage, workflow_id, file=name) for name in ("model.safetensors", "raw.safetensors")}


def _curves(storage: Storage, folder: str) -> dict[str, list[tuple[int, float]]]:
    """What MLflow's run of the stage is sent."""
    points = Curves(storage, folder, has_updates=True)
    points.collect()
    return {name: sorted((p.step, p.value) for p in points.committed if p.name == name) for name in CURVES}


def repeated_too_much(kill: Kill) -> bool:
    """Whether more is repeated than one interval, and the updates that were made during one upload.

    The newest checkpoint that was begun may be lost, and with it the updates that were made while it was uploaded;
    the one before it was committed, since one upload at a time is outstanding. What was committed is never lost.
    """
    return kill.resumed_after < max(kill.saved - SAVE_EVERY, kill.committed)


def late(kill: Kill) -> bool:
    """Whether a worker's death was not made good in time. (After a driver's, its lease has to run out first.)

    Not where nothing was measured, which `summary` counts. Asked by the long form alone: how fast the machine of a
    test is says nothing of the program.
    """
    return kill.victim != "driver" and (kill.recovery_seconds or 0.0) > RECOVERY_SECONDS


def summary(undisturbed: Outcome, disturbed: Outcome, seed: int, planned: int) -> dict[str, Any]:
    """The figures, and what is broken."""
    kills = disturbed.kills
    workers = [kill.recovery_seconds for kill in kills if kill.victim != "driver"]
    recovery = [seconds for seconds in workers if seconds is not None]
    broken = []
    if undisturbed.sha256 != disturbed.sha256:
        broken.append("the bits differ")
    broken += [f"the curve {name} differs" for name in CURVES if undisturbed.curves[name] != disturbed.curves[name]]
    broken += [f"too much repeated: {kill}" for kill in kills if repeated_too_much(kill)]
    broken += [f"committed and not whole: {prefix}" for prefix in disturbed.refused]
    missing = {*plan.POINTS, *plan.VICTIMS} - {kill.point for kill in kills} - {kill.victim for kill in kills}
    if missing:
        broken.append(f"never hit: {', '.join(sorted(missing))}")
    if len(kills) < planned:
        broken.append(f"{len(kills)} of {planned} kills met their victims")
    # Nothing else may have ended a driver or an attempt.
    ends = sum(kill.victim == "driver" for kill in kills)
    if disturbed.drivers != 1 + ends:
        broken.append(f"{disturbed.drivers} drivers for {ends} that were killed")
    if disturbed.starts != 1 + len(kills):
        broken.append(f"{disturbed.starts} attempts for {len(kills)} kills")
    if 2 * sum(kill.resumed_after >= SAVE_EVERY for kill in kills) < len(kills):
        broken.append("fewer than half of the kills came after the first commit")
    if 2 * len(recovery) < len(workers):
        broken.append(f"{len(recovery)} recoveries measured after {len(workers)} kills of workers")
    return {
        "seed": seed,
        "kills": len(kills),
        "by_point": dict(Counter(kill.point for kill in kills)),
        "by_victim": dict(Counter(kill.victim for kill in kills)),
        "same_bits": undisturbed.sha256 == disturbed.sha256,
        "most_repeated_updates": max((kill.at - kill.resumed_after for kill in kills), default=0),
        "most_updates_in_an_upload": max((kill.at - kill.saved for kill in kills), default=0),
        "recoveries_measured": len(recovery),
        "recovery_seconds_median": round(statistics.median(recovery), 1) if recovery else None,
        "recovery_seconds_most": round(max(recovery), 1) if recovery else None,
        "seconds_undisturbed": round(undisturbed.seconds),
        "seconds_disturbed": round(disturbed.seconds),
        "broken": broken,
    }


if __name__ == "__main__":
    main()
