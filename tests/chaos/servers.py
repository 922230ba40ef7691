"""Whole workflows in which a process or a server is killed at any moment: `make chaos-servers KILLS=12 SEED=7`.

Each is ingestion, pretraining, fine-tuning and few-shot evaluation on a stack of its own, brought up by `patchline up`,
whose supervisor is all that brings a lost workflow back. One SIGKILL hits the driver, a worker, the raylet, the head
(its control store), the S3 server or the MLflow server, at a moment that the seed draws from the length of the
undisturbed workflow. Who has killed a server starts it again 20 s later, by `patchline up`. The last line is JSON; the
exit code is 1 where outputs or curves differ from the undisturbed ones, or a process is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster import local
from cluster.environment import in_force
from cluster.local.stack import Stack
from cluster.storage import Storage
from pipeline.driver import newest_driver
from pipeline.settings import Settings, of_stack
from tests.integration.flows import TEXT, curve, descendants, in_mlflow, processes, record, stage, state, wait_for

VICTIMS = ("driver", "worker", "raylet", "head", "s3", "mlflow")
SERVERS = {"raylet": "ray", "head": "ray", "s3": "s3", "mlflow": "mlflow"}
"""Victims that do not come back by themselves, and the service of the stack that each belongs to."""
AWAY_SECONDS = 20.0
LEASE_SECONDS, LONG_LEASE_SECONDS = 5.0, 60.0
"""Of drivers. Where one may be lost, the next one waits for the end of the lease. Where S3 or MLflow is, nobody does,
and a driver that waits for S3, for up to 15 s from try to try, is not to be taken for lost."""
END_SECONDS = 600.0
ORPHAN_SECONDS = 60.0
LATEST = 0.75
"""The latest moment, as a share of the undisturbed time: another run may be faster, and its processes gone by then."""
STAGES = ("ingest", "pretrain", "finetune", "fewshot")
CURVES = ("train/loss", "train/gradient_norm", "validation/loss")
WHOLE = f"""{TEXT}
  finetune: {{data: ingest, from: pretrain, resolution: 24, updates: 30, global_batch: 64, lr: 0.02,
    workers: 2, zero_stage: 1, input: {{streams: 3, window: 256, loader_threads: 1}}, save_every: 10, log_every: 1}}
  fewshot: {{data: ingest, from: pretrain, shots: [1, 5], draws: 5}}
"""
OVERRIDES = ("pretrain.retries=3",)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who is killed, and when: as a share of the undisturbed workflow's time."""

    victim: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a workflow."""

    files: dict[str, dict[str, str]]
    """sha256 of the files of each stage's output."""
    curves: dict[str, list[tuple[int, float]]]
    """Those of MLflow's runs of the stages that train."""
    seconds: float
    killed: str = ""
    """What was hit, with its process ids; empty where nothing was."""
    drivers: int = 1
    attempts: int = 4
    """Attempts of all stages together."""
    orphans: tuple[str, ...] = ()
    """Processes that were left when the stack had been taken down."""


def draw(seed: int, kills: int) -> list[Plan]:
    """Every victim in turn, in an order and at moments that the seed decides."""
    chance = random.Random(seed)
    victims: list[str] = []
    while len(victims) < kills:
        victims += chance.sample(VICTIMS, len(VICTIMS))
    return [Plan(victim=victim, share=round(chance.uniform(0.02, LATEST), 3)) for victim in victims[:kills]]


def main() -> None:
    """Run them all, print, and exit with 1 where the promise is broken."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.kills} kills", flush=True)
    undisturbed = run(None, 0.0)
    print(f"undisturbed: {undisturbed.seconds:.0f} s", flush=True)
    broken, hit = list(undisturbed.orphans), 0
    for plan in draw(arguments.seed, arguments.kills):
        after = plan.share * undisturbed.seconds
        print(f"planned: {plan.victim}, {after:.1f} s after the submission", flush=True)
        try:
            found = run(plan.victim, after)
        except Exception as error:
            broken.append(f"{plan.victim}: {type(error).__name__}: {error}")
            print(broken[-1], flush=True)
            continue
        problems = compare(undisturbed, found, plan.victim)
        hit += bool(found.killed)
        print(f"{found.killed or 'met nothing alive'}; {line(found)}; {'; '.join(problems) or 'the same'}", flush=True)
        broken += problems
    result = {"seed": arguments.seed, "kills": hit, "seconds_undisturbed": round(undisturbed.seconds), "broken": broken}
    print(json.dumps(result))
    sys.exit(1 if broken or hit < arguments.kills else 0)


def line(found: Outcome) -> str:
    return f"ended after {found.seconds:.0f} s, {found.drivers} drivers, {found.attempts} attempts"


def compare(undisturbed: Outcome, found: Outcome, victim: str) -> list[str]:
    """What is not as it was undisturbed."""
    broken = [
        f"{victim}: {stage}/{name} differs"
        for stage, files in undisturbed.files.items()
        for name, sha256 in files.items()
        if found.files[stage].get(name) != sha256
    ]
    broken += [
        f"{victim}: the curve {name} differs" for name, c in undisturbed.curves.items() if found.curves[name] != c
    ]
    broken += [f"{victim}: left: {orphan}" for orphan in found.orphans]
    if victim == "mlflow" and (found.attempts, found.drivers) != (undisturbed.attempts, undisturbed.drivers):
        broken.append(f"the work did not go on without MLflow: {line(found)}")
    if victim == "s3" and found.drivers != undisturbed.drivers:
        broken.append(f"the driver did not wait for S3: {line(found)}")
    return broken


def run(victim: str | None, after: float, *, away: float = AWAY_SECONDS) -> Outcome:
    """One workflow on a stack of its own, with one kill so many seconds after its submission, or none.

    A server that was killed is started again `away` seconds later.
    """
    home = Path(tempfile.mkdtemp(prefix="patchline-chaos-"))
    lease = LONG_LEASE_SECONDS if victim in (None, "s3", "mlflow") else LEASE_SECONDS
    with in_force({"PATCHLINE_HOME": str(home), "PATCHLINE_LEASE_SECONDS": f"{lease}"}):
        try:
            found = _run(_up(home), home, victim, after, away)
        finally:
            temporary = getattr(local.load(home), "temporary", str(home))
            local.down(home)
            left = _orphans(home, Path(temporary))
            shutil.rmtree(home, ignore_errors=True)
    return Outcome(**{**vars(found), "orphans": left})


def run_undisturbed(stack: Stack, root: str, folder: Path) -> Outcome:
    """The workflow on a stack that stays up: nobody looks for processes that are left. Its file comes into `folder`."""
    own = {"PATCHLINE_HOME": stack.home, "PATCHLINE_LEASE_SECONDS": f"{LONG_LEASE_SECONDS}"}
    with in_force(own), _environment(stack):
        settings, began = replace(of_stack(stack), root=root), time.monotonic()
        return _ended(settings, _submit(settings, folder), began, "")


def _run(stack: Stack, home: Path, victim: str | None, after: float, away: float) -> Outcome:
    with _environment(stack):
        settings, began = of_stack(stack), time.monotonic()
        storage, workflow_id = settings.storage(), _submit(settings, home)
        killed = ""
        if victim is not None:
            time.sleep(max(0.0, began + after - time.monotonic()))
            killed = _kill(stack, storage, workflow_id, victim)
    if killed and victim in SERVERS:
        time.sleep(away)
        stack = _up(home)
    with _environment(stack):
        return _ended(of_stack(stack), workflow_id, began, killed)


def _submit(settings: Settings, folder: Path) -> str:
    """Returns the workflow's id."""
    (folder / "whole.yaml").write_text(WHOLE)
    overrides = [word for override in OVERRIDES for word in ("-o", override)]
    return _patchline("submit", str(folder / "whole.yaml"), "--root", settings.root, *overrides).strip()


def _ended(settings: Settings, workflow_id: str, began: float, killed: str) -> Outcome:
    """What came of the workflow, once it has ended."""
    storage = settings.storage()
    wait_for(lambda: state(storage, workflow_id) == "done", END_SECONDS, f"end of the workflow after {killed}")
    seconds = time.monotonic() - began
    return Outcome(
        files={name: _files(storage, workflow_id, name) for name in STAGES},
        curves=_curves(settings, workflow_id),
        seconds=seconds,
        killed=killed,
        drivers=(newest_driver(storage, workflow_id) or 0) + 1,
        attempts=sum(record(storage, workflow_id, name).attempt for name in STAGES),
    )


@contextmanager
def _environment(stack: Stack) -> Iterator[None]:
    with in_force(stack.environment()):
        yield


def _up(home: Path) -> Stack:
    _patchline("up")
    stack = local.load(home)
    assert stack is not None
    return stack


def _patchline(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _kill(stack: Stack, storage: Storage, workflow_id: str, victim: str) -> str:
    """SIGKILL; a driver or a worker that is not there just now is waited for, as long as the workflow runs."""
    while not (pids := _pids(stack, workflow_id, victim)):
        if state(storage, workflow_id) == "done":
            return ""
        time.sleep(0.05)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    at = _at(storage, workflow_id) if victim != "s3" else ""
    return f"killed {victim} (pids {', '.join(map(str, pids))}){at}"


def _at(storage: Storage, workflow_id: str) -> str:
    for name in reversed(STAGES):
        found = stage(storage, workflow_id, name)
        if found.attempt:
            return f" in {name}, attempt {found.attempt}"
    return " before the first stage"


def _pids(stack: Stack, workflow_id: str, victim: str) -> list[int]:
    """The processes that make up a victim; SIGKILL takes those of the MLflow server all."""
    if victim == "driver":
        found = processes("-m pipeline.driver", workflow_id)
        return [pid for pid in found if Path(f"/proc/{pid}/exe").resolve().name.startswith("python")][-1:]
    service = stack.processes[SERVERS.get(victim, "ray")].pid
    own = descendants(service)
    if victim in ("s3", "mlflow"):
        return [service, *sorted(own)]
    words = {"worker": ("ray::", "TrainWorker"), "raylet": ("/raylet/raylet ",), "head": ("/gcs/gcs_server ",)}[victim]
    return [pid for pid in processes(*words) if pid in own][-1:]


def _files(storage: Storage, workflow_id: str, name: str) -> dict[str, str]:
    manifest: dict[str, Any] = json.loads(
        storage.read(f"{record(storage, workflow_id, name).output_prefix}/MANIFEST.json")
    )
    return {str(entry["path"]): str(entry["sha256"]) for entry in manifest["files"]}


def _curves(settings: Settings, workflow_id: str) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for name in ("pretrain", "finetune"):
        shown = in_mlflow(settings, workflow_id, name)
        found |= {f"{name} {key}": curve(settings, shown, key) for key in CURVES}
    in_mlflow(settings, workflow_id, "workflow")
    return found


def _orphans(home: Path, temporary: Path) -> tuple[str, ...]:
    """Processes that are left some seconds after a stack has been taken down: Ray's watchers of a job need one."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (left := tuple(_left(home, temporary))) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _left(home: Path, temporary: Path) -> Iterator[str]:
    """Processes that have to do with a stack: its folders stand in their environment or on their command line."""
    words = (f"{home}".encode(), f"{temporary}".encode())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if command and any(word in command + (entry / "environ").read_bytes() for word in words):
                yield f"{entry.name} {command.replace(bytes(1), b' ').decode(errors='replace')[:120]}"
        except OSError:
            continue


if __name__ == "__main__":
    main()
