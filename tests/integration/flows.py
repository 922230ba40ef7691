"""A small workflow on the real digits, and how tests watch it, kill it and read what it left."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.storage import Storage
from pipeline import api
from pipeline.config import Workflow, parse_workflow
from pipeline.head import HeadDocument, read_head
from pipeline.record import Record, read_record
from pipeline.settings import Settings
from pipeline.status import StageStatus, StatusReader
from stages.metrics import MetricReader

UPDATES = 60
SAVE_EVERY = 10

TEXT = f"""
name: small
seed: 3
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
    input: {{streams: 3, window: 256, crop_area: [0.5, 1.0], flip: false, loader_threads: 1}}
    workers: 2
    zero_stage: 2
    save_every: {SAVE_EVERY}
    log_every: 1
    evaluate_every: 25
    retries: 0
"""


def small_workflow(*overrides: str, more: str = "") -> Workflow:
    """Ingestion and pretraining, and the stages of `more`."""
    return parse_workflow(TEXT + more, "small.yaml", overrides)


def wait_for(
    condition: Callable[[], Any], seconds: float, what: str, *, unless: Callable[[], object] = lambda: None
) -> Any:
    """The first true value of `condition`. `unless` says what keeps it from ever becoming true, if anything does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        hopeless = unless()
        found = condition()
        if found:
            return found
        assert not hopeless, f"no {what}: {hopeless}"
        # Conditions read storage: more often would slow down what is waited for.
        time.sleep(0.2)
    raise AssertionError(f"no {what} within {seconds} s")


def over(process: subprocess.Popen[Any]) -> str | None:
    """That a process has ended, as a reason not to wait for what it does; None while it runs."""
    return f"the process has ended with {process.poll()}" if process.poll() is not None else None


@contextmanager
def cancelled_on_failure(settings: Settings, workflow_id: str) -> Iterator[None]:
    """Around what a test does with a workflow that would train on, in the room of other tests."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            api.cancel(workflow_id, settings)
        raise


def stage(storage: Storage, workflow_id: str, name: str) -> StageStatus:
    reader = StatusReader(storage, workflow_id, ["ingest", "pretrain", name])
    reader.update()
    return reader.status.stages[name]


def state(storage: Storage, workflow_id: str) -> str:
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    return reader.status.state


def head(storage: Storage, folder: str) -> HeadDocument:
    found = read_head(storage, folder)
    assert found is not None
    return found[0]


def record(storage: Storage, workflow_id: str, name: str) -> Record:
    """The record of a finished stage."""
    folder = stage(storage, workflow_id, name).folder
    assert folder is not None
    key = head(storage, folder).record
    assert key is not None
    return read_record(storage, key)


def model_sha256(storage: Storage, workflow_id: str, name: str = "pretrain", *, file: str = "model.safetensors") -> str:
    """sha256 of the final weights."""
    import json

    manifest = json.loads(storage.read(f"{record(storage, workflow_id, name).output_prefix}/MANIFEST.json"))
    return next(entry["sha256"] for entry in manifest["files"] if entry["path"] == file)


def steps_logged(storage: Storage, folder: str, attempt: int) -> list[int]:
    """The updates whose loss an attempt has stored."""
    points = MetricReader(storage, f"{folder}/attempts/{attempt}").new_points()
    return [point.step for point in points if point.name == "train/loss"]


def past_checkpoint(storage: Storage, workflow_id: str, update: int) -> str | None:
    """The pretraining's folder, once it has committed `update` or more and gone on from there."""
    status = stage(storage, workflow_id, "pretrain")
    found = read_head(storage, status.folder) if status.folder else None
    if found is None or found[0].checkpoint is None or found[0].checkpoint.update < update:
        return None
    steps = steps_logged(storage, str(status.folder), found[0].attempt)
    return status.folder if steps and steps[-1] > found[0].checkpoint.update else None


def tracked(settings: Settings, workflow_id: str) -> dict[str, object]:
    """MLflow's runs of a workflow by their key."""
    import mlflow

    client = mlflow.MlflowClient(settings.mlflow)
    experiment = client.get_experiment_by_name("patchline")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`patchline.workflow` = '{workflow_id}'")
    return {run.data.tags["patchline.key"].removeprefix(f"{workflow_id}:"): run for run in runs}


def curve(settings: Settings, run: object, name: str) -> list[tuple[int, float]]:
    """A metric's whole history in MLflow, by update."""
    import mlflow

    history = mlflow.MlflowClient(settings.mlflow).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in history)


def in_mlflow(settings: Settings, workflow_id: str, key: str) -> object:
    """A run that has ended in MLflow, which the driver feeds until its very end."""

    def found() -> object | None:
        run = tracked(settings, workflow_id).get(key)
        return run if run is not None and run.info.status != "RUNNING" else None

    return wait_for(found, 300, f"ended run {key} in MLflow")


def processes(*words: str) -> list[int]:
    """Ids of the processes whose command line has all these words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if all(word in command for word in words):
                found.append(int(entry.name))
    return sorted(found)


def descendants(root: int) -> set[int]:
    """Ids of all processes below one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    below = {root}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {root}
