"""What orchestration costs: `python -m tests.bench.workflow [PART ...]`, all parts where none is named.

It starts a local stack of its own. Prints JSON on its last line, in seconds, and exits with 1 where a limit is missed:

- `reuse`: a finished four-stage workflow, from `patchline submit` to its end;
- `hand_over`: from the end of ingestion to the first update of the pretraining after it; `ray_train` is what Ray Train
  takes of that for a gang that does nothing;
- `list`, `status`: the commands, among 10,000 workflows and 1,000,000 records in a folder, and among 50,000 keys in a
  bucket (`list_s3`, `status_s3`);
- `plan`, `help`: the commands, and `plan` in that folder too (`plan_large`);
- `per_stage`: the runner's own time for each of 1,000 trivial stages, in MLflow and drained.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.workflow_roots import fill_bucket, fill_folder, workflow_ids

LIMITS = {
    **{"reuse": 10.0, "hand_over": 12.0, "plan": 1.0, "plan_large": 1.0, "help": 0.3, "per_stage": 0.05},
    **dict.fromkeys(("list", "status", "list_s3", "status_s3"), 2.0),
}
TIMES = 5
"""Runs of a command; the median counts."""
STAGES = 1000
SHORT = ["-o", "pretrain.epochs=4", "-o", "pretrain.log_every=1", "-o", "finetune.epochs=1", "-o", "fewshot.draws=2"]


def main() -> None:
    """Measure, print, and exit with 1 where a limit is missed."""
    parts: dict[str, Callable[[Path], dict[str, float]]] = {
        "commands": commands,
        "folder": folder,
        "bucket": bucket,
        "stages": stages,
        "cluster": on_a_cluster,
    }
    home = Path(tempfile.mkdtemp(prefix="patchline-bench-"))
    os.environ["PATCHLINE_HOME"] = str(home)
    found: dict[str, float] = {}
    try:
        for name in sys.argv[1:] or parts:
            found |= parts[name](home)
            print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    finally:
        patchline("down")
        shutil.rmtree(home, ignore_errors=True)
    missed = [name for name, limit in LIMITS.items() if found.get(name, 0) > limit]
    print(f"cores: {os.cpu_count()}, load: {os.getloadavg()[0]:.1f}, missed: {', '.join(missed) or 'none'}")
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    sys.exit(1 if missed else 0)


def commands(home: Path) -> dict[str, float]:
    """Those that nothing has to be there for."""
    root = f"file://{home}/empty"
    return {"help": timed("--help"), "plan": timed("plan", "digits", "--root", root)}


def folder(home: Path) -> dict[str, float]:
    """A root in a folder."""
    root = home / "large"
    began = time.monotonic()
    fill_folder(root)
    print(f"folder: made in {time.monotonic() - began:.0f} s", flush=True)
    names, url = workflow_ids(), f"file://{root}"
    found = {
        "list": timed("list", "--root", url),
        "status": max(timed("status", names[777], "--root", url), timed("status", "--root", url)),
        "plan_large": timed("plan", "digits", "--root", url),
    }
    shutil.rmtree(root)
    return found


def bucket(home: Path) -> dict[str, float]:
    """A root in a bucket of the local stack's S3 server, on the same cores."""
    from cluster import local
    from pipeline.settings import of_stack

    settings = of_stack(local.up(home))
    url = f"{settings.root}/large"
    began = time.monotonic()
    from cluster.storage import open_storage

    settings.enter()
    keys = fill_bucket(open_storage(url))
    print(f"bucket: {keys} keys made in {time.monotonic() - began:.0f} s", flush=True)
    names = workflow_ids()
    return {
        "list_s3": timed("list", "--root", url),
        "status_s3": max(timed("status", names[777], "--root", url), timed("status", "--root", url)),
    }


def stages(home: Path) -> dict[str, float]:
    """A chain of stages that write a word each, from the first lease to the last point in MLflow."""
    from cluster import local
    from cluster.storage import open_storage
    from pipeline import tracking
    from pipeline.config import Workflow
    from pipeline.runner import Runner
    from pipeline.settings import of_stack
    from tests.unit.pipeline.toys import Source

    settings = of_stack(local.up(home))
    settings.enter()
    storage = open_storage(f"file://{home}/stages")
    flow = Workflow(name="many", stages={f"s{number}": Source(text=f"word {number}") for number in range(STAGES)})
    began = time.monotonic()
    with tracking.MlflowTracker(settings.mlflow, storage, "many-1", flow) as tracker:
        runner = Runner(storage, "many-1", flow, owner="bench", ray=False, tracker=tracker)
        state = runner.run()
        ran = time.monotonic() - began
        tracker.workflow_ended(state)
    assert state == "done", state
    return {"per_stage": (time.monotonic() - began) / STAGES, "per_stage_runner": ran / STAGES}


def on_a_cluster(home: Path) -> dict[str, float]:
    """The demo's workflow, shortened, twice: what stands between two stages, and what is left when all is done."""
    patchline("up")
    follow = ["submit", "digits", *SHORT, "--follow"]
    patchline(*follow)
    found = {"hand_over": hand_over(), "ray_train": empty_gang(home)}
    # Once before: what is the first of its kind on a cluster has imports of its own.
    patchline(*follow)
    return {**found, "reuse": median(seconds(lambda: patchline(*follow)) for _ in range(3))}


def hand_over() -> float:
    """Seconds from the end of ingestion to the first update of the pretraining, by the stages' own times."""
    from pipeline.record import EventLog
    from pipeline.settings import resolve
    from pipeline.status import find
    from stages.metrics import MetricReader

    storage = resolve().storage()
    events = EventLog(storage, find(storage, None)).new_events()
    done = next(event for event in events if event.type == "stage_done" and event.stage == "ingest")
    started = next(event for event in events if event.type == "attempt_started" and event.stage == "pretrain")
    data: dict[str, Any] = started.data
    points = MetricReader(storage, f"{data['folder']}/attempts/{data['attempt']}").new_points()
    first = min(point.time_ms for point in points if point.name == "train/loss")
    print(f"hand_over: attempt started after {(started.time_ms - done.time_ms) / 1000:.2f} s", flush=True)
    return (first - done.time_ms) / 1000


def nothing(argument: Any, rank: Any) -> None:
    """What the workers of the empty gang do."""


GANG = """
import time
from cluster.connect import connect
from cluster.gang import run_gang
from tests.bench.workflow import nothing
connect()
began = time.monotonic()
run_gang(nothing, None, workers=2, cpus=1, gpus=0, name="empty")
print("seconds", time.monotonic() - began)
"""


def empty_gang(home: Path) -> float:
    """Seconds of a gang of two workers that do nothing, from a job as a workflow's driver is one."""
    from cluster import jobs, local
    from cluster.environment import in_force

    stack = local.load(home)
    assert stack is not None
    with in_force(stack.environment()):
        jobs.submit(
            stack.jobs_address,
            shlex.join([sys.executable, "-c", GANG]),
            submission_id="empty-gang",
            environment={**stack.environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
            modules=None,
            metadata={},
        )
        while jobs.status(stack.jobs_address, "empty-gang") in ("PENDING", "RUNNING"):
            time.sleep(0.5)
        log = jobs.logs(stack.jobs_address, "empty-gang")
    return next(float(line.split()[1]) for line in log.splitlines() if line.startswith("seconds"))


def timed(*words: str) -> float:
    """Median seconds of a command, after one that fills the caches."""
    patchline(*words)
    return median(seconds(lambda: patchline(*words)) for _ in range(TIMES))


def seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def patchline(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
